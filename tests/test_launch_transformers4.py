"""The same launch.yaml on transformers 4, beside which FlagEmbedding still installs: other arguments, other tokenizers.

The older packages are installed once, by pip, into pytest's cache folder, and come before the others on PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_launch_run import REPO, TRAINING, write

pytestmark = pytest.mark.slow
OLDER = (
    "transformers==4.57.3",
    "huggingface_hub==0.36.0",
    "tokenizers==0.22.1",
    "datasets==4.4.1",
    "accelerate==1.11.0",
    "peft==0.17.1",
)
TWO = {"device": "cpu", "nproc_per_node": 2}


@pytest.fixture(scope="module")
def older(pytestconfig: pytest.Config) -> dict[str, str]:
    """An environment in which transformers 4 is found first."""
    site = Path(pytestconfig.cache.mkdir("transformers-4")) / "-".join(sorted(OLDER)).replace("==", "_")
    if not site.exists():
        part = site.with_name("part")
        shutil.rmtree(part, ignore_errors=True)
        words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", part, *OLDER]
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"pip cannot install transformers 4 here: {done.stderr.strip()[-300:]}")
        part.rename(site)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(REPO)])}


def launch(env: dict[str, str], *words: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "launch.cli", *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TRAINING)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("recipe", "model", "keys"),
    [
        ("m3-unified", "m3", {"deepspeed": "stage1", "arguments": {"gradient_checkpointing": True}}),
        ("base", "bert", {"arguments": {"warmup_steps": 0.5, "overwrite_output_dir": True}}),
        ("reranker", "reranker", {}),
        ("matryoshka", "bert", {"matryoshka_dims": [64, 16]}),
    ],
)
def test_each_recipe_trains(
    tmp_path: Path, models: Path, older: dict[str, str], recipe: str, model: str, keys: dict[str, object]
) -> None:
    hardware = TWO if recipe == "m3-unified" else {"device": "cpu"}
    code, out, err = launch(older, "run", write(tmp_path, models / model, recipe=recipe, hardware=hardware, **keys))
    assert code == 0, err[-3000:] + out[-3000:]
    tuned = tmp_path / "out" / "tuned"
    stored = json.loads((tuned / "launch.json").read_text())
    assert stored["versions"]["transformers"] == "4.57.3" and stored["updates"] == stored["updates_planned"] > 0
    words = stored["argv"]
    assert words[words.index("--warmup_ratio") + 1] == ("0.5" if recipe == "base" else "0.1")
    assert json.loads((tuned / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_tokenizer_that_transformers_5_saved_is_refused(tmp_path: Path, models: Path, older: dict[str, str]) -> None:
    newer = shutil.copytree(models / "bert", tmp_path / "newer")
    config = json.loads((newer / "tokenizer_config.json").read_text())
    (newer / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "TokenizersBackend"}))
    path = write(tmp_path, newer)
    code, _, err = launch(older, "check", path)
    assert code == 2 and "[model.tokenizer]" in err and "PreTrainedTokenizerFast" in err
    assert launch(dict(os.environ), "check", path)[0] == 0
