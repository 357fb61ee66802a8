"""Trains a round's model: the command `bge-launch` in a process of its own, stopped in order and gone on with.

The build knows of training only launch.yaml, the exit code, and the launch.json that lies beside the tuned model.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from factory.launch_file import LaunchFile
from factory.modelfiles import model_fingerprint, read_json
from factory.records import InputError
from factory.workspace import Outcome, Workspace, atomic, atomic_text, fingerprint, sha256_file, write_json

TUNED, LAUNCH, RECORD = "tuned", "launch.yaml", "training.json"
PATIENCE = 400  # seconds from the build's end to the training's, if need be by force; bge-launch takes up to 320 itself
SHOWN = 12  # last lines of a failed training's log
PLACES = ("model", "train_data", "output")  # keys whose files count by content, not by path


def check_launch_file(file: LaunchFile, settings: Mapping[str, Any], written: Path) -> None:
    """See, before hours of work, that `bge-launch run` would train so on this machine; writes the settings to `written`.

    A file that is there with the same settings has passed before.

    Raises:
        InputError: it would not; with what bge-launch says, and file:line where it names a key.
    """
    text = _yaml(settings)
    if written.is_file() and written.read_text(encoding="utf-8") == text:
        return
    with atomic(written) as temporary:
        temporary.write_text(text, encoding="utf-8")
        words = _command("check", "--before-build", temporary)
        done = subprocess.run(words, env=_environment(), capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            said = (done.stderr or done.stdout).strip().replace(str(temporary), str(file.path))
            key = re.search(r"error: (?:\S+: )?'?(\w+)", said)
            raise InputError(
                f"bge-launch cannot train with it (exit code {done.returncode}):\n{said}",
                where=file.where(key[1] if key else ""),
                fix="mend it; nothing was built yet",
            )


def train(
    ws: Workspace, settings: Mapping[str, Any], say: Callable[[str], None], begin: Callable[[], None] = lambda: None
) -> Path:
    """The stage `train` in a round's workspace; returns the tuned model's folder.

    A finished training with the same model, rows and settings is kept; a stopped one goes on from its checkpoint; of
    another one the folder is moved aside, as `bge-launch run --overwrite` does.

    Args:
        begin: called if there is something to train.

    Raises:
        InputError: it failed; with its exit code and the end of its log.
    """
    tuned, record = ws.path(TUNED), ws.path(RECORD)
    rows = sum(map(_lines, settings["train_data"]))
    key = _key(settings)
    trained = read_json(record).get("fingerprint") if record.is_file() else None
    if trained and not (tuned.is_dir() and model_fingerprint(tuned) == trained):
        record.unlink()  # somebody changed the model, or took it away

    def work() -> Outcome:
        begin()
        with atomic_text(ws.path(LAUNCH)) as f:
            f.write(_yaml(settings))
        with _alone(ws.path(".training.lock"), say) as lock:
            known = read_json(record) if record.is_file() else {}
            begun = known.get("key") == key and (tuned / "launch.json").is_file()
            write_json(record, {"key": key})
            words = ["resume"] if begun else ["run", "--overwrite"]
            code = _run(_command(*words, ws.path(LAUNCH)), lock, say)
        if code:
            raise _failed(code, ws.path(LAUNCH), tuned)
        told = read_json(tuned / "launch.json")
        facts = {"updates": told.get("updates", 0), "seconds": told.get("seconds"), "loss": told.get("loss")}
        write_json(record, {"key": key, "fingerprint": model_fingerprint(tuned)} | facts)
        return Outcome(rows, rows, [], {"rows": rows, "updates": facts["updates"]})

    ws.stage("train", work, outputs=[RECORD], rests_on=key)
    return tuned


def _lines(path: str) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def _key(settings: Mapping[str, Any]) -> str:
    """Of all that decides what a training gives; not of where its files lie."""
    deepspeed = Path(str(settings.get("deepspeed") or ""))
    others = {k: v for k, v in settings.items() if k not in PLACES}
    others |= {"deepspeed": sha256_file(deepspeed)} if deepspeed.is_file() else {}
    data = [sha256_file(Path(p)) for p in settings["train_data"]]
    return fingerprint([others, data, model_fingerprint(settings["model"])])


def _yaml(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(settings), allow_unicode=True, sort_keys=False)


def _command(*words: str | Path) -> list[str]:
    """`bge-launch` of the environment and the checkout that this process runs in."""
    return [sys.executable, "-P", "-m", "launch.cli", *map(str, words)]


def _environment() -> dict[str, str]:
    import sysconfig

    home = str(Path(__file__).resolve().parents[1])
    if home in sysconfig.get_paths().values():  # installed: Python looks there anyway
        return dict(os.environ)
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p not in ("", home)]
    return os.environ | {"PYTHONPATH": os.pathsep.join([home, *others])}


@contextmanager
def _alone(path: Path, say: Callable[[str], None]) -> Iterator[int]:
    """A lock that outlives a killed build, for as long as the training that it had started saves its checkpoint."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("the training of a build that was killed is saving its checkpoint: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _run(command: list[str], lock: int, say: Callable[[str], None]) -> int:
    """Exit code of the command, which says what it does on our own standard output and error. When this process ends,
    however it does, the training is told to stop: it finishes its step, saves a checkpoint and ends."""
    supervise = [sys.executable, "-IS", str(Path(__file__).with_name("supervise.py")), "--patience", str(PATIENCE)]
    sys.stdout.flush()
    process = subprocess.Popen(
        [*supervise, *command], env=_environment(), stdin=subprocess.PIPE, start_new_session=True, pass_fds=(lock,)
    )
    assert process.stdin is not None
    try:
        return process.wait()
    except KeyboardInterrupt:
        say("stopping the training: its step is finished and a checkpoint saved")
        process.stdin.close()
        process.wait()
        raise
    finally:
        process.stdin.close()


def _failed(code: int, launch: Path, tuned: Path) -> InputError:
    log = tuned / "launch.log"
    lines = log.read_text("utf-8", "replace").replace("\r", "\n").splitlines() if log.is_file() else []
    last = "\n  ".join([line for line in lines if line.strip()][-SHOWN:])
    what = f"the training ended with exit code {code}"
    return InputError(
        f"{what}; the end of its log:\n  {last}" if last else f"{what} before it wrote a log; its reasons stand above",
        where=log if last else launch,
        fix="mend what it says (rounds.launch), then the same build again: a checkpoint is gone on with, everything before "
        f"is kept; to train anew, delete {tuned}",
    )
