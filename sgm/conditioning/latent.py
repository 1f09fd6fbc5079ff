"""The conditioning picture as a latent, to be concatenated to the noisy ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from sgm.config import instantiate_from_config


class VideoPredictionEmbedderWithEncoder(nn.Module):
    """Frames (b n_cond_frames, 3, h, w) in [-1, 1] -> latents (b n_copies, n_cond_frames c, h / f, w / f).

    The autoencoder is the embedder's own; its latents are not multiplied by the engine's scale factor.
    """

    def __init__(
        self,
        n_cond_frames: int,
        n_copies: int,
        encoder_config: Mapping[str, Any],
        scale_factor: float = 1.0,
        is_ae: bool = True,
        disable_encoder_autocast: bool = False,
    ) -> None:
        super().__init__()
        if not is_ae:
            raise ValueError("VideoPredictionEmbedderWithEncoder needs an autoencoder: is_ae must be true.")
        self.n_cond_frames = n_cond_frames
        self.n_copies = n_copies
        self.scale_factor = scale_factor
        self.encoder = instantiate_from_config(encoder_config)

    def forward(self, frames: Tensor, check: Callable[[], None] | None = None) -> Tensor:
        frames = frames.to(next(self.encoder.parameters()).dtype, memory_format=torch.channels_last)
        z = self.encoder.encode(frames, check) * self.scale_factor
        z = rearrange(z, "(b n_cond_frames) c h w -> b (n_cond_frames c) h w", n_cond_frames=self.n_cond_frames)
        return repeat(z, "b c h w -> (b n_copies) c h w", n_copies=self.n_copies)
