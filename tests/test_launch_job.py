"""A job of `show`, without `run`: prepared, trained by its script, finished."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.test_launch_run import TRAINING, launch, write


@pytest.mark.slow
def test_a_bash_job_leaves_what_run_leaves(tmp_path: Path, models: Path) -> None:
    config, script = write(tmp_path, models / "bert"), tmp_path / "job.sh"
    tuned = tmp_path / "out" / "tuned"
    assert launch("show", config, "--format", "bash", "--out", script)[0] == 0
    code, _, said = launch("finish", config)
    assert code == 2 and "no training has come to its end here" in said
    assert launch("prepare", config)[0] == 0  # without, the model's folder of the script is not there
    done = subprocess.run(["bash", script], capture_output=True, text=True, timeout=TRAINING)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tuned / "modules.json").exists()
    code, out, said = launch("finish", config)
    assert code == 0 and "tuned model: " in out, said
    assert (tuned / "modules.json").exists()
    assert json.loads((tuned / "config.json").read_text())["hidden_dropout_prob"] == 0.1
    stored = json.loads((tuned / "launch.json").read_text())
    assert (stored["trained"], stored["exit_code"], stored["updates"]) == (True, 0, 4)
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["tuned"]
    assert "nothing to do" in launch("finish", config)[1]
