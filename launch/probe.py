"""Two real steps of a plan, and the GPU memory that they took beside the estimate.

Tried with a stand-in for nvidia-smi and torchrun only, never on a GPU: how often nvidia-smi really answers, and whether
it misses a short peak, is not known. What other programs take meanwhile is counted as ours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from factory.errors import InputError
from launch.base_model import prepare, read_json, remove_prepared
from launch.fit import setting_of
from launch.memory import GIB, estimate, shape_of
from launch.plan import LaunchPlan, must_be_here
from launch.run import TrainingFailed
from launch.runlog import tail

QUERY = ("nvidia-smi", "--query-gpu=uuid,memory.used", "--format=csv,noheader,nounits")


def probe(plan: LaunchPlan) -> str:
    """Trains two steps beside the output, removes what they wrote, and compares.

    Raises:
        InputError: a plan for the CPU, for other machines, or for a model that the estimate does not know.
        TrainingFailed: the steps failed; shows the log's last lines.
    """
    if plan.device != "cuda":
        fix = "without a GPU, `plan --gpu-memory 80` gives the estimate alone"
        raise InputError("--probe measures GPU memory, and this plan is for the CPU", fix=fix)
    if not shutil.which("nvidia-smi"):
        raise InputError("--probe asks nvidia-smi, and it is not here", fix="install the driver's utilities")
    must_be_here(plan)
    expected = estimate(shape_of(read_json(plan.model / "config.json")), setting_of(plan)).total / GIB
    plan.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bge-probe-", dir=plan.output.parent) as name:
        folder = Path(name)
        try:
            if plan.prepared:
                prepare(plan.model, plan.prepared, plan.overrides)
            watch = Watch()
            with open(folder / "log", "wb") as log:
                argv, env = short(plan, folder), os.environ | plan.env
                done = subprocess.run(argv, cwd=plan.workdir, env=env, stdout=log, stderr=subprocess.STDOUT)
            taken = watch.stop() / 1024
        finally:
            if plan.prepared:
                remove_prepared(plan.prepared)
        if done.returncode:
            raise TrainingFailed(f"the two steps failed with exit code {done.returncode}\n{tail(folder / 'log')}")
    if not taken:
        raise InputError("nvidia-smi told no memory while the two steps ran", fix="try it by hand: " + " ".join(QUERY))
    lines = [
        f"measured in two steps: {taken:.1f} GiB on the fullest GPU; estimated: {expected:.1f} GiB",
        f"so multiply estimates for this model on this machine by {taken / expected:.2f}; "
        "the estimate takes every text at its full length, and these two batches may be shorter",
    ]
    return "\n".join(lines)


def short(plan: LaunchPlan, folder: Path) -> list[str]:
    """The plan's argv, with two steps and everything written into `folder`."""
    new = {"max_steps": "2", "save_strategy": "no", "report_to": "none"}
    new |= {"output_dir": str(folder / "tuned"), "cache_path": str(folder / "cache")}
    words: list[str] = []
    skipping = False
    for word in plan.argv:
        if word.startswith("--"):
            skipping = word[2:] in new
        if not skipping:
            words.append(word)
    return words + [w for name, value in new.items() for w in (f"--{name}", value)]


class Watch:
    """The largest growth of one GPU's used memory, in MiB, since the beginning; asked five times a second."""

    def __init__(self) -> None:
        self.first: dict[str, int] = {}
        self.growth = 0
        self.process = subprocess.Popen([*QUERY, "-lms", "200"], stdout=subprocess.PIPE, text=True)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            uuid, _, used = line.strip().partition(", ")
            if used.isdigit():
                self.growth = max(self.growth, int(used) - self.first.setdefault(uuid, int(used)))

    def stop(self) -> int:
        """Ends the asking and gives the growth."""
        self.process.terminate()
        self.process.wait()
        self.thread.join(5)
        return self.growth
