"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factory.exports import FORMATS

HELP = (
    "Write a finished run in the formats of other libraries, each into a folder of its own with a README.md.\n\n"
    "Training questions come from train.jsonl, test questions from eval/; what is held out is in no training file.\n\n"
    "\b\n" + "\n".join(f"{name}\n    {what}" for name, what in FORMATS.items())
)


def export(
    run: Annotated[Path, typer.Argument(help="a run's folder: the --out of a finished build")],
    to: Annotated[list[str], typer.Option("--to", "-t", help="a format; may be given several times")],
    out: Annotated[Path, typer.Option("--out", "-o", help="a new or empty folder")],
    model: Annotated[
        Path | None,
        typer.Option(help="flagembedding-lengths: whose tokenizer counts; default: the run's model"),
    ] = None,
) -> None:
    from factory.exports.write import export as run_export

    run_export(run, to, out, lambda text: typer.echo(text, err=True), model)
    typer.echo(f"written: {out}", err=True)
