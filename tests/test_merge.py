"""Merged models: 0 is the base and 1 the tuned one to the last bit, what lies between loads and encodes, heads included."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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
    return load_encoder(ModelConfig(path=str(folder), device="cpu")).encode(CORPUS, "passage", modes=("sum",))


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
