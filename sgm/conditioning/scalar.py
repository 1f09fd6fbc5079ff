"""Scalars (fps, motion bucket, augmentation, camera angles) as sinusoidal embeddings."""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn

from sgm.layers.embeddings import timestep_embedding


class ConcatTimestepEmbedderND(nn.Module):
    """(n,) or (n, d) scalars -> (n, d * outdim), each scalar embedded by itself."""

    def __init__(self, outdim: int) -> None:
        super().__init__()
        self.outdim = outdim

    def forward(self, x: Tensor, check: Callable[[], None] | None = None) -> Tensor:
        x = x[:, None] if x.ndim == 1 else x
        return rearrange(timestep_embedding(x.flatten(), self.outdim), "(n d) c -> n (d c)", n=x.shape[0])
