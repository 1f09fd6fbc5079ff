"""The decoder in bounded memory: what `Decoder.forward` computes from a whole clip, a part at a time.

Layers over pixels run on some frames, layers over frames on some pixels of all frames; a norm over more than that takes
its moments first. The size of the parts changes memory and speed, not the picture. One activation is held whole: blocks
replace it in place, and where it grows, it grows into the memory before it and over those of its frames that are done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.autoencoder.blocks import AttnBlock, ResnetBlock, VideoConv, VideoResnetBlock
from sgm.autoencoder.coders import Decoder, Level
from sgm.fast.kernels import (
    NEAR,
    Moments,
    attend,
    blend,
    channels_last,
    for_doubled,
    group_norm,
    moments,
    over_frames,
    over_pixels,
    upsampled,
)
from sgm.layers.residual import TemporalConv, Upsample, frames_first, frames_in_batch

ROOM = 2**28  # values that the activations in work may hold, beside the one that is held whole
_SMALL = 2**27  # what is kept rather than computed again


def decode(
    decoder: Decoder, z: Tensor, room: int = ROOM, on_block: Callable[[int, int], None] = lambda done, of: None
) -> Tensor:
    """Latents of one clip (t, z_channels, h, w) -> its frames (t, out_ch, f h, f w), in z's dtype.

    room: values that the activations in work may hold, if need be those of a single frame; less is slower.
    on_block(done, of) is told of the decoder's blocks.
    """
    channels_last(decoder)
    room = min(room, NEAR) if z.device.type == "cpu" else room
    t, _, h, w = z.shape
    levels = [cast(Level, level) for level in reversed(decoder.up)]
    size, scale = decoder.conv_in.out_channels, 1
    for level in levels:
        size = max(size, scale**2 * cast(ResnetBlock, level.block[-1]).conv2.out_channels)
        scale *= 1 if level.upsample is None else 2
    whole = z.new_empty(t * h * w * size)

    def at_end(height: int, width: int, channels: int) -> Tensor:
        return whole[len(whole) - t * height * width * channels :].view(t, height, width, channels)

    x = at_end(h, w, decoder.conv_in.out_channels)
    x.copy_(decoder.conv_in(z).permute(0, 2, 3, 1))
    upsample: Upsample | None = None
    doubled: Tensor | None = None
    blocks = [block for level in levels for block in (*level.block, level.upsample)]
    blocks = [decoder.mid.block_1, decoder.mid.attn_1, decoder.mid.block_2, *blocks]
    for done, block in enumerate(blocks):
        on_block(done, len(blocks))
        if isinstance(block, AttnBlock):
            for i in range(t):
                x[i] = _attention(block, x[i])
        elif isinstance(block, ResnetBlock):
            factor, channels = 1 if upsample is None else 2, block.conv2.out_channels
            out = at_end(factor * x.shape[1], factor * x.shape[2], channels)
            if out.numel() < x.numel():
                out = out.clone()
            values = out[0, :, :, 0].numel() * max(block.conv1.in_channels, channels)
            step = max(room // (3 * values), 1)
            for i in range(0, t, step):
                # Frame i of `out` ends before frame i + 1 of x begins, for both end together and x is no larger.
                _over_pixels(block, x[i : i + step], out[i : i + step], upsample, doubled)
            x, upsample = out, None
            if isinstance(block, VideoResnetBlock):
                _over_frames(block, x.flatten(1, 2), room)
        else:
            upsample, doubled = block, None if block is None else for_doubled(block.conv.weight)
    step = max(room // (3 * x[0].numel()), 1)
    video = torch.cat([_last(decoder, part) for part in x.split(step)])
    on_block(len(blocks), len(blocks))
    last = decoder.conv_out
    if not isinstance(last, VideoConv):
        return video
    return frames_in_batch(last.time_mix_conv(frames_first(video, t)), *video.shape[-2:])


def frame_values(decoder: Decoder, h: int, w: int) -> int:
    """The `room` in which every layer over pixels has one whole frame, whose latent is (h, w)."""
    most, scale = 0, 1
    for level in (cast(Level, level) for level in reversed(decoder.up)):
        convs = [cast(ResnetBlock, block).conv1 for block in level.block]
        most = max(most, *(3 * scale**2 * h * w * max(conv.in_channels, conv.out_channels) for conv in convs))
        scale *= 1 if level.upsample is None else 2
    return most


def _over_pixels(block: ResnetBlock, x: Tensor, out: Tensor, upsample: Upsample | None, doubled: Tensor | None) -> None:
    """A residual block, after an upsampling. x: (n, h, w, c), out: (n, f h, f w, c'), `_ahead` of its bias over frames.

    out may be x.
    """
    if upsample is not None and doubled is not None:
        x = upsampled(x, doubled, cast(Tensor, upsample.conv.bias))
    n, h, w, _ = x.shape
    skip, bias = x.flatten(1, 2), cast(Tensor, block.conv2.bias)
    y = group_norm([skip], block.norm1)
    if hasattr(block, "nin_shortcut"):
        skip = F.linear(skip, block.nin_shortcut.weight.flatten(1))
        bias = bias + cast(Tensor, block.nin_shortcut.bias)
    del x
    y, owed = over_pixels(y.view(n, h, w, -1), block.conv1.weight, cast(Tensor, block.conv1.bias))
    y = group_norm([y], block.norm2, add=owed)
    if isinstance(block, VideoResnetBlock):
        bias = bias + _ahead(block)
    y, owed = over_pixels(y.view(n, h, w, -1), block.conv2.weight, bias)
    blend(skip, y, 1.0, 1.0, owed, out=out.flatten(1, 2))


def _ahead(block: VideoResnetBlock) -> Tensor:
    """What the last convolution over frames adds to anything, (c,): there before, for its product adds no bias."""
    return _share(block) * cast(Tensor, cast(TemporalConv, block.time_stack.out_layers[3]).bias)


def _share(block: VideoResnetBlock) -> float:
    return float(torch.sigmoid(block.mix_factor))


def _over_frames(block: VideoResnetBlock, x: Tensor, room: int) -> None:
    """The block's part over frames, in place. x: (t, s, c), `_ahead`."""
    t, s, c = x.shape
    stack = block.time_stack
    norm_1, norm_2 = (cast(nn.GroupNorm, layers[0]) for layers in (stack.in_layers, stack.out_layers))
    conv_1, conv_2 = cast(TemporalConv, stack.in_layers[2]), cast(TemporalConv, stack.out_layers[3])
    share = _share(block)
    step = max(room // (4 * t * c) // Moments.run, 1) * Moments.run
    parts = [slice(i, min(i + step, s)) for i in range(0, s, step)]
    before = moments(x).norm(norm_1, t, -_ahead(block))
    between = Moments(t, s, c, x.device)
    kept: list[Tensor] = []
    for part in parts:
        y = over_frames(x[:, part], before, conv_1, t)
        between.measure(y, part.start)
        if len(parts) == 1 or x.numel() <= _SMALL:  # else computed again, for all of it would take as much as x
            kept.append(y)
    after = between.norm(norm_2, t, conv_1.bias)
    for part in reversed(parts):
        y = kept.pop() if kept else over_frames(x[:, part], before, conv_1, t)
        over_frames(y, after, conv_2, t, onto=x[:, part], of=share)


def _attention(block: AttnBlock, x: Tensor) -> Tensor:
    """A frame (h, w, c)."""
    y = group_norm([x.view(1, -1, x.shape[-1])], block.norm, silu=False)[0]
    q, k, v = (F.linear(y, f.weight.flatten(1), f.bias) for f in (block.q, block.k, block.v))
    y = attend(q[None, None], k[None, None], v[None, None])[0, 0]
    return x + F.linear(y, block.proj_out.weight.flatten(1), block.proj_out.bias).view_as(x)


def _last(decoder: Decoder, x: Tensor) -> Tensor:
    """(n, h, w, c) -> (n, out_ch, h, w), before any convolution over frames."""
    y = group_norm([x.flatten(1, 2)], decoder.norm_out).view_as(x).permute(0, 3, 1, 2)
    last = cast(nn.Conv2d, decoder.conv_out)
    return F.conv2d(y, last.weight, last.bias, padding=1)
