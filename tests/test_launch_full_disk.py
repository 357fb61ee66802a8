"""A disk that fills up while a training runs: what is on it stays whole, and the error that counts is shown."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch import manifest
from launch.config import load_config
from launch.contract import installed
from launch.plan import LaunchPlan, Machine, make_plan
from launch.run import TrainingFailed, run
from tests.test_launch_run import write


@pytest.fixture
def plan(tmp_path: Path, models: Path) -> LaunchPlan:
    config = load_config(write(tmp_path, models / "bert"))
    return make_plan(config, Machine(gpus=0, bf16=False, cores=2), installed("base"))


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: as on a full disk, the write itself fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_manifest_that_cannot_be_written_leaves_the_old_one_whole(plan: LaunchPlan) -> None:
    plan.output.mkdir(parents=True)
    manifest.write(plan, exit_code=None, seconds=7)
    with no_file_above(100), pytest.raises(OSError, match="too large"):
        manifest.write(plan, exit_code=0, seconds=8)
    assert manifest.stopped(plan)["seconds"] == 7  # so `resume` goes on
    assert [f.name for f in plan.output.iterdir()] == [manifest.NAME]


def test_why_a_training_failed_is_said_though_the_manifest_cannot_be_written(
    plan: LaunchPlan, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil = f"import os; os.chdir({str(plan.output)!r}); os.remove('launch.json'); os.mkdir('launch.json'); "
    spoil += "print('No space left on device'); raise SystemExit(3)"
    failing = plan.model_copy(update={"argv": (sys.executable, "-c", spoil)})
    with pytest.raises(TrainingFailed, match=r"exit code 3(.|\n)*No space left"):
        run(failing)
    assert "[run.manifest]" in capfd.readouterr().err
