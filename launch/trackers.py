"""Where the training's curves go beside the console: TensorBoard's files, and trackers that stay on this machine."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from launch.config import Tracker
from launch.problems import Problem, error

if TYPE_CHECKING:
    from launch.plan import LaunchPlan

TRACKERS: tuple[str, ...] = get_args(Tracker)


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
        "mlflow": {"MLFLOW_TRACKING_URI": (output / "mlruns").as_uri(), "MLFLOW_EXPERIMENT_NAME": output.name},
        "swanlab": {
            "SWANLAB_MODE": "local",
            "SWANLAB_LOG_DIR": str(output / "swanlog"),
            "SWANLAB_PROJECT": output.name,
        },
    }
    wanted = {name: value for tracker in trackers for name, value in there.get(tracker, {}).items()}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def tracker_packages(plan: LaunchPlan) -> Iterator[Problem]:
    """Trackers that are no package here: the trainer would end at its start."""
    for name in next((a.words for a in plan.arguments if a.name == "report_to"), ()):
        if name in TRACKERS and not plan.machine.elsewhere and importlib.util.find_spec(name) is None:
            reason = f"the training is to report to {name}, which is not installed"
            yield error("tracker.missing", reason, f"pip install {name}, or take it out of `trackers:`")
