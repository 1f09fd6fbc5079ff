"""CLIP image embeddings, to which the network attends: pictures resized, normalised, embedded by OpenCLIP's tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from sgm.conditioning.vision import ImageTower, read_architecture
from sgm.config import instantiate_from_config

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class FrozenOpenCLIPImageEmbedder(nn.Module):
    """Pictures (n, 3, h, w) in [-1, 1] -> embeddings (n, embed_dim).

    arch: the name of an open_clip architecture, or the same as a mapping (embed_dim, vision_cfg, text_cfg). Nothing is
    downloaded: the weights come with the checkpoint (`version` is accepted and not used). Of the text tower,
    the parameters in official checkpoints are included.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "ViT-H-14",
        version: str | None = None,
        freeze: bool = True,
        antialias: bool = True,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.model = ImageTower(read_architecture(arch))
        self.antialias = antialias
        # On the CPU even while the model is built on `meta`: checkpoints do not contain them.
        self.register_buffer("mean", torch.tensor(MEAN, device="cpu").view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD, device="cpu").view(3, 1, 1), persistent=False)
        if freeze:
            self.requires_grad_(False)

    def preprocess(self, x: Tensor) -> Tensor:
        """Resize to the tower's size and normalise: (n, 3, h, w) in [-1, 1] -> (n, 3, size, size)."""
        x = resize(x, self.model.visual.image_size, self.antialias)
        return ((x + 1) / 2 - self.mean) / self.std

    def forward(self, x: Tensor, check: Callable[[], None] | None = None) -> Tensor:
        return self.model.visual(self.preprocess(x).to(self.model.visual.conv1.weight.dtype), check)


class FrozenOpenCLIPImagePredictionEmbedder(nn.Module):
    """Frames (b n_cond_frames, 3, h, w) in [-1, 1] -> tokens (b n_copies, n_cond_frames, embed_dim)."""

    def __init__(self, open_clip_embedding_config: Mapping[str, Any], n_cond_frames: int, n_copies: int) -> None:
        super().__init__()
        self.n_cond_frames = n_cond_frames
        self.n_copies = n_copies
        self.open_clip = instantiate_from_config(open_clip_embedding_config)

    def forward(self, frames: Tensor, check: Callable[[], None] | None = None) -> Tensor:
        pattern = "(b n_cond_frames) c -> b n_cond_frames c"
        tokens = rearrange(self.open_clip(frames, check), pattern, n_cond_frames=self.n_cond_frames)
        return repeat(tokens, "b n c -> (b n_copies) n c", n_copies=self.n_copies)


def resize(x: Tensor, size: tuple[int, int], antialias: bool = True) -> Tensor:
    """Bicubic resizing with aligned corners, after a Gaussian blur where x shrinks: (n, c, h, w) -> (n, c, *size).

    The blur's sigmas and kernel sizes are kornia's, with which the official models were trained.
    """
    factors = [old / new for old, new in zip(x.shape[-2:], size, strict=True)]
    if antialias and max(factors) > 1:
        sigmas = [max((factor - 1) / 2, 0.001) for factor in factors]
        lengths = [int(max(4 * sigma, 3)) | 1 for sigma in sigmas]
        x = F.pad(x, (lengths[1] // 2,) * 2 + (lengths[0] // 2,) * 2, mode="reflect")
        for dim, (sigma, length) in enumerate(zip(sigmas, lengths, strict=True)):
            kernel = _gaussian(sigma, length, x).view(1, 1, *((-1, 1) if dim == 0 else (1, -1)))
            x = F.conv2d(x, kernel.expand(x.shape[1], 1, -1, -1), groups=x.shape[1])
    return F.interpolate(x, size, mode="bicubic", align_corners=True)


def _gaussian(sigma: float, length: int, like: Tensor) -> Tensor:
    offsets = torch.arange(length, dtype=like.dtype, device=like.device) - length // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    return weights / weights.sum()
