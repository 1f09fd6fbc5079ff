"""Encoder, image decoder and the temporally-aware deflickering decoder of the KL autoencoder.

Rombach et al. 2022 (arXiv:2112.10752); the temporal decoder: Blattmann et al. 2023 (arXiv:2304.08818), section 3.1.1.
Parameters carry the official YAMLs' names (`ddconfig`); `resolution` and `double_z` of the decoder change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from sgm.autoencoder.blocks import AttnBlock, Downsample, ResnetBlock, VideoConv, VideoResnetBlock, by_slices, norm
from sgm.layers.residual import Upsample


def _check_attention(attn_type: str, attn_resolutions: Sequence[int]) -> None:
    if not attn_type.startswith("vanilla"):
        raise ValueError(f"attn_type must be 'vanilla'; got {attn_type!r}.")
    if attn_resolutions:
        raise ValueError(f"attn_resolutions must be empty, as in every official autoencoder; got {attn_resolutions}.")


class Level(nn.Module):
    """The residual blocks of one resolution, then down- or upsampling to the next."""

    def __init__(
        self, blocks: Sequence[ResnetBlock], downsample: Downsample | None = None, upsample: Upsample | None = None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.downsample = downsample
        self.upsample = upsample

    def forward(self, x: Tensor, frames: int = 1, check: Callable[[], None] | None = None) -> Tensor:
        for block in self.block:
            if check is not None:
                check()
            x = block(x, frames)
        resample = self.downsample or self.upsample
        return x if resample is None else by_slices(resample, x)


class Middle(nn.Module):
    """The deepest resolution: attention between two residual blocks."""

    def __init__(self, block_1: ResnetBlock, block_2: ResnetBlock) -> None:
        super().__init__()
        self.block_1 = block_1
        self.attn_1 = AttnBlock(block_1.conv2.out_channels)
        self.block_2 = block_2

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, frames)), frames)


class Encoder(nn.Module):
    """Pictures (n, in_channels, h, w) in [-1, 1] -> moments (n, 2 z_channels, h / f, w / f), f = 2^(levels - 1)."""

    def __init__(
        self,
        ch: int,
        out_ch: int,
        z_channels: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int = 2,
        in_channels: int = 3,
        double_z: bool = True,
        dropout: float = 0.0,
        attn_type: str = "vanilla",
        attn_resolutions: Sequence[int] = (),
        resolution: int | None = None,
    ) -> None:
        super().__init__()
        _check_attention(attn_type, attn_resolutions)
        self.factor = 2 ** (len(ch_mult) - 1)
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels = ch
        for i, mult in enumerate(ch_mult):
            blocks = []
            for _ in range(num_res_blocks):
                blocks.append(ResnetBlock(channels, ch * mult, dropout))
                channels = ch * mult
            self.down.append(Level(blocks, downsample=Downsample(channels) if i < len(ch_mult) - 1 else None))
        self.mid = Middle(ResnetBlock(channels, channels, dropout), ResnetBlock(channels, channels, dropout))
        self.norm_out = norm(channels)
        self.conv_out = nn.Conv2d(channels, z_channels * (2 if double_z else 1), 3, padding=1)

    def forward(self, x: Tensor, check: Callable[[], None] | None = None) -> Tensor:
        """check: called before each block."""
        return by_slices(partial(self.pictures, check=check), x, self.conv_in.out_channels / x.shape[1])

    def pictures(self, x: Tensor, check: Callable[[], None] | None = None) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h, check=check)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latents (n, z_channels, h, w) -> pictures (n, out_ch, f h, f w), about [-1, 1], each frame by itself."""

    def __init__(
        self,
        ch: int,
        out_ch: int,
        z_channels: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int = 2,
        in_channels: int = 3,
        double_z: bool = True,
        dropout: float = 0.0,
        attn_type: str = "vanilla",
        attn_resolutions: Sequence[int] = (),
        resolution: int | None = None,
    ) -> None:
        super().__init__()
        _check_attention(attn_type, attn_resolutions)
        self.z_channels = z_channels
        channels = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, channels, 3, padding=1)
        self.mid = Middle(self.block(channels, channels, dropout), self.block(channels, channels, dropout))
        levels = []
        for i, mult in reversed(list(enumerate(ch_mult))):
            blocks = []
            for _ in range(num_res_blocks + 1):
                blocks.append(self.block(channels, ch * mult, dropout))
                channels = ch * mult
            levels.insert(0, Level(blocks, upsample=Upsample(channels) if i > 0 else None))
        self.up = nn.ModuleList(levels)
        self.norm_out = norm(channels)
        self.conv_out = self.last(channels, out_ch)

    def block(self, in_channels: int, out_channels: int, dropout: float) -> ResnetBlock:
        return ResnetBlock(in_channels, out_channels, dropout)

    def last(self, channels: int, out_channels: int) -> nn.Module:
        return nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, z: Tensor, timesteps: int = 1) -> Tensor:
        """`timesteps`: t, the frames of a clip in z's leading dimension (b t); used by the temporal decoder alone."""
        h = self.mid(self.conv_in(z), timesteps)
        for level in reversed(self.up):
            h = level(h, timesteps)
        h = F.silu(self.norm_out(h))
        return self.conv_out(h, timesteps) if isinstance(self.conv_out, VideoConv) else self.conv_out(h)


class VideoDecoder(Decoder):
    """The decoder with temporal layers, so that frames do not flicker: latents (b t, z_channels, h, w).

    It sees the `timesteps` frames of a clip in one call and no others.
    """

    def __init__(
        self, *, video_kernel_size: Sequence[int] = (3, 1, 1), time_mode: str = "conv-only", **ddconfig
    ) -> None:
        if time_mode != "conv-only":
            raise ValueError(f"time_mode must be 'conv-only', as in every official decoder; got {time_mode!r}.")
        self.video_kernel_size = tuple(video_kernel_size)
        super().__init__(**ddconfig)

    def block(self, in_channels: int, out_channels: int, dropout: float) -> ResnetBlock:
        return VideoResnetBlock(in_channels, out_channels, dropout, self.video_kernel_size)

    def last(self, channels: int, out_channels: int) -> nn.Module:
        return VideoConv(channels, out_channels, self.video_kernel_size)
