"""bge-launch: plan, check, show, run, resume, diagnose, migrate, config. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli_reading import diagnose, migrate, write_text

if TYPE_CHECKING:
    from launch.plan import LaunchPlan
    from launch.problems import Problem
    from launch.run import Result

app = typer.Typer(
    rich_markup_mode=None,  # importing rich takes a third of a second
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Trains an embedding model with FlagEmbedding: one YAML file, checked before it starts. "
    "`bge-launch config` explains every key of it.",
    epilog="Exit codes: 0 done; 2 your input needs mending; 1 the training failed, or anything else went wrong; "
    "130 or 143 stopped by Ctrl-C or SIGTERM.",
)
Config = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The run's launch.yaml.")]


@app.command()
def plan(
    config: Config,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            metavar="GIB", min=0.1, help="Say whether it fits onto GPUs of this memory; default: those there."
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option(help="Train two steps here and correct the estimate by what they took.")
    ] = False,
) -> None:
    """Print what the run will do: counts, every argument with its reason, and the GPU memory that it needs."""
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
    gib = gpu_memory or (made.machine.memory if made.device == "cuda" else None)
    if gib:
        print(f"\n{_memory(config, made, gib)}")
    if probe:
        from launch import preflight
        from launch.probe import probe as measure

        _stop_on_errors([p for p in preflight.check(made, overwrite=True) if p.severity == "error"])
        print(f"\n{measure(made)}")


app.command("explain", hidden=True)(plan)


def _memory(config: Path, made: LaunchPlan, gib: float) -> str:
    """The estimate for GPUs of `gib` GiB; of a plan for the CPU, what it would be on one with bf16."""
    from factory.errors import InputError
    from launch.fit import advice
    from launch.plan import on_gpus

    head = f"memory on GPUs of {gib:g} GiB"
    if made.device == "cpu":
        made, head = on_gpus(config, gib), f"{head} with bf16 (this plan itself is for the CPU)"
    try:
        return f"{head}: {advice(made, gib)}"
    except ValueError as e:
        why = e.what if isinstance(e, InputError) else "the DeepSpeed file has settings that it does not know"
        return f"{head}: no estimate: {why}"


@app.command()
def check(
    config: Config,
    before_build: Annotated[
        bool,
        typer.Option(
            "--before-build",
            help="The training file is still to be made: see whether `run` can train here all the same. "
            "`bge-factory build` asks this before hours of work, where it has rounds.",
        ),
    ] = False,
) -> None:
    """Look for everything that would go wrong; print all of it at once."""
    from launch import preflight
    from launch.plan import must_be_here, plan_file, processes

    made = plan_file(config)
    if before_build:
        must_be_here(made)
        _stop_on_errors(preflight.check(made, overwrite=True, rows=False))
        print(f"ready, but for the training file: on {made.device}, {processes(made)}")
        return
    _stop_on_errors(preflight.check(made))
    where = f"{made.device}, {processes(made)}" if made.world_size > 1 else made.device
    where += ", not on this machine" * made.machine.elsewhere
    print(f"ready: {made.batch.updates} updates, {made.batch.queries_per_step} queries a step, on {where}")


@app.command()
def show(
    config: Config,
    format: Annotated[
        str, typer.Option(help="text, bash, slurm, k8s (PyTorchJob), trainjob (Kubeflow Trainer 2), argv or json.")
    ] = "text",
    cluster: Annotated[
        Path | None, typer.Option(metavar="CLUSTER.yaml", help="What the place needs beside the plan; see above.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it here; default: print it.")] = None,
) -> None:
    """Print exactly the command that `run` executes, or a job that executes it somewhere else.

    How many nodes and GPUs, launch.yaml says; with `gpu` they need not be here:

    \b
        hardware: {nnodes: 4, nproc_per_node: 8, gpu: {memory: 80, bf16: true}}

    cluster.yaml has the rest, all of it optional:

    \b
        job_name: welding-m3
        time_limit: 720                             # minutes
        cpus: 96                                    # of each node
        memory: 900                                 # GiB of each node
        activate: source /opt/bge/bin/activate      # bash, slurm: puts torchrun on the PATH
        workdir: /data
        partition: gpu                              # slurm
        account: nlp                                # slurm
        head: gpu-1                                 # bash, argv: where several nodes meet
        rdzv_port: 29500
        image: registry.example/bge:1.4.2           # k8s, trainjob
        shared_memory: 16                           # k8s, trainjob: GiB of /dev/shm
        mounts:                                     # k8s, trainjob
        - {claim: models, path: /models, read_only: true}
        - {claim: projects, path: /data}

    \b
        bge-launch show launch.yaml --format slurm --cluster cluster.yaml --out train.sbatch
        sbatch train.sbatch
    """
    from factory.errors import InputError
    from launch.cluster import Cluster, load_cluster
    from launch.plan import command, plan_file
    from launch.render import FORMATS, render

    if format != "text" and format not in FORMATS:
        raise InputError(f"--format {format}: not a format", fix=f"one of text, {', '.join(FORMATS)}")
    where = load_cluster(cluster) if cluster else Cluster()
    made = plan_file(config)
    _stop_on_errors(list(made.problems))
    if format == "text" and made.nnodes > 1:
        fix = "bge-launch show --format bash, slurm, k8s or trainjob"
        raise InputError(f"the plan is for {made.nnodes} nodes, and one command is not enough", where=config, fix=fix)
    text = command(made) + "\n" if format == "text" else render(made, format, where, config.resolve())
    if made.prepared and format == "text":
        note = f"note: {made.prepared} (the model with another config.json) is there only while `bge-launch run` runs; "
        print(note + f"to start the command by hand, put {made.model} in its place", file=sys.stderr)
    if made.machine.elsewhere and format in ("bash", "slurm") and not where.activate:
        print(f"note: {made.argv[0]} is this machine's; `activate:` in cluster.yaml takes theirs", file=sys.stderr)
    if out is None:
        print(text, end="")
        return
    write_text(out, text)
    print(f"wrote {out}", file=sys.stderr)


@app.command()
def run(
    config: Config,
    overwrite: Annotated[bool, typer.Option(help="Move a full output folder aside to <output>.old-N.")] = False,
) -> None:
    """Check, print the command, train, restore the model's files, load it, score it on `dev:`."""
    from launch import preflight
    from launch.plan import must_be_here, plan_file

    made = plan_file(config)
    must_be_here(made)
    _stop_on_errors(preflight.check(made, overwrite=overwrite))
    _train(made, config, resume=False)


@app.command()
def resume(config: Config) -> None:
    """Go on with a stopped run from its newest whole checkpoint, or anew without one; the log is continued."""
    from launch import manifest, preflight
    from launch.plan import must_be_here, plan_file

    made = plan_file(config)
    must_be_here(made)
    before = manifest.stopped(made)
    if manifest.finished(before):
        print(f"finished: {made.output} ({before.get('updates', '?')} updates); nothing to do")
        return
    _stop_on_errors(preflight.check(made, overwrite=True))
    manifest.same_run(before, made)
    _train(made, config, resume=True)


@app.command()
def prepare(config: Config) -> None:
    """Before a job of `show`: make the folder that stands in for the model, where the job needs one."""
    from launch.base_model import prepare as make
    from launch.plan import plan_file

    made = plan_file(config)
    _stop_on_errors(list(made.problems))
    if made.prepared:
        make(made.model, made.prepared, made.overrides)
    print(f"made {made.prepared}" if made.prepared else "nothing to prepare: the model is used as it is")


@app.command()
def finish(config: Config) -> None:
    """After a job of `show`: restore the model's files, load it, score it on `dev:`; what `run` does at its end."""
    from launch import manifest
    from launch import run as runner
    from launch.plan import plan_file

    made = plan_file(config)
    _stop_on_errors(list(made.problems))
    if manifest.finished(manifest.trained(made)):
        print(f"finished: {made.output}; nothing to do")
        return
    _say(runner.run(made, config=config, resume=True))


def _train(made: LaunchPlan, config: Path, resume: bool) -> None:
    from launch import run as runner
    from launch.plan import command

    for note in made.notes:
        print(f"note: {note}")
    print(command(made), flush=True)
    _say(runner.run(made, config=config, resume=resume))


def _say(result: Result) -> None:
    loss = f", loss {result.loss['first']} → {result.loss['last']}" if result.loss["last"] is not None else ""
    print(f"tuned model: {result.output} ({_duration(result.seconds)}{loss})")


app.command()(diagnose)
app.command()(migrate)


@app.command("config")
def explain_config() -> None:
    """Explain every key of launch.yaml, and of cluster.yaml for `show`: default, reason, type and limits."""
    from factory.explain import explain
    from launch.cluster import Cluster
    from launch.config import LaunchConfig

    head = "# launch.yaml; paths are relative to the file's own folder, ~ and $VARIABLE are expanded"
    print(explain(LaunchConfig, head))
    print("\n" + explain(Cluster, "# cluster.yaml, for `bge-launch show --cluster`; not needed on one machine"))


def _stop_on_errors(problems: list[Problem]) -> None:
    for problem in sorted(problems, key=lambda p: p.severity == "error"):  # what stops us stands at the bottom
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
        from launch.execute import Interrupted
        from launch.run import TrainingFailed

        if not isinstance(e, (InputError, TrainingFailed, Interrupted)):
            raise
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2 if isinstance(e, InputError) else e.code if isinstance(e, Interrupted) else 1)


if __name__ == "__main__":
    main()
