"""A perceptual distance on VGG16's features (Johnson et al. 2016, arXiv:1603.08155), for training an autoencoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STAGES = (("conv1_1", "conv1_2"), ("conv2_1", "conv2_2"), ("conv3_1", "conv3_2", "conv3_3"))


class PerceptualDistance(nn.Module):
    """Mean over three stages of |f(a) - f(b)| / mean |f(b)|, f the features after each stage's last ReLU.

    path: an .npz with `conv1_1_w` (out, in, 3, 3), `conv1_1_b` (out,) ... `conv3_3_b` of the Caffe network, which takes
    BGR in 0..255 minus its mean. a, b: (n, 3, h, w) in [-1, 1]. Returns (n, 1, 1, 1).
    """

    mean: Tensor

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        with np.load(path) as file:
            for name in (name for stage in _STAGES for name in stage):
                for part in "wb":
                    self.register_buffer(
                        f"{name}_{part}", torch.from_numpy(file[f"{name}_{part}"]).float(), persistent=False
                    )
        mean = torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)

    def features(self, x: Tensor) -> list[Tensor]:
        x = ((x.flip(1) + 1) * 127.5 - self.mean).to(memory_format=torch.channels_last)
        features = []
        for i, stage in enumerate(_STAGES):
            x = F.max_pool2d(x, 2) if i else x
            for name in stage:
                x = F.relu(F.conv2d(x, getattr(self, f"{name}_w"), getattr(self, f"{name}_b"), padding=1))
            features.append(x)
        return features

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.features(b)
        distances = [
            (x - y).abs().float().mean(dim=(1, 2, 3), keepdim=True) / y.float().mean(dim=(1, 2, 3), keepdim=True)
            for x, y in zip(self.features(a), target, strict=True)
        ]
        return torch.stack(distances).mean(dim=0)
