"""The command `merge`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def merge(
    base: Annotated[Path, typer.Option(help="the folder of the model that the training started from")],
    tuned: Annotated[Path, typer.Option(help="the folder of the tuned model")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the merged model's folder; must not exist yet")],
    weights: Annotated[
        str, typer.Option(help="how much of the tuned model: 0 is base, 1 is tuned")
    ] = "0,0.25,0.5,0.75,1",
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--evaluate",
            "-e",
            help="an eval set, folder or name=folder, on which every weight is measured; give your own first, then those "
            "on which nothing may be lost",
        ),
    ] = None,
    choose: Annotated[float | None, typer.Option(help="write this weight, whatever is measured")] = None,
    max_loss: Annotated[
        float,
        typer.Option(help="how far nDCG may fall below the base's on the sets after the first; 0.01 is one point"),
    ] = 0.01,
    mode: Annotated[str, typer.Option(help="which of the model's ways decides: dense, sum, dense+BM25, …")] = "dense",
    query_instruction: Annotated[
        str | None,
        typer.Option(help="put before each query; default: as in the run that made the first set, else none"),
    ] = None,
    passage_instruction: Annotated[str | None, typer.Option(help="put before each passage; default likewise")] = None,
    query_max_length: Annotated[
        int | None, typer.Option(min=8, help="tokens; default: as in the run that made the first set, else 128")
    ] = None,
    passage_max_length: Annotated[int | None, typer.Option(min=16, help="tokens; default likewise, else 512")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, …")] = "auto",
) -> None:
    """Mix a tuned model with its base, to win back general ability (LM-Cocktail), and measure the path between them.

    \b
        bge-factory merge --base /models/bge-m3 --tuned runs/mine/tuned --out runs/mine/merged \\
            --evaluate runs/mine/eval --evaluate general=/data/T2Retrieval

    Every tensor becomes w · tuned + (1 − w) · base, m3's two heads as well. Written is the weight that is best on the first
    set among those that lose at most --max-loss on each of the others; or --choose. The models between are written
    beside --out while they are measured, so that there must be room for them. merge.json holds the figures.
    """
    from rich.console import Console

    from factory import merge_path
    from factory.cli_evaluate import as_in_run, named_set
    from factory.evaluate import Options
    from factory.merge import merge as write
    from factory.records import InputError
    from factory.settings import ModelConfig
    from factory.workspace import write_json

    base, tuned, out = (p.expanduser() for p in (base, tuned, out))
    try:
        asked = sorted({float(w) for w in weights.split(",")} | ({choose} if choose is not None else set()))
    except ValueError as e:
        raise InputError(f"expected numbers such as 0,0.5,1, got {weights!r}", where="--weights") from e
    if wrong := [w for w in asked if not 0 <= w <= 1]:
        raise InputError(f"a weight must be between 0 (base) and 1 (tuned), got {wrong[0]:g}", where="--weights")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("is there already", where=out, fix="give --out a new folder")
    if not sets and choose is None and len(asked) > 1:
        raise InputError("nothing says which weight is best", fix="--evaluate EVAL_SET, or --choose WEIGHT")
    out.parent.mkdir(parents=True, exist_ok=True)
    chosen, figures = choose if choose is not None else asked[0], []
    if sets:
        named = [named_set(s) for s in sets]
        given = {
            "query_instruction": query_instruction,
            "passage_instruction": passage_instruction,
            "query_max_length": query_max_length,
            "passage_max_length": passage_max_length,
        }
        of_run = as_in_run(given, named[0][1].resolve().parent)
        config = ModelConfig.model_validate(of_run | {"path": str(base), "device": device})
        options = Options(
            cutoffs=(10,), modes=("sparse", "colbert", "sum") if mode in ("sparse", "colbert", "sum") else ("fusion",)
        )
        path = merge_path.measure_path(
            config,
            tuned,
            asked,
            named,
            options,
            mode,
            out,
            lambda m: typer.echo(m, err=True),
        )
        chosen = choose if choose is not None else merge_path.best(path, max_loss).weight
        table = merge_path.render(path, chosen, "ndcg@10", mode)
        Console(width=None if sys.stdout.isatty() else 120).print(table)
        figures = [
            {"weight": p.weight, "values": p.values, "changes": {n: c.model_dump() for n, c in p.changes.items()}}
            for p in path
        ]
    write(base, tuned, chosen, out)
    told = {
        "base": str(base),
        "tuned": str(tuned),
        "weight": chosen,
        "metric": "ndcg@10",
        "mode": mode,
        "path": figures,
    }
    write_json(out / "merge.json", told)
    typer.echo(f"{chosen:g} of tuned: {out}")
