"""Residual convolution blocks of the UNet (and of the temporal decoder), resampling, temporal convolution.

Every tensor is four-dimensional and, where the caller keeps it so, channels-last in memory. A clip in that layout,
(b t) c h w, is also b c t (h w) without a copy, on which a (k, 1, 1) convolution over frames is a (k, 1) one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def frames_first(x: Tensor, frames: int) -> Tensor:
    """(b t) c h w -> b c t (h w), a view."""
    return rearrange(x, "(b t) c h w -> b c t (h w)", t=frames)


def frames_in_batch(x: Tensor, h: int, w: int) -> Tensor:
    """b c t (h w) -> (b t) c h w: of a channels-last tensor a view, of another a channels-last copy."""
    return rearrange(x, "b c t (h w) -> (b t) h w c", h=h, w=w).permute(0, 3, 1, 2)


def zeroed(module: nn.Module) -> nn.Module:
    """Set a module's parameters to zero and return it: its residual block starts training as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` of (n, c, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        # On processors the kernel for channels-last maps of under 1024 pixels takes ten times as long as a copy.
        if input.device.type == "cpu" and input.shape[2] * input.shape[3] < 1024:
            input = input.contiguous()
        channels_last = input.is_cuda and input.is_contiguous(memory_format=torch.channels_last)
        if channels_last and input.dtype == torch.float32 and not torch.is_grad_enabled():
            return self._of_channels(input)
        return super().forward(input)

    def _of_channels(self, x: Tensor) -> Tensor:
        """The norm from each channel's own moments: on GPUs, torch's kernel first lays channels-last maps out anew."""
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # (n, s, c)
        variance, mean = (
            value.unflatten(1, (self.num_groups, -1)) for value in torch.var_mean(pixels, 1, correction=0)
        )
        average = mean.mean(2, keepdim=True)
        spread = (variance + (mean - average).square()).mean(2, keepdim=True)
        scale = (spread + self.eps).rsqrt().expand_as(mean).flatten(1) * self.weight
        shift = self.bias - average.expand_as(mean).flatten(1) * scale
        normed = torch.addcmul(shift[:, None], pixels, scale[:, None])
        return normed.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class TemporalConv(nn.Conv3d):
    """A convolution over frames alone, kernel (k, 1, 1). x: b c t s -> b c' t s."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Sequence[int] | int = (3, 1, 1)) -> None:
        if isinstance(kernel_size, int) or tuple(kernel_size[1:]) != (1, 1):
            raise ValueError(f"video_kernel_size must be [k, 1, 1], a kernel over frames alone; got {kernel_size}.")
        super().__init__(in_channels, out_channels, (kernel_size[0], 1, 1), padding=(kernel_size[0] // 2, 0, 0))

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.is_cuda:
            # As a video one pixel high: cuDNN takes up to twice as long over a picture, forward and backward.
            return F.conv3d(input[:, :, :, None], weight, bias, padding=self.padding).squeeze(3)
        return F.conv2d(input, weight.squeeze(-1), bias, padding=(self.kernel_size[0] // 2, 0))


class Downsample(nn.Module):
    """Halve height and width by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, with the embedding added in between and a skip around.

    Spatial: x (n, c, h, w), emb (n, e). Temporal (`kernel_size` given): x (b, c, t, s), emb (b t, e).
    `emb_channels` None: no embedding.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int | None,
        out_channels: int | None = None,
        dropout: float = 0.0,
        kernel_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        out = channels if out_channels is None else out_channels

        def conv(i: int, o: int) -> nn.Module:
            return nn.Conv2d(i, o, 3, padding=1) if kernel_size is None else TemporalConv(i, o, kernel_size)

        self.in_layers = nn.Sequential(GroupNorm(32, channels), nn.SiLU(), conv(channels, out))
        if emb_channels is not None:
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out))
        self.out_layers = nn.Sequential(GroupNorm(32, out), nn.SiLU(), nn.Dropout(dropout), zeroed(conv(out, out)))
        self.skip_connection = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.in_layers(x)
        if emb is not None:
            e = self.emb_layers(emb)  # (n, c) or (b t, c)
            if isinstance(self.in_layers[2], TemporalConv):
                h = h + rearrange(e, "(b t) c -> b c t 1", b=x.shape[0])
            else:
                h = h + rearrange(e, "n c -> n c 1 1")
        return self.skip_connection(x) + self.out_layers(h)
