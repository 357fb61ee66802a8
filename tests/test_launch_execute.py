"""A training whose bge-launch is killed, or loses its terminal; two of them in one folder."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from factory.errors import InputError
from launch.checkpoints import newest
from launch.execute import locked
from launch.run import move_aside
from tests.test_launch_run import ENDLESS, TRAINING, alive, launch, start, training, write


@pytest.mark.slow
def test_a_killed_launcher_leaves_a_checkpoint_and_no_process(tmp_path: Path, models: Path) -> None:
    config, tuned = write(tmp_path, models / "bert", **ENDLESS), tmp_path / "out" / "tuned"
    process = start("run", config)
    family = training(process, tuned / "launch.log")
    for again in (("resume", config), ("run", config, "--overwrite")):
        code, _, err = launch(*again)
        assert code == 2 and "another run is training into this folder" in err and str(tuned) in err
    assert process.poll() is None and alive(family[:2]) == family[:2]  # neither touched it
    process.kill()
    process.communicate()
    deadline = time.monotonic() + TRAINING
    while alive(family):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    found, torn = newest(tuned, 1, None)
    assert found and not torn
    with locked(tuned / "launch.log"):  # free again
        pass


@pytest.mark.slow
def test_a_training_goes_on_when_nobody_reads_its_output_any_more(tmp_path: Path, models: Path) -> None:
    """`bge-launch run launch.yaml | head`."""
    process = start("run", write(tmp_path, models / "bert", epochs=50))
    training(process, tmp_path / "out" / "tuned" / "launch.log")
    process.stdout.close()
    assert process.wait(TRAINING) == 0, process.stderr.read()
    assert "'train_loss'" in (tmp_path / "out" / "tuned" / "launch.log").read_text()
    process.stderr.close()


def test_a_folder_that_is_trained_into_is_not_moved_aside(tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    with locked(tuned / "launch.log"), pytest.raises(InputError, match="another run is training"):
        move_aside(tuned)
    assert move_aside(tuned) == tmp_path / "tuned.old-1"
