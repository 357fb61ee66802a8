"""The command `audit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def audit(
    file: Annotated[Path, typer.Argument(help="a FlagEmbedding training file (JSON lines), ours or anybody's")],
    corpus: Annotated[
        Path | None, typer.Option(help="all passages (BEIR corpus.jsonl), to see how many of them are used")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="an embedding model's folder, to see how hard the negatives are")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="a factory.yaml: its llm judges 200 negatives, to estimate how many are false; its model is used"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="write the whole result as JSON, too")] = None,
) -> None:
    """Look for false, copied and repeated negatives in a training file, and say how hard the rest is.

    Exit code 0, whatever is found: an audit is for reading.
    """
    from contextlib import ExitStack

    from rich.console import Console

    from factory.audit import audit as run
    from factory.audit import render
    from factory.config import Config, load_config
    from factory.evalset import read_corpus
    from factory.models import load_encoder
    from factory.settings import ModelConfig
    from factory.workspace import write_json

    settings: Config | None = load_config(config) if config else None
    described = ModelConfig(path=str(model.expanduser())) if model else settings.model if settings else None
    with ExitStack() as opened:
        judge = None
        if settings:
            import tempfile

            from factory.generate import llm_identity
            from factory.judge import LLMJudge
            from factory.llm import LLM

            scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="bge-factory-audit-")))
            store, log = scratch / "llm.sqlite", scratch / "llm-server.log"
            judge = LLMJudge(
                opened.enter_context(
                    LLM(settings.llm, llm_identity(settings), store, log, lambda text: typer.echo(text, err=True))
                )
            )
        found = run(
            file,
            corpus=list(read_corpus(corpus).values()) if corpus else (),
            encoder=load_encoder(described) if described else None,
            judge=judge,
        )
    console = Console(width=None if sys.stdout.isatty() else 120)
    for part in render(found):
        console.print(part, highlight=False, markup=False)
    if out:
        write_json(out, found.model_dump(mode="json"))
