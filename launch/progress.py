"""What a training says while it runs: step, loss, tokens per second, time left.

Imports transformers: only launch.worker imports this, in a training process.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from transformers import ProgressCallback


class Speed:
    """Tokens per second over all ranks, in each of the trainer's logs: console, TensorBoard, trainer_state.json.

    Counted are the tokens that the attention masks of the batches keep, queries and passages, padding not.
    """

    def __init__(self, trainer: Any):
        self._trainer, self._step, self._log = trainer, trainer.training_step, trainer.log
        self._new = self._all = 0
        self._since = self._start = time.monotonic()
        trainer.training_step, trainer.log = self._count, self._add

    def _count(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self._new = self._new + tokens(inputs)  # a tensor on the device: nothing waits for it here
        return self._step(model, inputs, *args, **kwargs)

    def _add(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs or "train_runtime" in logs:  # every rank logs these at the same steps
            now = time.monotonic()
            new = _sum(self._new, self._trainer.args.device)
            self._all, self._new = self._all + new, 0
            whole = "train_runtime" in logs
            count, since = (self._all, self._start) if whole else (new, self._since)
            logs["tokens_per_second"] = round(count / max(now - since, 1e-6), 1)
            self._since = now
        self._log(logs, *args, **kwargs)


class Bar(ProgressCallback):
    """The trainer's progress bar, its log lines with the step and the time left."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock; a resumed run's first step is not 0."""
        super().on_train_begin(args, state, control, **kwargs)
        self._begin, self._first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One line for each log of the trainer."""
        logs = dict(logs or {})
        done = state.global_step - self._first
        if "loss" in logs and done > 0:
            seconds = (time.monotonic() - self._begin) / done * (state.max_steps - state.global_step)
            logs |= {
                "step": f"{state.global_step}/{state.max_steps}",
                "time_left": str(timedelta(seconds=int(seconds))),
            }
            if self.training_bar is not None:
                speed = f"{logs.get('tokens_per_second', 0):,.0f} tokens/s"
                self.training_bar.set_postfix_str(f"loss {logs['loss']:.4g}, {speed}", refresh=False)
        super().on_log(args, state, control, logs, **kwargs)


def tokens(inputs: Any) -> Any:
    """Tokens in a batch: a number, or a tensor of one. Finds attention masks at any depth."""
    if isinstance(inputs, list | tuple):
        return sum((tokens(item) for item in inputs), 0)
    if not hasattr(inputs, "items"):
        return 0
    count: Any = 0
    for name, value in inputs.items():
        count = count + (value.sum() if name.endswith("attention_mask") else tokens(value))
    return count


def _sum(number: Any, device: Any) -> int:
    import torch
    import torch.distributed as dist

    total = torch.as_tensor(number, device=device, dtype=torch.int64).clone()
    if dist.is_initialized():
        dist.all_reduce(total)
    return int(total.item())
