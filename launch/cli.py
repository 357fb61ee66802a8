"""bge-launch: plan, check, show, run, diagnose, migrate. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from launch.problems import Problem

app = typer.Typer(
    rich_markup_mode=None,  # importing rich takes a third of a second
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Trains an embedding model with FlagEmbedding: one YAML file, checked before it starts.",
)
Config = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The run's launch.yaml.")]


@app.command()
def plan(config: Config) -> None:
    """Print what the run will do: counts, and every argument with its reason."""
    from launch.plan import plan_file, summary

    made = plan_file(config)
    facts = summary(made)
    for name, value in facts.items():
        print(f"{name + ':':<{max(map(len, facts)) + 2}}{value}")
    print()
    width = max(len(a.name) for a in made.arguments)
    for a in made.arguments:
        print(f"{a.name:<{width}}  {' '.join(a.words) or repr('')}\n{'':<{width}}  ({a.reason})")
    for note in made.notes:
        print(f"note: {note}")
    _stop_on_errors(list(made.problems))


@app.command()
def check(config: Config) -> None:
    """Look for everything that would go wrong; print all of it at once."""
    from launch import preflight
    from launch.plan import plan_file

    made = plan_file(config)
    _stop_on_errors(preflight.check(made))
    print(f"ready: {made.batch.updates} updates of {made.batch.queries_per_step} queries on {made.device}")


@app.command()
def show(config: Config) -> None:
    """Print exactly the command that `run` executes."""
    from launch.plan import command, plan_file

    made = plan_file(config)
    _stop_on_errors(list(made.problems))
    if made.prepared:
        text = f"note: {made.prepared} (the model with another config.json) is there only while `bge-launch run` runs; "
        print(text + f"to start the command by hand, put {made.model} in its place", file=sys.stderr)
    print(command(made))


@app.command()
def run(
    config: Config,
    overwrite: Annotated[bool, typer.Option(help="Move a full output folder aside to <output>.old-N.")] = False,
) -> None:
    """Check, print the command, train, restore the model's files and load it once."""
    from launch import preflight
    from launch import run as runner
    from launch.plan import command, plan_file

    made = plan_file(config)
    _stop_on_errors(preflight.check(made, overwrite=overwrite))
    for note in made.notes:
        print(f"note: {note}")
    print(command(made), flush=True)
    result = runner.run(made)
    loss = f", loss {result.loss['first']} → {result.loss['last']}" if result.loss["last"] is not None else ""
    print(f"tuned model: {result.output} ({_duration(result.seconds)}{loss})")


@app.command()
def diagnose(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Ours or anybody's; - reads standard input.")],
) -> None:
    """Say why a training failed: the known causes in its log, each with its line and what to change."""
    from launch.diagnose import report

    print(report(_text(log)), end="")


@app.command()
def migrate(
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="A file with the command; - reads standard input.")],
    out: Annotated[Path | None, typer.Option(help="Write launch.yaml here; default: print it.")] = None,
) -> None:
    """Turn a training command, or a script with one, into the launch.yaml that does the same today."""
    from factory.errors import InputError
    from factory.workspace import atomic_text
    from launch.contract import installed
    from launch.migrate import migrate as read

    if out and out.exists():
        raise InputError("is there already", where=out, fix="give --out another name, or move the file aside")
    text, folder = _text(script), Path.cwd() if str(script) == "-" else script.parent
    made = read(text, folder=folder)
    made = read(text, folder=folder, names=installed(made.recipe).names)
    print(made.explain(), file=sys.stderr)
    if out is None:
        print(made.yaml(), end="")
        return
    with atomic_text(out) as file:
        file.write(made.yaml())
    print(f"wrote {out}; next: bge-launch check {out}", file=sys.stderr)


def _text(path: Path) -> str:
    """The file, or with - standard input; bytes that are not UTF-8 are shown as such."""
    from factory.errors import InputError

    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as e:
        raise InputError(e.strerror or "cannot be read", where=path) from e
    return data.decode("utf-8-sig", errors="replace")


def _stop_on_errors(problems: list[Problem]) -> None:
    for problem in problems:
        print(problem, file=sys.stderr)
    if any(p.severity == "error" for p in problems):
        raise typer.Exit(2)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def main() -> None:
    """The entry point: user mistakes end with exit code 2, a failed training with 1."""
    from factory.offline import stay_offline

    stay_offline()
    try:
        app()
    except Exception as e:
        from factory.records import InputError
        from launch.run import Interrupted, TrainingFailed

        if not isinstance(e, (InputError, TrainingFailed, Interrupted)):
            raise
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2 if isinstance(e, InputError) else e.code if isinstance(e, Interrupted) else 1)


if __name__ == "__main__":
    main()
