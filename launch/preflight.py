"""Everything that can be known before a GPU starts. Each check yields Problems; all are collected."""

from __future__ import annotations

from launch.checks_data import batch, columns, data, distillation, prompts, same_dataset
from launch.checks_deepspeed import deepspeed
from launch.checks_machine import dev, disk, hardware, output, ports
from launch.checks_model import lengths, model, sub_batches
from launch.checks_recipes import evaluation, matryoshka, reranker
from launch.checks_text import truncation
from launch.plan import LaunchPlan
from launch.problems import Problem
from launch.trackers import tracker_packages

OF_ROWS = (data, columns, prompts, batch, distillation, same_dataset, truncation)
CHECKS = (
    model,
    lengths,
    sub_batches,
    reranker,
    matryoshka,
    evaluation,
    hardware,
    tracker_packages,
    ports,
    disk,
    deepspeed,
    dev,
)


def check(plan: LaunchPlan, *, overwrite: bool = False, rows: bool = True) -> list[Problem]:
    """All problems of a plan, errors first.

    Args:
        overwrite: a full output folder is no error.
        rows: false where the training file is still to be made: what only its rows can tell is left out.
    """
    found = list(plan.problems)
    for one in (*OF_ROWS, *CHECKS) if rows else CHECKS:
        found.extend(one(plan))
    found.extend(output(plan, overwrite))
    return sorted(found, key=lambda p: p.severity)  # "error" sorts before "warning"
