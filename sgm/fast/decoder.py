"""The decoder in bounded memory: `Decoder.forward` of a whole clip, computed in chunks.

Spatial layers run on some frames at a time, temporal layers on some pixels of all frames; a group norm over several
chunks measures its moments first. The size of the chunks changes memory and speed, not the picture. One activation is
held for the whole clip, in one buffer filled from its end: blocks replace it in place, and an upsampled frame
overwrites input already used. A part of that buffer may lie in the processor's memory (`sgm.fast.held`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.autoencoder.blocks import AttnBlock, ResnetBlock, VideoConv, VideoResnetBlock
from sgm.autoencoder.coders import Decoder, Level
from sgm.fast.held import Activation, Held
from sgm.fast.moments import joined_frames
from sgm.fast.ops import Moments, Ops, for_device
from sgm.fast.shard import Shard
from sgm.layers.residual import TemporalConv, Upsample

MAX_VALUES = 2**28  # values of the activations of one chunk, beside the buffer
_MAX_STORED = 2**27  # a temporal activation of up to so many values is stored; a larger one where the buffer has room


def decode(
    decoder: Decoder,
    z: Tensor,
    max_values: int = MAX_VALUES,
    on_block: Callable[[int, int], None] = lambda done, of: None,
    check: Callable[[], None] = lambda: None,
    shard: Shard | None = None,
    max_held: int | None = None,
) -> Tensor:
    """Latents of one clip (t, z_channels, h, w) -> its frames (t, out_ch, f h, f w), in z's dtype.

    shard: the frames that this process decodes; all processes get all. max_values: how many values the activations of
    a chunk may hold; fewer are slower, and a spatial layer takes one frame at least. on_block(done, of) is called
    before each of the decoder's `of` blocks and after the last, check before each chunk; exceptions of both end the
    decoding. max_held: how many values the buffer may have on the device; the rest is in the processor's memory.
    """
    ops = for_device(z.device)
    max_values = min(max_values, ops.max_chunk)
    shard = shard or Shard(len(z))
    z = shard.cut(z)
    t, _, h, w = z.shape
    levels = [cast(Level, level) for level in reversed(decoder.up)]
    sizes, scale = [h * w * decoder.conv_in.out_channels], 1
    for level in levels:
        sizes.append(scale**2 * h * w * cast(ResnetBlock, level.block[-1]).conv2.out_channels)
        scale *= 1 if level.upsample is None else 2
    held = Held(z, t, sizes, max_held)
    temporal = _temporal_weights(decoder)
    x = held.at_end(h, w, decoder.conv_in.out_channels)
    x.put(x.part(read=False).copy_(decoder.conv_in(z).permute(0, 2, 3, 1).flatten(1, 2)))
    upsample: Upsample | None = None  # of the level before: the next block applies it to its chunks
    upsample_weight: Tensor | None = None
    moments: Moments | None = None  # of x, where the last block measured them as it wrote x
    blocks = [block for level in levels for block in (*level.block, level.upsample)]
    blocks = [decoder.mid.block_1, decoder.mid.attn_1, decoder.mid.block_2, *blocks]
    for done, block in enumerate(blocks):
        on_block(done, len(blocks))
        if isinstance(block, AttnBlock):
            for i in range(t):
                check()
                frame = x.part(slice(i, i + 1))
                frame[0] = _attention(ops, block, frame[0])
                x.put(frame, slice(i, i + 1))
            moments = None
        elif isinstance(block, ResnetBlock):
            factor, channels = 1 if upsample is None else 2, block.conv2.out_channels
            height, width = (factor * side for side in x.size)
            smaller = factor**2 * channels < x.shape[2]
            place = Held(z, t, [height * width * channels], max_held) if smaller else held
            out = place.at_end(height, width, channels)
            step = max(max_values // (3 * height * width * max(block.conv1.in_channels, channels)), 1)
            before = [None] * t if moments is None or upsample is not None else moments.split(step)
            after: list[Moments | None] = []
            for i in range(0, t, step):
                check()
                # Frame i of `out` ends before frame i + 1 of x begins, since both end together and x is no larger.
                frames = slice(i, i + step)
                part = out.part(frames, read=False)
                pixels = x.part(frames).unflatten(1, x.size)
                known = before[i // step]
                after.append(_spatial(ops, block, temporal.get(block), pixels, known, part, upsample, upsample_weight))
                out.put(part, frames)
            x, upsample, moments = out, None, joined_frames(after)
            if isinstance(block, VideoResnetBlock):
                measure = not isinstance(blocks[done + 1], Upsample | AttnBlock)  # else no norm reads it as it is
                moments = _temporal(ops, block, temporal[block], x, moments, shard, max_values, check, measure)
        else:
            upsample, upsample_weight = block, None if block is None else ops.fused_upsample_weight(block.conv.weight)
    step = max(max_values // (3 * x.shape[1] * x.shape[2]), 1)
    video, known = [], [None] * math.ceil(t / step) if moments is None else moments.split(step)
    for i in range(0, t, step):
        check()
        video.append(_output(ops, decoder, x.part(slice(i, i + step)).unflatten(1, x.size), known[i // step]))
    video = torch.cat(video)
    on_block(len(blocks), len(blocks))
    if isinstance(decoder.conv_out, VideoConv):
        conv, halo = decoder.conv_out.time_mix_conv, 0
        if shard.size > 1:
            halo = conv.kernel_size[0] // 2
            video = F.pad(video, (0, 0, 0, 0, 0, 0, halo, halo)).contiguous()
            shard.fill_halo(video, halo)
        video = ops.last_temporal_conv(video, conv)[halo : halo + t]
    return video if shard.size == 1 else shard.gathered(video)


def frame_values(decoder: Decoder, h: int, w: int) -> int:
    """The smallest `max_values` at which every chunk of a spatial layer is one frame, of latents (h, w)."""
    largest, scale = 0, 1
    for level in (cast(Level, level) for level in reversed(decoder.up)):
        convs = [cast(ResnetBlock, block).conv1 for block in level.block]
        values = (3 * scale**2 * h * w * max(conv.in_channels, conv.out_channels) for conv in convs)
        largest, scale = max(largest, *values), scale * (1 if level.upsample is None else 2)
    return largest


def _spatial(
    ops: Ops,
    block: ResnetBlock,
    temporal: float | None,
    x: Tensor,
    moments: Moments | None,
    out: Tensor,
    upsample: Upsample | None,
    upsample_weight: Tensor | None,
) -> Moments | None:
    """A spatial residual block, after `upsample` if given. x: (n, h, w, c); out: (n, f h f w, c'), may be x.

    temporal: the weight of its temporal branch, if it has one; `out` then includes its `_temporal_bias`. moments: of x,
    if they are known and there is no `upsample`. Returns those of `out`, if it was measured as it was written.
    """
    n, h, w, _ = x.shape
    measured, bias = ops.measured(x.flatten(1, 2), moments), cast(Tensor, block.conv2.bias)
    if upsample is not None and upsample_weight is not None:
        measured, h, w = ops.upsample_conv(x, upsample_weight, cast(Tensor, upsample.conv.bias)), 2 * h, 2 * w
    y, skip = ops.group_norm([measured], block.norm1), measured.x
    if hasattr(block, "nin_shortcut"):
        skip = F.linear(skip, block.nin_shortcut.weight.flatten(1))
        bias = bias + cast(Tensor, block.nin_shortcut.bias)
    del x, measured
    y, pending_bias = ops.spatial_conv(y.view(n, h, w, -1), block.conv1.weight, cast(Tensor, block.conv1.bias))
    y = ops.group_norm([y], block.norm2, add=pending_bias)
    if temporal is not None:
        bias = bias + _temporal_bias(cast(VideoResnetBlock, block), temporal)
    return ops.spatial_conv(y.view(n, h, w, -1), block.conv2.weight, bias, skip, out)[0].known


def _temporal_weights(decoder: Decoder) -> dict[nn.Module, float]:
    """The weight of each block's temporal branch in the blend with its spatial one: the device is asked only once."""
    blocks = [block for block in decoder.modules() if isinstance(block, VideoResnetBlock)]
    factors = [block.mix_factor.reshape(()) for block in blocks]
    return dict(zip(blocks, torch.sigmoid(torch.stack(factors)).tolist(), strict=True)) if blocks else {}


def _temporal_bias(block: VideoResnetBlock, weight: float) -> Tensor:
    """The bias of the last temporal convolution, weighted, (c,): folded into the spatial block's last addition."""
    return weight * cast(Tensor, cast(TemporalConv, block.time_stack.out_layers[3]).bias)


def _temporal(
    ops: Ops,
    block: VideoResnetBlock,
    weight: float,
    x: Activation,
    moments: Moments | None,
    shard: Shard,
    max_values: int,
    check: Callable[[], None],
    measure: bool,
) -> Moments | None:
    """The temporal residual block and the blend with its input, in place. x: (t, s, c), with `_temporal_bias` added.

    moments: of x, if they are known. measure: whether those of the result will be asked for: returned, if it was
    measured as it was written.
    """
    t, s, c = x.shape
    most = max(part.stop - part.start for part in shard.parts)  # all processes must take the same parts
    stack = block.time_stack
    norm_1, norm_2 = (cast(nn.GroupNorm, layers[0]) for layers in (stack.in_layers, stack.out_layers))
    conv_1, conv_2 = cast(TemporalConv, stack.in_layers[2]), cast(TemporalConv, stack.out_layers[3])
    step = max(max_values // (4 * most * c) // Moments.tile, 1) * Moments.tile
    parts = [slice(i, min(i + step, s)) for i in range(0, s, step)]
    device = x.inside.device
    if moments is None:
        moments = ops.empty_moments(t, s, c, device)
        for part in parts if len(x.outside) else [slice(0, s)]:
            moments.measure(x.part(pixels=part), part.start)
    first = shard.norm(moments, norm_1, -_temporal_bias(block, weight))
    moments = ops.empty_moments(t, s, c, device)
    # The whole activation takes as much memory as x: of several processes' shares, both take no more than x of one.
    whole = not len(x.outside)
    store = len(parts) == 1 or most * s * c <= _MAX_STORED or (shard.size > 1 and whole)
    place: Tensor | None = None
    if not store and whole and len(x.spare) >= t * s * c:
        store, place = True, x.spare[: t * s * c].view(t, s, c)
    stored: list[Tensor] = []
    for part in parts:
        check()
        out = None if place is None else place[:, part]
        y = ops.temporal_conv(x.part(pixels=part), first, conv_1, shard, out=out)
        moments.take(y.moments, part.start)
        if store:
            stored.append(y.x)
    second = shard.norm(moments, norm_2, conv_1.bias)
    after = ops.empty_moments(t, s, c, device) if measure else None
    for part in reversed(parts):
        check()
        z = x.part(pixels=part)
        y = stored.pop() if store else ops.temporal_conv(z, first, conv_1, shard, measure=False).x
        known = ops.temporal_conv(y, second, conv_2, shard, residual=z, branch_weight=weight, measure=measure).known
        x.put(z, pixels=part)
        if after is not None and known is not None:
            after.take(known, part.start)
        else:
            after = None
    return after


def _attention(ops: Ops, block: AttnBlock, x: Tensor) -> Tensor:
    """Self-attention among the pixels of a frame (h w, c), added to it."""
    y = ops.group_norm([ops.measured(x.view(1, -1, x.shape[-1]))], block.norm, silu=False)[0]
    q, k, v = (F.linear(y, f.weight.flatten(1), f.bias) for f in (block.q, block.k, block.v))
    y = ops.wide_attention(q, k, v)
    return x + F.linear(y, block.proj_out.weight.flatten(1), block.proj_out.bias).view_as(x)


def _output(ops: Ops, decoder: Decoder, x: Tensor, moments: Moments | None) -> Tensor:
    """The last norm and spatial convolution: (n, h, w, c) -> (n, out_ch, h, w). moments: of x, if they are known."""
    y = ops.group_norm([ops.measured(x.flatten(1, 2), moments)], decoder.norm_out).view_as(x)
    return ops.last_conv(y, cast(nn.Conv2d, decoder.conv_out))
