"""Conditioning pictures as latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgm.config import instantiate_from_config


class VideoPredictionEmbedderWithEncoder(nn.Module):
    """Pictures (n, 3, h, w) in [-1, 1] -> latents (n n_copies, c, h / f, w / f).

    The autoencoder is the embedder's own; its latents are not multiplied by the engine's scale factor. With a
    sigma_sampler_config, the noise level of the pictures, and a sigma_cond_config, an embedder of scalars, the level's
    embedding (1, d) is given, too. The noise itself is for the caller to add, whose generator draws it.
    """

    def __init__(
        self,
        n_cond_frames: int,
        n_copies: int,
        encoder_config: Mapping[str, Any],
        scale_factor: float = 1.0,
        is_ae: bool = True,
        disable_encoder_autocast: bool = False,
        sigma_sampler_config: Mapping[str, Any] | None = None,
        sigma_cond_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not is_ae:
            raise ValueError("VideoPredictionEmbedderWithEncoder needs an autoencoder: is_ae must be true.")
        self.n_cond_frames = n_cond_frames
        self.n_copies = n_copies
        self.scale_factor = scale_factor
        self.encoder = instantiate_from_config(encoder_config)
        self.sigma_sampler = instantiate_from_config(sigma_sampler_config) if sigma_sampler_config else None
        self.sigma_cond = instantiate_from_config(sigma_cond_config) if sigma_cond_config else None

    def forward(self, frames: Tensor, check: Callable[[], None] | None = None) -> Tensor | tuple[Tensor, Tensor]:
        frames = frames.to(next(self.encoder.parameters()).dtype, memory_format=torch.channels_last)
        z = self.encoder.encode(frames, check) * self.scale_factor
        z = z.repeat_interleave(self.n_copies, 0)
        if self.sigma_cond is None or self.sigma_sampler is None:
            return z
        return z, self.sigma_cond(self.sigma_sampler(1, device=z.device))
