"""The command `review`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def review(
    run: Annotated[Path, typer.Argument(help="a run's folder")],
    reviewer: Annotated[str | None, typer.Option(help="who decides; default: the name of your account")] = None,
    port: Annotated[int, typer.Option(help="default: a free one")] = 0,
    host: Annotated[str, typer.Option(help="this machine alone: 127.0.0.1, ::1 or localhost")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="open the page")] = True,
    export_argilla: Annotated[
        Path | None, typer.Option(metavar="FILE", help="instead of a page: records of Argilla 2, settings beside them")
    ] = None,
    export_label_studio: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="likewise: Label Studio's tasks, its labelling config beside them"),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="take decisions over from what either of them exported"),
    ] = None,
) -> None:
    """Open a local web page on which a domain expert decides on questions and negatives, the doubtful ones first.

    \b
    1 good   2 its passage does not answer it   3 the marked negatives answer it, too   4 drop   5 skip   u undo

    Every decision is saved at once in RUN/review.jsonl, and the next `bge-factory build` applies it: what is dropped goes
    into dropped/ with the reason, a negative that answers becomes a further positive.
    """
    import getpass

    def say(text: str) -> None:
        typer.echo(text, err=True)

    if import_ or export_argilla or export_label_studio:
        from factory.review_exchange import exchange

        exchange(run, say, import_, export_argilla, export_label_studio)
    else:
        from factory.review_server import review as serve

        serve(run, reviewer if reviewer is not None else getpass.getuser(), say, host, port, browser)
