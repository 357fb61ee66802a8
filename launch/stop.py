"""Stopping a training rank in order: SIGTERM or Ctrl-C, the end of the step, a checkpoint, the end.

Imports transformers: only launch.worker imports this, in a training process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from typing import Any

from transformers import TrainerCallback

SIGNALS = (signal.SIGTERM, signal.SIGINT)
CODE = 128 + signal.SIGTERM


class Stop(TrainerCallback):
    """Saves a checkpoint and ends the training at the first step's end after a signal to any rank.

    Until the training begins a signal ends the process at once: there is nothing to save.
    `stopped` is true where training ended before its last update.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From here on a signal is noted, and no longer the end."""
        inbox, outbox = socket.socketpair()
        outbox.setblocking(False)
        threading.Thread(target=self._watch, args=(inbox,), daemon=True).start()
        # The number of a signal is written by C code at once; a Python handler would wait while the main
        # thread is inside a collective operation, for ever if another rank has died.
        signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
        self._sockets = (inbox, outbox)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        os.register_at_fork(after_in_child=_forget)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Whether any rank was asked to stop; the same answer on every rank, so that all stop here."""
        if state.global_step < state.max_steps and _any(self.asked.is_set(), args.device):
            self.stopped = True
            args.save_only_model = False
            control.should_save = control.should_training_stop = True

    def finish(self) -> None:
        """What comes now is short, and better done than left half: signals are ignored."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)

    def _watch(self, inbox: socket.socket) -> None:
        if not self._signalled(inbox):
            return
        while True:
            # torchrun sends SIGTERM also when a rank has died. Then no step will end any more.
            if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
                return
            if _siblings() < int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
                os._exit(CODE)
            self.asked.set()
            time.sleep(1)

    @staticmethod
    def _signalled(inbox: socket.socket) -> bool:
        while number := inbox.recv(1):
            if number[0] in SIGNALS:
                return True
        return False


def _forget() -> None:
    """A forked data loader's process takes signals as any other."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _siblings() -> int:
    """The ranks of this machine that live: torchrun's children."""
    import psutil  # type: ignore[import-untyped]

    alive = 0
    for child in psutil.Process(os.getppid()).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            alive += child.status() != psutil.STATUS_ZOMBIE
    return alive


def meet(device: Any) -> None:
    """Waits for every rank."""
    _any(True, device)


def _any(flag: bool, device: Any) -> bool:
    """Whether the flag is set on any rank: one number to all, each step."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return flag
    number = torch.tensor(int(flag), device=device)
    dist.all_reduce(number, op=dist.ReduceOp.MAX)
    return bool(number.item())
