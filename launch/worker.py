"""What torchrun starts on each rank: `-m launch.worker RECIPE words…`, the recipe's trainer with a little around it.

The trainer gets its own words, unchanged. Around it: a traceback that torchrun can show
(FlagEmbedding#1438), a log for each rank, resuming with BGE_LAUNCH_RESUME=1, a checkpoint when it
is stopped, how fast it goes, and an end that does not fail. OUTPUT/worker.json says how far it came.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from launch.base_model import read_json
from launch.checkpoints import HEADS, newest
from launch.signature import ENTRIES
from launch.trackers import add_further

RESUME = "BGE_LAUNCH_RESUME"
RECORD = "worker.json"


def main() -> None:
    """Runs the trainer of the recipe in sys.argv[1] with the words after it."""
    recipe, words = sys.argv[1], sys.argv[2:]
    output = option(words, "output_dir")
    if output and _rank() > 0:
        own_log(Path(output))
    if option(words, "deepspeed") and option(words, "use_cpu") == "True":
        _without_compiling()
    around_training()
    sys.argv = [ENTRIES[recipe], *words]
    runpy.run_module(ENTRIES[recipe], run_name="__main__", alter_sys=True)
    if output and _rank() == 0:
        record(Path(output), trained=True)


def leave_well() -> Callable[[], None]:
    """What to call when all is done; the process then ends without tearing its libraries down.

    gloo's threads may still hold tensors when Python is gone, and abort the process at that moment
    (pytorch/pytorch#179291): torchrun then calls hours of finished training failed. Exit handlers run
    last in, first out: this one is to be the first, so that those of trackers and threads are done.
    """
    ended = threading.Event()

    def leave() -> None:
        if ended.is_set():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    atexit.register(leave)
    return ended.set


def option(words: Sequence[str], name: str) -> str | None:
    """The word after --name, None without it."""
    at = next((i for i, word in enumerate(words[:-1]) if word == f"--{name}"), None)
    return None if at is None else words[at + 1]


def own_log(output: Path) -> None:
    """Sends what this rank says to OUTPUT/logs/rank-N.log; the console is rank 0's."""
    (output / "logs").mkdir(parents=True, exist_ok=True)
    mode = os.O_APPEND if os.environ.get(RESUME) == "1" else os.O_TRUNC
    file = os.open(output / "logs" / f"rank-{_rank()}.log", os.O_WRONLY | os.O_CREAT | mode, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)


def record(output: Path, **facts: Any) -> None:
    """Adds facts to OUTPUT/worker.json. Rank 0 alone."""
    path = output / RECORD
    path.with_suffix(".tmp").write_text(json.dumps(read_json(path) | facts, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".tmp").replace(path)


def _without_compiling() -> None:
    """Keeps DeepSpeed from compiling its shared-memory all-reduce, which only inference on CPUs uses.

    It takes minutes, and where a build was killed, the next run waits for its lock file for ever.
    """
    there: Any = importlib.import_module("deepspeed.comm.torch")  # as an attribute, that name is PyTorch itself
    there.build_shm_op = lambda: None


def around_training() -> None:
    """Puts resuming, stopping and progress around transformers' Trainer.train, which every recipe calls once."""
    from transformers import Trainer

    inner = Trainer.train

    @functools.wraps(inner)
    def train(trainer: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        from launch.stop import CODE, Stop, meet

        stop = Stop()
        if os.environ.get(RESUME) == "1":
            resume_from_checkpoint = _agree(_checkpoint(trainer)) or resume_from_checkpoint
        _one_writer(trainer)
        _unwrapped(trainer)
        _report(trainer, resume_from_checkpoint)
        add_further(trainer)
        trainer.add_callback(stop)
        result = inner(trainer, resume_from_checkpoint, *args, **kwargs)
        if stop.stopped:
            meet(trainer.args.device)  # rank 0 saves the longest, and torchrun ends all when one has ended
        stop.finish()
        if stop.stopped:
            sys.exit(CODE)
        return result

    Trainer.train = train


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _agree(value: Any) -> Any:
    """Rank 0's value: another node's view of a shared folder may be older."""
    import torch.distributed as dist

    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def _checkpoint(trainer: Any) -> str | None:
    args = trainer.args
    stage = args.hf_deepspeed_config.config.get("zero_optimization", {}).get("stage", 0) if args.deepspeed else None
    found, torn = newest(Path(args.output_dir), args.world_size, stage)
    if _rank() == 0:
        said = f"going on from {found.name}" if found else "there is no whole checkpoint: starting anew"
        print("\n".join([*torn, said]), flush=True)
    return str(found) if found else None


def _one_writer(trainer: Any) -> None:
    """FlagEmbedding's `_save` writes the same files from every rank at once, and what it finds in the model.

    ZeRO-3 leaves nothing there between steps: all ranks gather the weights first.
    """
    save = trainer._save

    def once(*args: Any, **kwargs: Any) -> None:
        with _whole(trainer.model):
            if trainer.args.should_save:
                save(*args, **kwargs)

    trainer._save = once


def _whole(model: Any) -> AbstractContextManager[Any]:
    """Inside, the model's own tensors are complete on every rank."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    for module in model.modules():
        # transformers' loader under ZeRO-3 keeps old names (LayerNorm.gamma), and saving would go back to them.
        if getattr(module, "_weight_conversions", None):
            module._weight_conversions = None
    return deepspeed.zero.GatheredParameters(list(model.parameters()))


def _unwrapped(trainer: Any) -> None:
    """Lets a checkpoint be loaded into FlagEmbedding's models.

    They wrap an encoder, and save the encoder's own folder, whose keys are not the wrapper's.
    """
    from transformers import Trainer

    model = trainer.model
    encoder: Any = getattr(model, "model", None)
    own = type(trainer)._load_from_checkpoint is not Trainer._load_from_checkpoint
    if own or hasattr(model, "_keys_to_ignore_on_save") or not hasattr(encoder, "from_pretrained"):
        return

    def load(checkpoint: str, *_: Any) -> None:
        import torch

        saved, found = type(encoder).from_pretrained(checkpoint, output_loading_info=True, local_files_only=True)
        if found["missing_keys"]:
            raise RuntimeError(f"{checkpoint}: its weights lack {sorted(found['missing_keys'])}")
        encoder.load_state_dict(saved.state_dict())
        for name in HEADS:
            head = getattr(model, name.removesuffix(".pt"), None)
            if head is not None and Path(checkpoint, name).exists():
                head.load_state_dict(torch.load(Path(checkpoint, name), map_location="cpu", weights_only=True))

    trainer._load_from_checkpoint = load


def _report(trainer: Any, checkpoint: str | None) -> None:
    """Progress in the logs, and in OUTPUT/worker.json."""
    from transformers import ProgressCallback, TrainerCallback

    from launch.progress import Bar, Speed

    class Recorder(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
            if state.epoch:
                catch_up(trainer.model, trainer.train_dataset, state.epoch, len(train_dataloader))
            facts = {"resumed_from": Path(checkpoint).name if checkpoint else None, "gpus": _gpus(), "trained": False}
            self._record(args, state, **facts)

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._record(args, state)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._record(args, state)

        def _record(self, args: Any, state: Any, **facts: Any) -> None:
            if state.is_world_process_zero:
                Path(args.output_dir).mkdir(parents=True, exist_ok=True)
                record(Path(args.output_dir), updates=state.global_step, updates_planned=state.max_steps, **facts)

    Speed(trainer)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(Bar())
    trainer.add_callback(Recorder())


def catch_up(model: Any, dataset: Any, epoch: float, batches: int) -> None:
    """Sets what FlagEmbedding counts for itself and saves in no checkpoint.

    That is m3's `step`, from which self-distillation begins, and the place of same_dataset_within_batch's data set.

    Args:
        epoch: the checkpoint's, with its fraction.
        batches: of each rank in an epoch.
    """
    if hasattr(model, "self_distill_start_step"):
        model.step = round(epoch * batches)
    if hasattr(dataset, "refresh_epoch"):
        for _ in range(int(epoch)):
            dataset.refresh_epoch()
        dataset.step = round((epoch - int(epoch)) * batches)


def _gpus() -> list[dict[str, Any]]:
    import torch

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in found]


if __name__ == "__main__":
    done = leave_well()

    from torch.distributed.elastic.multiprocessing.errors import record as recorded

    recorded(main)()
    done()
