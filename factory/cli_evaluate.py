"""The command `evaluate`, with its gates."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from factory.evaluation import GateResult
    from factory.settings import ModelConfig

GATE_FAILED = 3


def evaluate(
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="EVAL_SET...",
            help="folders, or name=folder: ours or BEIR's (corpus.jsonl, queries.jsonl, qrels.tsv or qrels/test.tsv), or "
            "an MTEB retrieval task as it lies on a hub. The first is the one that --require is about",
        ),
    ],
    model: Annotated[
        list[str], typer.Option("--model", "-m", help="name=folder; give base first, the others are compared with it")
    ],
    query_instruction: Annotated[
        str | None, typer.Option(help="put before each query; default: as in the run that made the set, else none")
    ] = None,
    passage_instruction: Annotated[str | None, typer.Option(help="put before each passage; default likewise")] = None,
    instructions: Annotated[
        str, typer.Option(help="queries with their instruction (given), without (none), or both side by side")
    ] = "given",
    query_max_length: Annotated[
        int | None, typer.Option(min=8, help="tokens; default: as in the run that made the set, else 128")
    ] = None,
    passage_max_length: Annotated[int | None, typer.Option(min=16, help="tokens; default likewise, else 512")] = None,
    modes: Annotated[
        str, typer.Option(help="of what a model has; fusion: dense with BM25. ColBERT and the sum take the longest")
    ] = "dense,sparse,colbert,sum,fusion",
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="of dense, sparse and ColBERT in m3's sum (0.4,0.2,0.4); given again, a further sum in the same pass. "
            "Choose on a run's dev set, believe what its eval set says"
        ),
    ] = None,
    dim: Annotated[
        str, typer.Option(help="measure vectors cut to these lengths, too: 64,256 (for models trained to bear it)")
    ] = "",
    cutoffs: Annotated[str, typer.Option(help="the k of metric@k; nDCG at the largest is the headline")] = "1,3,6,10",
    require: Annotated[
        list[str] | None,
        typer.Option(
            help='a gate, "[MODEL:MODE] METRIC +GAIN [on SET]", e.g. "ndcg@10 +0.05": met if the difference from the first '
            "model is at least GAIN and its 95 % interval lies above 0 (for a GAIN of 0 or less: its lower end is at least "
            "GAIN). Without MODEL:MODE every later model, dense; without SET the first. May be given several times"
        ),
    ] = None,
    forbid_regression: Annotated[
        list[str] | None,
        typer.Option(
            help="a gate, SET=-LOSS, e.g. general=-0.01: met if nDCG on that set fell by no more than LOSS, as measured; "
            "an interval that reaches further down is remarked on"
        ),
    ] = None,
    strict_gates: Annotated[
        bool, typer.Option("--strict-gates", help="the interval's lower end decides every gate, not the measured value")
    ] = False,
    split: Annotated[str, typer.Option(help="which judgements, where a set has several")] = "test",
    subset: Annotated[str | None, typer.Option(help="language or domain of an MTEB task that has several")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, …")] = "auto",
    cache: Annotated[
        Path | None,
        typer.Option(
            help="keep vectors here, by the model's fingerprint; default: the run's cache for a run's own set"
        ),
    ] = None,
    run_files: Annotated[
        Path | None,
        typer.Option(help="write each ranking here as a TREC run file, with qrels, to be checked by others"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="write evaluation.json here; default: a run's own set goes into the run's report"),
    ] = None,
) -> None:
    """Compare models on held-out questions: recall, precision, MRR, nDCG, MAP, hit rate, each difference with its 95 %
    interval and a randomisation test.

    BM25 is always a row, and so is its fusion with each model (reciprocal ranks). A folder with bge-m3's heads is
    measured dense, sparse, ColBERT and as their sum.

    \b
        bge-factory evaluate runs/mine/eval -m base=/models/bge-m3 -m tuned=runs/mine/tuned
        bge-factory evaluate runs/mine/eval general=/data/T2Retrieval -m base=... -m tuned=... \\
            --require "ndcg@10 +0.05" --forbid-regression general=-0.01

    evaluation.json holds all figures, evaluation-queries.jsonl those of each query, wins-and-losses.jsonl the 20 largest
    of each with their passages.

    Exit codes: 0 measured, and every gate met; 2 your input needs mending; 3 a gate was not met.
    """
    from rich.console import Console

    from factory import gates
    from factory.evaluate import Options, evaluate_sets, write_evaluation
    from factory.evaluation_tables import render
    from factory.records import InputError

    wanted = [gates.requirement(t) for t in require or []] + [gates.limit(t) for t in forbid_regression or []]
    named = [named_set(given) for given in sets]
    run_folder = named[0][1].resolve().parent
    told = {
        "query_instruction": query_instruction,
        "passage_instruction": passage_instruction,
        "query_max_length": query_max_length,
        "passage_max_length": passage_max_length,
        "device": device,
    }
    if instructions not in ("given", "none", "both"):
        raise InputError(f"expected given, none or both, got {instructions!r}", where="--instructions")
    options = Options(
        cutoffs=tuple(sorted(set(_numbers(cutoffs, "--cutoffs")))),
        modes=tuple(m.strip() for m in modes.split(",") if m.strip()),
        dims=tuple(sorted(set(_numbers(dim, "--dim")))),
        weights=tuple(map(_weights, weights)) if weights else Options().weights,
        instructions=instructions,  # type: ignore[arg-type]
    )
    models = [_named_model(given, told, run_folder) for given in model]
    gates.check(wanted, [name for name, _ in named], [name for name, _ in models], options.cutoffs)
    in_run = out is None and (run_folder / "run.json").is_file()
    if out:
        out.mkdir(parents=True, exist_ok=True)
    if (folder := run_folder if in_run else out) and not os.access(folder, os.W_OK):
        raise InputError("cannot be written", where=folder, fix="--out FOLDER, where the results may go")
    done, results = evaluate_sets(
        named,
        models,
        options,
        split=split,
        subset=subset,
        cache=cache or (run_folder / "cache" if in_run else None),
        run_files=run_files,
    )
    judged: list[GateResult] = []
    try:
        judged = gates.judge(wanted, done, strict=strict_gates)
    finally:  # what was measured is kept, whatever a gate asks for
        if folder:
            write_evaluation(folder, [done[0].model_copy(update={"gates": judged}), *done[1:]], results)
    console = Console(width=None if sys.stdout.isatty() else 120)
    tables = [t for i, e in enumerate(done) for t in render(e, detailed=i == 0)]
    for table in tables + ([gates.render(judged)] if judged else []):
        console.print(table)
    if in_run:
        from factory.report import write_report

        typer.echo(f"report: {write_report(run_folder)}")
    if not all(r.passed for r in judged):
        raise typer.Exit(GATE_FAILED)


def named_set(given: str) -> tuple[str, Path]:
    """`folder`, called by its own name, or `name=folder`."""
    name, _, path = given.partition("=")
    if path and not Path(given).is_dir():
        return name, _path(path)
    folder = _path(given)
    return folder.resolve().name, folder


def _named_model(given: str, told: dict[str, Any], run_folder: Path) -> tuple[str, ModelConfig]:
    from factory.records import InputError
    from factory.settings import ModelConfig

    name, _, path = given.partition("=")
    if not path:
        raise InputError(f"expected name=folder, got {given!r}", where="--model", fix="--model base=/models/bge-m3")
    return name, ModelConfig.model_validate(as_in_run(told, run_folder) | {"path": str(_path(path))})


def _path(text: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(text)))


def _numbers(text: str, where: str) -> list[int]:
    from factory.records import InputError

    try:
        return [int(k) for k in text.split(",") if k.strip()]
    except ValueError as e:
        raise InputError(f"expected numbers such as 1,3,6,10, got {text!r}", where=where) from e


def _weights(text: str) -> tuple[float, float, float]:
    from factory.records import InputError

    try:
        dense, sparse, colbert = (float(w) for w in text.split(","))
    except ValueError as e:
        raise InputError(f"expected three numbers, got {text!r}", where="--weights", fix="0.4,0.2,0.4") from e
    return dense, sparse, colbert


def as_in_run(told: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What was told of a model; for None what the `model:` part of the run in `folder` says, if there is one and it does."""
    import json

    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]["model"]
    except (OSError, ValueError, KeyError, TypeError):
        found = {}
    of_run = found if isinstance(found, dict) else {}
    asked = {key: of_run.get(key) if value is None else value for key, value in told.items()}
    return {key: value for key, value in asked.items() if value is not None}
