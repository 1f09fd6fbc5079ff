"""Sinusoidal embeddings of scalars."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_embedding(values: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Embed scalars by cosines and sines of geometrically spaced frequencies (Vaswani et al. 2017; cosines first).

    values: (n,), any real numbers. Returns (n, dim) float32.
    """
    half = dim // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=values.device) / half
    )
    angles = values[:, None].float() * frequencies[None]  # (n, half)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return torch.nn.functional.pad(embedding, (0, dim % 2))
