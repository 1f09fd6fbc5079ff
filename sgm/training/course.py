"""Course: what the log of a training has beside the loss of a step."""

from __future__ import annotations

import time

import torch
from torch import Tensor

_BANDS = (0.1, 1.0, 10.0)  # of sigma: where one ends and the next begins


class Course:
    """The means of the losses by bands of sigma, and the throughput, each since the last time that they were taken."""

    def __init__(self) -> None:
        self._bands = torch.zeros(2, len(_BANDS) + 1, dtype=torch.float64)  # sum and number of losses
        self._edges = torch.tensor(_BANDS)
        self._since = time.monotonic()
        self.batches = 0

    def pause(self, seconds: float) -> None:
        """Leave out a time in which nothing was trained."""
        self._since += seconds

    def note(self, sigma: Tensor, losses: Tensor) -> None:
        """Add the losses of clips, (b,), without waiting for the device."""
        self._bands, self._edges = self._bands.to(losses.device), self._edges.to(losses.device)
        band = torch.bucketize(sigma.contiguous(), self._edges)
        self._bands.index_add_(1, band, torch.stack([losses.detach().double(), torch.ones_like(losses).double()]))

    def take(self, clips: int, device: torch.device) -> dict[str, float]:
        """The figures since the last time. clips: of a batch, in all processes."""
        now = time.monotonic()
        figures = {"clips_per_second": self.batches * clips / max(now - self._since, 1e-9)}
        if device.type == "cuda":
            figures["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        for end, (total, count) in zip([*map(str, _BANDS), "inf"], self._bands.T.tolist(), strict=True):
            if count:
                figures[f"loss_to_sigma_{end}"] = total / count
        self._bands.zero_()
        self.batches = 0
        self._since = now
        return figures
