"""The `bge-factory` command. Heavy imports happen inside the commands, so that --help answers at once."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from factory.cli_audit import audit
from factory.cli_evaluate import evaluate
from factory.cli_export import HELP as EXPORT_HELP
from factory.cli_export import export
from factory.cli_merge import merge
from factory.cli_review import review

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich takes a third of a second
    help="""Documents in, FlagEmbedding training data and a held-out eval set out. No label, no cloud API, no network.

\b
    bge-factory build factory.yaml --out runs/mine   documents to train.jsonl, eval/, report.html
    bge-factory try-prompt factory.yaml              what the LLM asks about five passages
    bge-factory validate runs/mine/train.jsonl       is every line what the trainer expects?
    bge-launch run launch.yaml                       train on it (its own command)
    bge-factory evaluate runs/mine/eval --model base=... --model tuned=...
    bge-factory export runs/mine --to beir --out mine   for other libraries' trainers and evaluations
    bge-factory review runs/mine                     a page on which a domain expert decides; build applies it
    bge-factory merge --base ... --tuned ... --out runs/mine/merged   a model between the two

Exit codes: 0 done, 2 your input needs mending (the message says where and how), 3 a gate of `evaluate` was not met,
130 stopped by Ctrl-C, 1 anything else.
    """,
)


MENDABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOSPC, errno.EDQUOT}


def say(message: str) -> None:
    typer.echo(message, err=True)


@app.command()
def build(
    config: Annotated[Path, typer.Argument(help="the YAML file; its keys are explained by `bge-factory config`")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the run's folder; made if it does not exist")],
    csv: Annotated[bool, typer.Option(help="write 6-scores.csv beside 6-scores.parquet")] = False,
) -> None:
    """Build training data and an eval set from documents.

    Each stage is skipped when nothing that it rests on has changed. A build that was stopped, even by
    kill -9, goes on where it was when the same command is given again; a finished LLM answer is never asked for twice.

    With `rounds: 2` in CONFIG it trains, too: the base model on train.jsonl, and once more the base model on what the
    tuned one finds hard; launch.yaml says how, as for `bge-launch run`. Rounds are compared on RUN/dev, generated
    questions on documents held out for that; the first that is not surely better is the last. RUN/rounds.json has every
    number, RUN/best is the winner. The final word has `bge-factory evaluate RUN/eval`, which no round looks at.
    """
    from factory.config import load_config
    from factory.pipeline import build as run

    settings = load_config(config)
    report = run(settings, out, say)
    if csv:
        from factory.negatives import SCORES
        from factory.tables import write_csv

        say(f"scores:        {write_csv(out / SCORES)}")
    say(f"training data: {out / 'train.jsonl'}")
    if (out / "eval" / "queries.jsonl").is_file():
        say(f"held-out set:  {out / 'eval'}")
    say(f"data card:     {out / 'README.md'}")
    say(f"report:        {report}")
    if settings.rounds.count > 1:
        from factory.rounds_result import in_words, read_rounds

        for line in in_words(result, out) if (result := read_rounds(out)) else ():
            say(line)


@app.command()
def requests(
    config: Annotated[Path, typer.Argument(help="a YAML file with `llm: {serve: batch, model: NAME}`")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the run's folder, as for build")],
    file: Annotated[Path, typer.Option(help="the file to write")] = Path("requests.jsonl"),
) -> None:
    """Write what the LLM is to be asked into a file, for a machine that cannot be reached from here.

    \b
        bge-factory requests factory.yaml --out runs/mine          here: requests.jsonl
        vllm run-batch -i requests.jsonl -o answers.jsonl --model NAME      there
        bge-factory answers answers.jsonl --out runs/mine          here again
        bge-factory build factory.yaml --out runs/mine

    A judge's questions depend on what was answered before: build then says that answers are missing, and the round is
    made once more.
    """
    from factory.config import load_config
    from factory.errors import InputError
    from factory.pipeline import build as run
    from factory.request_files import AnswersMissing, write_requests

    settings = load_config(config)
    if settings.llm.serve != "batch":
        what = f"llm.serve is {settings.llm.serve}, which asks a server itself"
        raise InputError(what, where=config, fix="`llm: {serve: batch, model: NAME}`, or `bge-factory build`")
    try:
        run(settings, out, say)
    except AnswersMissing as e:
        write_requests(e, settings.llm.model, file)
        say(
            f"{len(e.bodies):,} requests: {file}\nnext: vllm run-batch -i {file} -o answers.jsonl --model {settings.llm.model}"
        )
    else:
        say("no answer is missing: the build is done")


@app.command()
def answers(
    files: Annotated[list[Path], typer.Argument(help="what `vllm run-batch` wrote, in any order")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the run's folder")],
) -> None:
    """Read the answers to `requests` back into a run; exit code 2 if some requests got none."""
    from factory.records import InputError
    from factory.request_files import read_answers

    store = out / "cache" / "llm.sqlite"
    if not store.is_file():
        raise InputError("no request was made in this run", where=out, fix="bge-factory requests CONFIG --out RUN")
    stored, problems = read_answers(files, store)
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    say(f"{stored:,} answers stored" + (f", {len(problems):,} lines without one" if problems else ""))
    if problems:
        raise typer.Exit(2)


@app.command("try-prompt")
def try_prompt(
    config: Annotated[Path, typer.Argument(help="a factory.yaml, as for build")],
    prompt: Annotated[
        list[Path] | None,
        typer.Option(
            "--prompt", "-p", help="a prompt file to try; give two to compare them, one is set beside today's"
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="passages")] = 5,
) -> None:
    """Show what prompts make of the same few passages, side by side, with the rules that questions break.

    Copy a prompt out of the package's folder (`bge-factory config` names it), change it, and look again; nothing of a
    run is touched. With the one you like: `generate.prompt: FILE`.
    """
    from rich.console import Console

    from factory.config import load_config
    from factory.try_prompt import render, try_prompts

    passages, tried = try_prompts(load_config(config), prompt or [], n, say)
    console = Console(width=None if sys.stdout.isatty() else 140)
    for part in render(passages, tried):
        console.print(part, highlight=False, markup=False)


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="FlagEmbedding training files (JSON lines), ours or anybody's")],
) -> None:
    """Check training files line by line, as the trainer will read them; exit code 2 if anything is wrong."""
    from factory.validate import check_file

    failed = False
    for path in files:
        good, problems = check_file(path)
        for problem in problems:
            typer.echo(f"error: {problem}", err=True)
        typer.echo(f"{path}: {good:,} good rows" + (f", {len(problems)} problem(s)" if problems else ", no problem"))
        failed = failed or bool(problems)
    if failed:
        raise typer.Exit(2)


app.command()(evaluate)
app.command()(merge)
app.command()(review)
app.command()(audit)
app.command(help=EXPORT_HELP)(export)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="a run's folder")],
    language: Annotated[
        Literal["zh", "en", "auto"],
        typer.Option(help="the page holds both; this one is shown first. auto: that of most passages"),
    ] = "auto",
) -> None:
    """Write report.html again from what lies in the run's folder: one file, no network, in Chinese and English.

    It begins with what a team lead wants to know: base against tuned, how sure that is, and whether to deploy.
    """
    from factory.errors import InputError
    from factory.report import write_report

    needed = ("run.json", "evaluation.json")
    if run.is_dir() and not any((run / name).is_file() for name in needed):
        what = f"is no run's folder: neither {' nor '.join(needed)} is there"
        raise InputError(what, where=run, fix="give the --out of a `bge-factory build`")
    typer.echo(write_report(run, language))


@app.command()
def config() -> None:
    """Explain every key of factory.yaml: default, reason, type and limits."""
    from factory.config import Config
    from factory.explain import explain
    from factory.prompt_files import PROMPTS

    head = "# factory.yaml; paths are relative to the file's own folder, ~ and $VARIABLE are expanded"
    typer.echo(f"{explain(Config, head)}\n\n# the package's prompts, to be copied and changed: {PROMPTS}")


def main() -> None:
    """Run the command line; the user's mistakes end with exit code 2 and one message."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from factory.errors import InputError
    from factory.offline import stay_offline

    stay_offline()

    try:
        app()
    except InputError as e:
        typer.echo(f"error: {e}", err=True)
        sys.exit(2)
    except OSError as e:
        if e.errno not in MENDABLE:
            raise
        typer.echo(f"error: {e.filename}: {(e.strerror or str(e)).lower()}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("stopped; run the same command again to go on", err=True)
        sys.exit(130)
    except RuntimeError as e:
        if type(e).__name__ != "ServerDied":
            raise
        typer.echo(f"error: {e}\n  run the same command again: finished answers are kept", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
