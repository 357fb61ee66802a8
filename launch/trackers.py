"""Where the training's curves go beside the console: TensorBoard's files, and trackers that stay on this machine."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from packaging.version import Version

from launch.config import Tracker
from launch.problems import Problem, error, warning

if TYPE_CHECKING:
    from launch.plan import LaunchPlan
    from launch.recipes import Argument

TRACKERS: tuple[str, ...] = get_args(Tracker)
SWANLAB = "swanlab[dashboard]<0.8"  # the dashboard is its local mode; tried: 0.7.20 works, 0.8.0 to 0.10.3 do not
FURTHER = "BGE_LAUNCH_FURTHER_TRACKERS"  # names for the worker


def default() -> tuple[str, ...]:
    return ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()


def environment(trackers: Sequence[str], output: Path) -> dict[str, str]:
    """What makes each tracker write into a folder beside the output and open no connection. A variable that is set
    already stays: whoever has a server of their own says so there."""
    there = {
        # https://docs.wandb.ai/support/run_wandb_offline, https://mlflow.org/docs/latest/ml/tracking/,
        # https://docs.swanlab.cn/en/api/environment-variable.html
        "wandb": {
            "WANDB_MODE": "offline",
            "WANDB_DIR": str(output),
            "WANDB_PROJECT": output.name,
            "WANDB_SILENT": "true",
        },
        "mlflow": {
            "MLFLOW_TRACKING_URI": (output / "mlruns").as_uri(),
            "MLFLOW_ALLOW_FILE_STORE": "true",  # MLflow 3 asks for it
            "MLFLOW_EXPERIMENT_NAME": output.name,
        },
        "swanlab": {
            "SWANLAB_MODE": "local",
            "SWANLAB_LOG_DIR": str(output / "swanlog"),
            "SWANLAB_PROJECT": output.name,
        },
    }
    wanted = {name: value for tracker in trackers for name, value in there.get(tracker, {}).items()}
    found = {name: os.environ.get(name, value) for name, value in wanted.items()}
    return found | ({FURTHER: " ".join(trackers[1:])} if trackers[1:] else {})


def one_word(arguments: Sequence[Argument]) -> tuple[list[Argument], tuple[str, ...]]:
    """The arguments with at most one tracker in `report_to`, and all that were in it.

    The trainer's command line takes a single word there (HfArgumentParser reads `None | str | list[str]` as str); the worker
    adds the others, which `environment` tells it.
    """
    named = tuple(word for a in arguments if a.name == "report_to" for word in a.words)
    short = [a.model_copy(update={"words": a.words[:1]}) if a.name == "report_to" else a for a in arguments]
    return short, named


def add_further(trainer: Any) -> None:
    """Has the trainer report to the further trackers, too; a trainer that reports to none stays with that."""
    more = os.environ.get(FURTHER, "").split()
    if more and trainer.args.report_to:
        from transformers.integrations import get_reporting_integration_callbacks

        for callback in get_reporting_integration_callbacks(more):
            trainer.add_callback(callback)
        trainer.args.report_to = [*trainer.args.report_to, *more]


def tracker_packages(plan: LaunchPlan) -> Iterator[Problem]:
    """Trackers that are no package here, or one that transformers does not know yet: the trainer would end at its start."""
    first = next((a.words for a in plan.arguments if a.name == "report_to"), ())
    for name in (*first, *plan.env.get(FURTHER, "").split()):
        if name not in TRACKERS or plan.machine.elsewhere:
            continue
        package = SWANLAB if name == "swanlab" else name
        if importlib.util.find_spec(name) is None:
            reason = f"the training is to report to {name}, which is not installed"
            yield error("tracker.missing", reason, f"pip install '{package}', or take it out of `trackers:`")
        elif name == "swanlab" and Version(found := version(name)) >= Version("0.8"):
            reason = f"with swanlab {found} the callback of transformers 5.23 ends the training: No active Run"
            yield warning("tracker.version", reason, f"pip install '{package}'")
