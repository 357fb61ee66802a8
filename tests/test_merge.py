"""Merged models: 0 is the base and 1 the tuned one to the last bit, what lies between loads and encodes, heads included."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from factory.errors import InputError
from factory.evaluation import Change
from factory.merge import merge, write_weights
from factory.merge_path import Point, best
from factory.models import load_encoder
from factory.settings import ModelConfig
from tests.test_evaluate import CORPUS, GOOD, QUERIES, write_set
from tests.tiny_models import make_tiny_bert, make_tiny_m3

ROOT = Path(__file__).parents[1]


def nudge(folder: Path, seed: int = 7) -> Path:
    """As after a training: every weight and head is moved a little, and the trainer's files lie about."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    weights = {k: v + 0.05 * torch.randn_like(v) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for head in folder.glob("*_linear.pt"):
        torch.save({k: v + 0.05 * torch.randn_like(v) for k, v in torch.load(head).items()}, head)
    (folder / "checkpoint-4").mkdir()
    (folder / "checkpoint-4" / "optimizer.pt").write_bytes(b"0")
    (folder / "launch.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny m3 and the same after a training."""
    folder = tmp_path_factory.mktemp("merge")
    return make_tiny_m3(folder / "base"), nudge(make_tiny_m3(folder / "tuned"))


def encoded(folder: Path):
    encoder = load_encoder(ModelConfig(path=str(folder), device="cpu"))
    return encoder.encode(CORPUS, "passage", modes=encoder.modes)


def test_the_ends_are_base_and_tuned_and_the_middle_is_between_them(pair: tuple[Path, Path], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    base, tuned = pair
    for weight in (0, 0.25, 1):
        merge(base, tuned, weight, tmp_path / f"{weight}")
        assert (
            not list((tmp_path / f"{weight}").glob("checkpoint-*"))
            and not (tmp_path / f"{weight}/launch.json").exists()
        )
    for end, folder in (("0", base), ("1", tuned)):
        ours, theirs = encoded(tmp_path / end), encoded(folder)
        assert np.array_equal(ours.dense, theirs.dense) and (ours.sparse != theirs.sparse).nnz == 0
        assert all(np.array_equal(a, b) for a, b in zip(ours.colbert, theirs.colbert, strict=True))
    a, b, c = (load_file(f / "model.safetensors") for f in (base, tuned, tmp_path / "0.25"))
    for name in b:
        torch.testing.assert_close(c[name], 0.25 * b[name] + 0.75 * a[name])
    heads = [torch.load(f / "sparse_linear.pt")["weight"] for f in (base, tuned, tmp_path / "0.25")]
    torch.testing.assert_close(heads[2], 0.25 * heads[1] + 0.75 * heads[0])
    between = encoded(tmp_path / "0.25").dense
    assert np.isfinite(between).all() and not np.allclose(between, encoded(base).dense, atol=1e-4)
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(tmp_path / "0.25"), device="cpu").encode(CORPUS, normalize_embeddings=True)
    np.testing.assert_allclose(theirs, between, atol=1e-4)


def test_a_model_in_several_files_is_read_and_written_as_transformers_does(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModel

    base, tuned = make_tiny_bert(tmp_path / "base"), nudge(make_tiny_bert(tmp_path / "tuned"))
    weights = load_file(tuned / "model.safetensors")
    (tuned / "model.safetensors").unlink()
    write_weights(tuned, iter(weights.items()), shard=100_000)
    assert len(list(tuned.glob("model-*.safetensors"))) > 2
    merge(base, tuned, 1, tmp_path / "out")
    model, info = AutoModel.from_pretrained(tuned, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(
        (model.state_dict()[name] == w).all() for name, w in load_file(tmp_path / "out/model.safetensors").items()
    )


def test_a_pooler_that_only_one_of_them_has_is_no_obstacle(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base, tuned = make_tiny_bert(tmp_path / "base"), nudge(make_tiny_bert(tmp_path / "tuned"))
    weights = load_file(base / "model.safetensors")
    without = {k: v for k, v in weights.items() if "pooler" not in k}
    assert len(without) < len(weights)
    save_file(without, base / "model.safetensors", metadata={"format": "pt"})
    merge(base, tuned, 0.5, tmp_path / "out")
    assert load_file(tmp_path / "out/model.safetensors").keys() == weights.keys()


def make_dense(folder: Path, width: int = 32) -> Path:
    """A tiny BERT with a projection, as sentence-transformers writes it."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = SentenceTransformer(str(make_tiny_bert(folder)), device="cpu")
        model.append(Dense(64, width))
        model.save(str(folder))
    return folder


def test_a_projection_is_merged_like_the_transformer(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base, tuned = make_dense(tmp_path / "base"), nudge(make_dense(tmp_path / "tuned"))
    name = next(p.relative_to(base) for p in base.glob("*_Dense/model.safetensors"))
    a = load_file(base / name)
    b = {k: v + 0.5 for k, v in a.items()}
    save_file(b, tuned / name)
    for weight in (0, 0.25, 1):
        merge(base, tuned, weight, tmp_path / f"{weight}")
    assert not np.allclose(encoded(base).dense, encoded(tuned).dense, atol=1e-3)
    assert np.array_equal(encoded(tmp_path / "0").dense, encoded(base).dense)
    assert np.array_equal(encoded(tmp_path / "1").dense, encoded(tuned).dense)
    for key, value in load_file(tmp_path / "0.25" / name).items():
        torch.testing.assert_close(value, 0.25 * b[key] + 0.75 * a[key])

    torch.save(b, (tuned / name).with_name("pytorch_model.bin"))  # as older versions wrote it
    (tuned / name).unlink()
    merge(base, tuned, 0, tmp_path / "of bin")
    assert np.array_equal(encoded(tmp_path / "of bin").dense, encoded(base).dense)
    assert not list((tmp_path / "of bin").rglob("*.bin"))
    with pytest.raises(InputError, match=r"linear\.bias has the shape \(16,\) in base, \(32,\) in tuned"):
        merge(make_dense(tmp_path / "narrow", 16), tuned, 0.5, tmp_path / "out")
    with pytest.raises(InputError, match="modules with weights: 1 in base, 2 in tuned"):
        merge(make_tiny_bert(tmp_path / "bert"), tuned, 0.5, tmp_path / "out")


def test_tied_tensors_of_a_bin_file_are_written_at_either_end(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folders = make_tiny_bert(tmp_path / "base"), nudge(make_tiny_bert(tmp_path / "tuned"))
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    for folder, found in zip(folders, weights, strict=True):
        found["cls.decoder.weight"] = found["embeddings.word_embeddings.weight"]
        torch.save(found, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    for weight in (0, 1):
        merge(*folders, weight, tmp_path / f"{weight}")
        written = load_file(tmp_path / f"{weight}" / "model.safetensors")
        assert written.keys() == weights[weight].keys()
        assert all(torch.equal(written[name], value) for name, value in weights[weight].items())


@contextmanager
def small_disk(folder: Path, free: int) -> Iterator[Path]:
    """A disk with about so many kB free."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={free}k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)  # a test that failed may hold files open


def test_a_full_disk_is_told_and_nothing_half_written_stays(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    merge(base, tuned, 0.5, tmp_path / "whole")
    size = sum(-(-f.stat().st_size // 4096) * 4 for f in (tmp_path / "whole").rglob("*") if f.is_file())
    for number, free in enumerate((4, 40, size // 2, size - 4)):  # the folder, the tokenizer, the weights, a head
        with small_disk(tmp_path / f"disk{number}", free) as disk:
            with pytest.raises(InputError, match=r"disk\d/out: the disk is full\n  fix: free some space"):
                merge(base, tuned, 0.5, disk / "out")
            assert not list(disk.iterdir())
    folder = write_set(tmp_path / "eval", GOOD)
    with small_disk(tmp_path / "disk", size // 2) as disk:
        error = invoke(pair, disk / "out", "-e", str(folder)).exception
        assert isinstance(error, InputError) and "disk/out: the disk is full" in str(error)
        assert not list(disk.iterdir())


def test_what_killed_merges_left_is_removed_and_nothing_else(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    gone = [f".out.{ended.pid}.tmp", f".out.{os.getpid()}.tmp"]  # in a container every process may have the same number
    kept = [f".out.{os.getppid()}.tmp", ".out.v2.tmp", f".out.v2.{ended.pid}.tmp", f".outer.{ended.pid}.tmp"]
    for name in gone + kept:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"0")
    merge(*pair, 0.5, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "out"])


def test_models_that_do_not_fit_are_refused_and_nothing_is_written(pair: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base, tuned = pair
    with pytest.raises(InputError, match=r"has the shape \(512, 64\) in base, \(514, 64\) in tuned"):
        merge(make_tiny_bert(tmp_path / "bert"), tuned, 0.5, tmp_path / "out")
    other = shutil.copytree(base, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    del weights["embeddings.LayerNorm.bias"]
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"tensor embeddings\.LayerNorm\.bias is in .*tuned, but not in .*other"):
        merge(other, tuned, 0.5, tmp_path / "out")
    headless = shutil.copytree(base, tmp_path / "headless")
    (headless / "sparse_linear.pt").unlink()
    with pytest.raises(InputError, match=r"sparse_linear\.pt is in only one"):
        merge(headless, tuned, 0.5, tmp_path / "out")
    with pytest.raises(InputError, match="between 0"):
        merge(base, tuned, 1.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="is there already"):
        merge(base, tuned, 0.5, headless)


def test_the_best_weight_gains_at_home_and_loses_little_elsewhere() -> None:
    def point(weight: float, home: float, lost: float) -> Point:
        change = Change(value=-lost, low=-lost - 0.02, high=-lost + 0.02)
        return Point(weight, {"home": home, "general": 0.5 - lost}, {"home": change, "general": change})

    path = [point(0, 0.4, 0), point(0.5, 0.5, 0.005), point(0.75, 0.55, 0.02), point(1, 0.54, 0.05)]
    assert best(path, 0.01).weight == 0.5
    assert best(path, 0.03).weight == 0.75
    assert best(path[2:], 0.001).weight == 0.75  # nothing is allowed: the smaller loss
    alone = [Point(p.weight, {"home": p.values["home"]}, {"home": p.changes["home"]}) for p in path]
    assert best(alone, 0.01).weight == 0.75


def test_the_command_measures_the_path_and_writes_the_chosen_model(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    folder = write_set(tmp_path / "eval", GOOD)
    command = [sys.executable, "-m", "factory.cli", "merge", "--base", str(base), "--tuned", str(tuned)]
    command += ["--out", str(tmp_path / "merged"), "--weights", "0,0.5,1", "-e", str(folder), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "merged" / "merge.json").read_text(encoding="utf-8"))
    assert [p["weight"] for p in told["path"]] == [0, 0.5, 1] and "←" in done.stdout
    best_value = max(p["values"]["eval"] for p in told["path"])
    assert next(p for p in told["path"] if p["weight"] == told["weight"])["values"]["eval"] == best_value
    assert len(encoded(tmp_path / "merged").dense) == len(CORPUS) and len(QUERIES) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["eval", "merged"]


def invoke(pair: tuple[Path, Path], out: Path, *more: str):
    from typer.testing import CliRunner

    from factory.cli import app

    command = ["merge", "--base", str(pair[0]), "--tuned", str(pair[1]), "--out", str(out), "--device", "cpu"]
    return CliRunner().invoke(app, [*command, *more])


def test_a_mode_that_the_models_have_not_is_refused_before_any_work(pair: tuple[Path, Path], tmp_path: Path) -> None:
    berts = make_tiny_bert(tmp_path / "base"), make_tiny_bert(tmp_path / "tuned")
    folder = write_set(tmp_path / "eval", GOOD)
    for models, mode, modes in (
        (pair, "nosuch", "dense, sparse, colbert, sum, dense+BM25"),
        (berts, "sparse", "dense, dense+BM25"),
    ):
        done = invoke(models, tmp_path / "out", "-e", str(folder), "--mode", mode)
        assert isinstance(done.exception, InputError)
        assert str(done.exception) == f"--mode: the models have no mode {mode!r}\n  fix: choose from {modes}"
        assert not done.output  # it says of each weight that it is merged
    assert not (tmp_path / "out").exists()


def test_the_path_is_measured_under_the_instructions_of_the_run(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = write_set(tmp_path / "run" / "eval", GOOD)
    query, passage = QUERIES[2] * 3, CORPUS[3] * 4
    model = {"path": "/models/e5", "query_instruction": query, "passage_instruction": passage}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": {"model": model}}))

    def value(name: str, *more: str) -> float:
        done = invoke(pair, tmp_path / name, "-e", str(folder), "--weights", "1", *more)
        assert done.exit_code == 0, done.output
        path = json.loads((tmp_path / name / "merge.json").read_text(encoding="utf-8"))["path"]
        return float(path[0]["values"]["eval"])

    given = value("given", "--query-instruction", query, "--passage-instruction", passage)
    assert value("of the run") == given
    for one in ("query", "passage"):  # each of the two matters, and an empty one is none
        assert value(f"no {one}", f"--{one}-instruction", "") != given


def test_a_length_below_the_models_is_refused_by_its_option(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = write_set(tmp_path / "eval", GOOD)
    for option, least in (("--query-max-length", 8), ("--passage-max-length", 16)):
        done = invoke(pair, tmp_path / "out", "-e", str(folder), option, "1")
        assert done.exit_code == 2 and option in done.output and str(least) in done.output
