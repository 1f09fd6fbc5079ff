"""Checkpoints of a training: written whole or not at all, and when the system asks for one."""

from __future__ import annotations

import errno
import math
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.plugins.io import TorchCheckpointIO

from sgm.errors import UserError
from sgm.paths import replacing, writes_explained
from sgm.training.logs import bytes_bar


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside the one before, which it replaces once it is on the disk.

    Lightning writes in the system's folder for temporary files and copies it from there, which a full disk cuts short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises UserError where the disk is full; the checkpoint before is whole then."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with writes_explained(path), replacing(path) as unfinished, unfinished.open("wb") as file:
            try:
                with Tqdm.wrapattr(file, "write", **bytes_bar("the checkpoint")) as told:
                    torch.save(checkpoint, told)
            except RuntimeError as error:  # torch's own writer has no other, also over what ended the writing
                if isinstance(error.__context__, OSError | KeyboardInterrupt):
                    raise error.__context__ from None
                raise OSError(
                    errno.ENOSPC, f"the disk is full or failed: {str(error).partition(chr(10))[0][:80]}"
                ) from error


class Stopped(UserError):
    """A training that was ended from outside, with a checkpoint to go on from."""

    exit_code = 75  # EX_TEMPFAIL of BSD's sysexits.h: the same command succeeds later


class Saving(Callback):
    """Writes the checkpoint `path` every three minutes, and on SIGUSR1; ends the training on SIGTERM and at `limit`.

    Between two steps alone, never among the batches that make one. limit: seconds of `time.monotonic`, by which the
    last checkpoint is written, if that takes no longer than those before. With several processes all is done at every
    20th batch, where each of them learns what one was told. Raises Stopped where it ends the training.
    """

    EVERY = 180.0  # seconds

    def __init__(self, path: Path, limit: float = math.inf) -> None:
        self.path, self.limit = path, limit
        self._asked, self._cost, self._last = 0, 0.0, time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals, as only the main thread can; Lightning, whose handlers these replace, gives them back."""
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGUSR1", "SIGTERM"):  # Windows knows the second alone
                if number := getattr(signal, name, None):
                    signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self._asked = max(self._asked, 2 if number == signal.SIGTERM else 1)

    def _wanted(self) -> int:
        """0: nothing is due; 1: a checkpoint; 2: one, on SIGTERM, that ends the training; 3: likewise, at the limit."""
        now = time.monotonic()
        return max(self._asked, 3 if now + self._cost >= self.limit else 1 if now >= self._last + self.EVERY else 0)

    # Before a batch: at the end of the one before, the moving averages do not have its step yet.
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        accumulate = trainer.accumulate_grad_batches
        if batch_idx % accumulate or (trainer.world_size > 1 and batch_idx // accumulate % -(-20 // accumulate)):
            return
        wanted = self._wanted()
        if trainer.world_size > 1:
            told = torch.tensor(wanted, device=pl_module.device)
            wanted = int(trainer.strategy.reduce(told, reduce_op="max"))
        if not wanted:
            return
        self._asked, began = 0, time.monotonic()
        trainer.save_checkpoint(self.path)
        self._last = time.monotonic()
        self._cost = max(self._cost, self._last - began)
        if wanted > 1:
            why = "SIGTERM" if wanted == 2 else "its time limit"
            raise Stopped(
                f"The training was ended at step {trainer.global_step} ({why}); the same command goes on from "
                f"{self.path}."
            )
