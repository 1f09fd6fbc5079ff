"""Convolution blocks of the KL autoencoder. Attribute names are those of the official checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sgm.layers.residual import GroupNorm, ResBlock, TemporalConv, frames_first, frames_in_batch


def norm(channels: int) -> GroupNorm:
    return GroupNorm(32, channels, eps=1e-6)


# Device type -> values of a layer's input that keep the device busy.
_SLICE = {"cpu": 2**22, "cuda": 2**27, "mps": 2**25}


def by_slices(layer: Callable[[Tensor], Tensor], x: Tensor, growth: float = 1.0) -> Tensor:
    """Apply `layer` to pictures (n, c, h, w), some at a time, so that its intermediates take little memory.

    In training, to all at once. growth: size of the layer's largest intermediate, relative to its input.
    """
    size = max(int(_SLICE.get(x.device.type, 2**22) / (growth * x[0].numel())), 1)
    if len(x) <= size or torch.is_grad_enabled():
        return layer(x)
    first = layer(x[:size])
    out = first.new_empty(len(x), *first.shape[1:]).contiguous(memory_format=torch.channels_last)
    out[:size] = first
    for i in range(size, len(x), size):
        out[i : i + size] = layer(x[i : i + size])
    return out


class ResnetBlock(nn.Module):
    """Residual block: norm, SiLU, convolution, twice, with a skip connection. x: (n, in_channels, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        return by_slices(self.spatial, x)

    def spatial(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class VideoResnetBlock(ResnetBlock):
    """A ResnetBlock, then a residual block over frames, blended: sigmoid(mix_factor) is the temporal one's weight."""

    def __init__(
        self, in_channels: int, out_channels: int, dropout: float = 0.0, video_kernel_size: Sequence[int] = (3, 1, 1)
    ) -> None:
        super().__init__(in_channels, out_channels, dropout)
        self.time_stack = ResBlock(out_channels, None, out_channels, dropout, video_kernel_size)
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        x = super().forward(x)
        temporal = frames_in_batch(self.time_stack(frames_first(x, frames)), *x.shape[-2:])
        return torch.lerp(x, temporal, torch.sigmoid(self.mix_factor).to(x.dtype))


class VideoConv(nn.Conv2d):
    """A convolution over pixels, then one over frames."""

    def __init__(self, in_channels: int, out_channels: int, video_kernel_size: Sequence[int] = (3, 1, 1)) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.time_mix_conv = TemporalConv(out_channels, out_channels, video_kernel_size)
        nn.init.dirac_(self.time_mix_conv.weight)  # the identity: training starts without mixing frames

    def forward(self, input: Tensor, frames: int = 1) -> Tensor:
        x = super().forward(input)
        return frames_in_batch(self.time_mix_conv(frames_first(x, frames)), *x.shape[-2:])


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels of a frame. x: (n, channels, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (rearrange(f(h), "n c h w -> n 1 (h w) c") for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(h, "n 1 (h w) c -> n c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halve height and width by a strided convolution, padded on the right and below alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))
