"""What surrounds the trainer on each rank: logs, tracebacks, checkpoints that count, tokens, the last proof."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import preflight
from launch.checkpoints import newest
from launch.finish import LoadFailed, changed, load_test, same_vectors
from launch.plan import plan_file
from launch.runlog import cause
from tests.test_launch_run import REPO, TRAINING, launch, write, write_dev
from tests.tiny_models import make_tiny_bert, make_tiny_m3


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert(tmp_path_factory.mktemp("bert"))


# Checkpoints


def checkpoint(output: Path, step: int, *names: str) -> Path:
    """A folder with the files of a checkpoint, all of them whole."""
    import torch
    from safetensors.torch import save_file

    folder = output / f"checkpoint-{step}"
    for name in ("model.safetensors", *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file({"a": torch.zeros(50)}, folder / name)
        else:
            torch.save({"a": torch.zeros(50)}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


PLAIN = ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth")
ZERO = (
    "rng_state_0.pth",
    "rng_state_1.pth",
    "global_step9/mp_rank_00_model_states.pt",
    "global_step9/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "global_step9/zero_pp_rank_1_mp_rank_00_optim_states.pt",
)


@pytest.mark.parametrize("names", [PLAIN, ZERO], ids=["plain", "zero-1"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_checkpoint_counts_only_with_every_file_whole(tmp_path: Path, names: tuple[str, ...], damage: str) -> None:
    stage = 1 if names is ZERO else None
    (tmp_path / "checkpoint-best").mkdir()
    older, newer = checkpoint(tmp_path, 5, *names), checkpoint(tmp_path, 10, *names)
    for folder in (older, newer) if stage else ():
        (folder / "latest").write_text("global_step9")
    assert newest(tmp_path, 2, stage) == (newer, [])
    for file in sorted(p for p in newer.rglob("*") if p.is_file()):
        content = file.read_bytes()
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(content[: len(content) // 2])
        found, torn = newest(tmp_path, 2, stage)
        assert found == older, file
        assert len(torn) == 1 and torn[0].startswith("checkpoint-10 is torn"), file
        file.write_bytes(content)
    assert newest(tmp_path, 2, stage) == (newer, [])
    assert newest(tmp_path, 3, stage)[0] is None  # the third rank's state is in none of them


def test_a_checkpoint_of_m3_has_both_heads_or_none(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 3, *PLAIN, "rng_state.pth", "colbert_linear.pt", "sparse_linear.pt")
    assert newest(tmp_path, 1, None)[0] == folder
    (folder / "sparse_linear.pt").unlink()
    assert newest(tmp_path, 1, None) == (None, ["checkpoint-3 is torn (sparse_linear.pt): skipped"])


def test_a_checkpoint_is_loaded_into_flagembeddings_wrappers(tmp_path: Path) -> None:
    """m3 with its heads, and the reranker: what trap g breaks without DeepSpeed."""
    import torch
    from FlagEmbedding.finetune.embedder.encoder_only.m3.modeling import EncoderOnlyEmbedderM3Model
    from FlagEmbedding.finetune.embedder.encoder_only.m3.runner import EncoderOnlyEmbedderM3Runner as Runner
    from FlagEmbedding.finetune.embedder.encoder_only.m3.trainer import EncoderOnlyEmbedderM3Trainer
    from FlagEmbedding.finetune.reranker.encoder_only.base.modeling import CrossEncoderModel
    from FlagEmbedding.finetune.reranker.encoder_only.base.trainer import EncoderOnlyRerankerTrainer
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from launch.worker import _unwrapped

    m3 = make_tiny_m3(tmp_path / "m3")
    tokenizer = AutoTokenizer.from_pretrained(m3)

    def embedder() -> Any:
        return EncoderOnlyEmbedderM3Model(Runner.get_model(str(m3)), tokenizer=tokenizer, unified_finetuning=True)

    def reranker() -> Any:
        made = AutoModelForSequenceClassification.from_pretrained(m3, num_labels=1)
        return CrossEncoderModel(made, tokenizer=tokenizer)

    for kind, make in ((EncoderOnlyEmbedderM3Trainer, embedder), (EncoderOnlyRerankerTrainer, reranker)):
        trained, fresh = make(), make()
        with torch.no_grad():
            for weight in trained.parameters():
                weight.add_(0.5)
        trained.save(str(tmp_path / kind.__name__))
        trainer = kind.__new__(kind)
        trainer.model = fresh
        _unwrapped(trainer)
        trainer._load_from_checkpoint(str(tmp_path / kind.__name__))
        after = fresh.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in trained.state_dict().items())


# The failing rank


REPORT = """launch.worker FAILED
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : {zero} (pid: 11)
  traceback : Traceback (most recent call last): connection closed
------
Root Cause (first observed failure):
[0]:
  rank      : {first} (local_rank: {first})
  exitcode  : {code} (pid: 12)
"""


def test_the_cause_is_the_first_ranks_own_words(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-1.log").write_text("KeyError: 'pos'\n")
    log = tmp_path / "launch.log"
    before = "rank 0 of an earlier run\n" + REPORT.format(zero=1, first=0, code=-9)
    log.write_text(before + "rank 0: connection closed\n" + REPORT.format(zero=1, first=1, code=1))
    said = cause(tmp_path, len(before))
    assert "KeyError: 'pos'" in said and "rank-1.log" in said and "connection closed" not in said
    log.write_text("rank 0 was at work\n" + REPORT.format(zero=-9, first=1, code=1))
    said = cause(tmp_path)  # a killed rank is noticed after those that waited for it
    assert "rank 0 was ended by SIGKILL" in said and "rank 0 was at work" in said


def test_a_long_traceback_is_shown_from_its_first_line(tmp_path: Path) -> None:
    frames = "".join(f'  File "{i}.py", line {i}\n' for i in range(60))
    (tmp_path / "launch.log").write_text(
        "noise\n" * 9 + f"Traceback (most recent call last):\n{frames}KeyError: 'pos'\n"
    )
    said = cause(tmp_path).splitlines()
    assert (said[0], said[-1], len(said)) == ("Traceback (most recent call last):", "KeyError: 'pos'", 62)


@pytest.mark.slow
def test_the_traceback_of_a_rank_that_fails_alone_is_shown(tmp_path: Path, bert: Path) -> None:
    """Rank 1 fails in its optimizer; rank 0, which is the console's, only waits for it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from transformers import Trainer\n"
        "    def fail(*_): raise RuntimeError('only on the second rank')\n"
        "    Trainer.create_optimizer = fail\n"
    )
    config = write(tmp_path, bert, hardware={"device": "cpu", "nproc_per_node": 2})
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), str(tmp_path / "site")])}
    command = [sys.executable, "-m", "launch.cli", "run", str(config)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TRAINING)
    tuned = tmp_path / "out" / "tuned"
    assert done.returncode == 1 and "Traceback (most recent call last)" in done.stderr
    assert "RuntimeError: only on the second rank" in done.stderr
    assert "no checkpoint is kept" in done.stderr
    assert "only on the second rank" in (tuned / "logs" / "rank-1.log").read_text()
    assert "only on the second rank" in (tuned / "launch.log").read_text().partition("Root Cause")[2]  # torchrun's own
    assert json.loads((tuned / "launch.json").read_text())["trained"] is False


# The end

ABORTING = """
import ctypes, os
if "RANK" in os.environ:  # torchrun's ranks alone
    c = ctypes.CDLL(None)
    c.__cxa_atexit(ctypes.cast(c.abort, ctypes.c_void_p), None, None)
"""


@pytest.mark.slow
def test_a_finished_training_is_not_failed_by_a_library_that_aborts_at_exit(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gloo's threads sometimes do on a busy machine: SIGABRT when the interpreter is torn down."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(ABORTING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    code, _, err = launch("run", write(tmp_path, bert))
    assert code == 0, err


ENDING = """
from launch.worker import leave_well

done = leave_well()
import atexit, sys, threading, time
atexit.register(print, "the tracker has sent all")
threading.Thread(target=lambda: (time.sleep(0.2), print("the thread is done"))).start()
{last}
done()
"""


@pytest.mark.parametrize(("last", "code"), [("", 0), ("sys.exit(143)", 143), ("raise OSError('no space')", 1)])
def test_the_end_waits_for_threads_and_exit_handlers_and_keeps_the_exit_code(last: str, code: int) -> None:
    words = [sys.executable, "-c", ENDING.format(last=last)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPO, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stdout.split("\n")[:2] == ["the thread is done", "the tracker has sent all"]


# Counting


def test_tokens_are_those_that_are_not_padding() -> None:
    import torch

    from launch.progress import tokens

    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    embedder = {"queries": {"attention_mask": mask, "input_ids": mask + 5}, "passages": [{"attention_mask": mask}] * 2}
    assert int(tokens(embedder)) == 9
    assert int(tokens({"pair": {"attention_mask": mask}, "teacher_scores": [1.0]})) == 3
    assert int(tokens({"anchor_attention_mask": mask, "label": None})) == 3


def test_resuming_sets_what_flagembedding_counts_for_itself() -> None:
    from launch.worker import catch_up

    class Data:
        epoch, step = 0, 0

        def refresh_epoch(self) -> None:
            self.epoch, self.step = self.epoch + 1, 0

    class M3:
        self_distill_start_step, step = 5, 0

    data, model = Data(), M3()
    catch_up(model, data, epoch=2.375, batches=8)
    assert (data.epoch, data.step, model.step) == (2, 3, 19)


# The last proof


def test_a_folder_that_pools_otherwise_in_sentence_transformers_is_refused(tmp_path: Path, bert: Path) -> None:
    same_vectors(bert, "mean")
    with pytest.raises(LoadFailed, match="those of cls pooling"):
        same_vectors(bert, "cls")
    shutil.copytree(bert, tmp_path / "broken")
    (tmp_path / "broken" / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "no.Such"}]')
    with pytest.raises(LoadFailed, match="does not load in sentence-transformers"):
        same_vectors(tmp_path / "broken", "mean")


def test_change_is_relative_and_an_untouched_head_has_none(tmp_path: Path) -> None:
    import torch

    base = make_tiny_m3(tmp_path / "base")
    tuned = shutil.copytree(base, tmp_path / "tuned")
    head = torch.load(base / "colbert_linear.pt", weights_only=True)
    torch.save({name: value * 1.5 for name, value in head.items()}, tuned / "colbert_linear.pt")
    found = changed(base, tuned, "m3-unified")
    assert found == {"encoder": 0, "colbert_linear": pytest.approx(0.5), "sparse_linear": 0}
    (base / "sparse_linear.pt").unlink()
    assert changed(base, tuned, "m3-unified")["sparse_linear"] is None


def test_a_tuned_model_that_lacks_a_tensor_is_refused(tmp_path: Path, bert: Path) -> None:
    """As FlagEmbedding could leave it under ZeRO-3; transformers alone would put random numbers there."""
    from safetensors.torch import load_file, save_file

    tuned = shutil.copytree(bert, tmp_path / "tuned")
    load_test(tuned, "base")
    tensors = load_file(tuned / "model.safetensors")
    del tensors["encoder.layer.0.output.LayerNorm.weight"]
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoadFailed, match=r"lacks 1 of its tensors, such as encoder\.layer\.0\.output\.LayerNorm"):
        load_test(tuned, "base")


def test_check_reads_the_dev_folder(tmp_path: Path, bert: Path) -> None:
    config = write(tmp_path, bert, dev="dev")

    def found() -> list[Any]:
        return [p for p in preflight.check(plan_file(config)) if p.id.startswith("dev.")]

    assert "no such folder" in found()[0].reason
    write_dev(tmp_path / "dev")
    assert not found()
    (tmp_path / "dev" / "qrels.tsv").write_text("0\tnone\t1\n")
    assert "qrels.tsv" in found()[0].reason
