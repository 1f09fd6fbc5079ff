"""Checkpoints of a training: written whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

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
