"""Checkpoints of a training: written whole or not at all, and when the system asks for one."""

from __future__ import annotations

import errno
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from sgm.errors import UserError
from sgm.paths import replacing, writes_explained


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside the one before, which it replaces once it is on the disk.

    Lightning writes in the system's folder for temporary files and copies it from there, which a full disk cuts short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises UserError where the disk is full; the checkpoint before is whole then."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with writes_explained(path), replacing(path) as unfinished:
            try:
                torch.save(checkpoint, unfinished)
            except RuntimeError as error:  # torch's own writer has no other
                raise OSError(
                    errno.ENOSPC, f"the disk is full or failed: {str(error).partition(chr(10))[0][:80]}"
                ) from error


class Signals(Callback):
    """Writes the checkpoint `path` on SIGUSR1, and on SIGTERM, which then ends the training.

    With several processes at the next 20th batch, where all of them learn what one was told.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._asked = path, 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take the signals, as only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGUSR1", "SIGTERM"):  # Windows knows the second alone
                if number := getattr(signal, name, None):
                    self._before[number] = signal.signal(number, self._note)

    def leave(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: object) -> None:
        self._asked = max(self._asked, 2 if number == signal.SIGTERM else 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        asked = self._asked
        if trainer.world_size > 1:
            told = torch.tensor(asked, device=pl_module.device)
            asked = int(trainer.strategy.reduce(told, reduce_op="max")) if batch_idx % 20 == 0 else 0
        if not asked:
            return
        self._asked = 0
        trainer.save_checkpoint(self.path)
        if asked == 2:
            step = trainer.global_step
            raise UserError(
                f"The training was ended at step {step} (SIGTERM); the same command goes on from {self.path}."
            )
