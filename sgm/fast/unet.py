"""VideoUNet without what inference can do without, computing the same.

- Attention to a single token is that token, whatever the query: all of it is computed once a clip, as vectors.
- Biases, those vectors and the frames' positions are not added to the activations but to what reads them.
- Activations stay channels-last, a transformer's in one order of tokens: neither branch rearranges anything.
- Residuals are added by the matrix products themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.fast.ops import Ops, channels_last, for_device
from sgm.layers.attention import GEGLU, BasicTransformerBlock, CrossAttention, FeedForward, VideoTransformerBlock
from sgm.layers.embeddings import timestep_embedding
from sgm.layers.residual import ResBlock, TemporalConv, Upsample
from sgm.layers.video import AlphaBlender, SpatialVideoTransformer, VideoResBlock
from sgm.unet.video_unet import Block, VideoUNet

WIDE = 6 * 10**8  # keeps a large GPU busy, and needs no more memory than decoding does


@dataclass
class Owed:
    """Of one block of a transformer: what the sums of its residuals lack where each layer reads them, (n, c)."""

    feed: Tensor  # the spatial feed-forward
    time_in: Tensor  # from here on the temporal branch, and its input's feed-forward
    time: Tensor  # attention over frames
    time_feed: Tensor  # the temporal feed-forward
    end: Tensor  # the blend of the branches


@dataclass
class Biases:
    """Of a residual block's layers, (c,) each, joined where they can be added at once."""

    inside: Tensor  # of the first convolution and the embedding
    time_inside: Tensor  # of those over frames
    behind: Tensor  # minus those of the last convolution over frames and of the layer that comes after the block
    all_but_inside: Tensor


@dataclass
class Constants:
    """What does not change from step to step, for n frames of whole clips.

    ops: the operations of the device. wide: how many values the widest activations may have at once; where they have
    more, they come in parts.
    label: the embedded vector condition (n, e), or None. owed: for each of a transformer's blocks.
    alphas: the spatial branch's share in each blend. doubled: the upsamplings' weights, `for_doubled`.
    """

    ops: Ops
    frames: int
    wide: int
    label: Tensor | None
    owed: dict[SpatialVideoTransformer, list[Owed]] = field(default_factory=dict)
    biases: dict[VideoResBlock, Biases] = field(default_factory=dict)
    alphas: dict[AlphaBlender, float] = field(default_factory=dict)
    doubled: dict[Upsample, Tensor] = field(default_factory=dict)


def supports(unet: nn.Module, context: Tensor) -> TypeGuard[VideoUNet]:
    """Whether the fast path computes what `unet` does on this context (n, m, d): one token, and no dropout."""
    return isinstance(unet, VideoUNet) and not unet.training and context.shape[1] == 1


def constants(unet: VideoUNet, context: Tensor, y: Tensor | None, frames: int, wide: int = WIDE) -> Constants:
    """context: (n, 1, d), y: (n, a) or None, of n frames that are clips of `frames`, in the network's dtype."""
    lay_out(unet)
    ops = for_device(context.device)
    found = Constants(ops, frames, min(wide, ops.max_chunk), None if y is None else unet.label_emb(y))
    context = context[:, 0]
    for module in unet.modules():
        if isinstance(module, Upsample):
            found.doubled[module] = ops.for_doubled(module.conv.weight)
        if isinstance(module, AlphaBlender):
            fixed = module.merge_strategy == "fixed"
            found.alphas[module] = float(module.mix_factor if fixed else torch.sigmoid(module.mix_factor))
    for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        layers = list(cast(Block, block))
        for layer, after in zip(layers, [*layers[1:], None], strict=True):
            if isinstance(layer, VideoResBlock):
                ahead = cast(nn.Linear, after.proj_out).bias if isinstance(after, SpatialVideoTransformer) else None
                found.biases[layer] = _biases(layer, 1 - found.alphas[layer.time_mixer], ahead)
            elif isinstance(layer, SpatialVideoTransformer):
                found.owed[layer] = _owed(layer, context, frames, found.alphas[layer.time_mixer])
    return found


def _biases(block: VideoResBlock, share: float, after: Tensor | None) -> Biases:
    """after: the bias of the layer that comes after the block."""

    def inside(block: ResBlock) -> Tensor:
        return _sum(cast(Tensor, cast(nn.Linear, block.emb_layers[1]).bias), _bias(block.in_layers[2]))

    # The temporal branch adds itself to its own input by a product that cannot add a bias: that is there before it.
    ahead = [share * _bias(block.time_stack.out_layers[3]), *([] if after is None else [after])]
    own = [_bias(block.out_layers[3])]
    if isinstance(block.skip_connection, nn.Conv2d):
        own.append(_bias(block.skip_connection))
    return Biases(inside(block), inside(block.time_stack), -_sum(*ahead), _sum(*own, *ahead))


def _owed(layer: SpatialVideoTransformer, context: Tensor, frames: int, alpha: float) -> list[Owed]:
    """context: (n, d)."""
    first = context[::frames].repeat_interleave(frames, 0)  # the temporal branch attends to the first frame's context
    position = timestep_embedding(torch.arange(frames, device=context.device), layer.in_channels)
    position = layer.time_pos_embed(position.to(context.dtype)).repeat(len(context) // frames, 1)
    found = []
    for spatial, temporal in zip(layer.transformer_blocks, layer.time_stack, strict=True):
        spatial, temporal = cast(BasicTransformerBlock, spatial), cast(VideoTransformerBlock, temporal)
        owed = [_of_one_token(spatial.attn2, context), _bias(spatial.attn1.to_out[0])]
        feed = _sum(*owed)
        owed.append(_bias(spatial.ff.net[2]))
        spatially, owed = _sum(*owed), [*owed, position]
        time_in = _sum(*owed)
        if temporal.ff_in is not None:
            owed.append(_bias(temporal.ff_in.net[2]))
        time = _sum(*owed)
        owed += [_of_one_token(temporal.attn2, first), _bias(temporal.attn1.to_out[0])]
        time_feed = _sum(*owed)
        end = _sum(alpha * spatially, (1 - alpha) * _sum(*owed, _bias(temporal.ff.net[2])))
        found.append(Owed(feed, time_in, time, time_feed, end))
    return found


def lay_out(unet: VideoUNet) -> None:
    """Have the weights lie in memory as they are read, in place; all but at once where they do already."""
    channels_last(unet)
    with torch.inference_mode(False):
        for module in unet.modules():
            if isinstance(module, BasicTransformerBlock | VideoTransformerBlock):
                parts = _qkv_weights(module.attn1)
                if not _side_by_side(parts) and not parts[0].is_inference():
                    for part, value in zip(parts, torch.cat([p.detach() for p in parts]).chunk(3), strict=True):
                        part.data = value


def _qkv_weights(layer: CrossAttention) -> list[Tensor]:
    return [layer.to_q.weight, layer.to_k.weight, layer.to_v.weight]


def _side_by_side(parts: list[Tensor]) -> bool:
    found = [(part.untyped_storage()._cdata, part.storage_offset()) for part in parts]
    return found == [(found[0][0], i * parts[0].numel()) for i in range(3)]


def _bias(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.bias)


def _sum(first: Tensor, *others: Tensor) -> Tensor:
    """Rounded once."""
    total = first.float()
    for other in others:
        total = total + other
    return total.to(first.dtype)


def _of_one_token(layer: CrossAttention, token: Tensor) -> Tensor:
    return layer.to_out(layer.to_v(token))


def forward(unet: VideoUNet, x: Tensor, timesteps: Tensor, known: Constants) -> Tensor:
    """As `VideoUNet.forward`: x (b t, c, h, w) channels-last, timesteps (b t,). Returns (b t, out_channels, h, w)."""
    emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels).to(x.dtype))
    emb = F.silu(emb if known.label is None else emb + known.label)
    skips = []
    for block in unet.input_blocks:
        x = _block(cast(Block, block), [x], emb, known)
        skips.append(x)
    x = _block(unet.middle_block, [x], emb, known)
    for block in unet.output_blocks:
        parts = [x, skips.pop()]
        del x
        x = _block(cast(Block, block), parts, emb, known)
    norm, _, conv = unet.out
    return conv(pictures(known.ops.group_norm([tokens(x)], cast(nn.GroupNorm, norm)), x.shape[-2:]))


def tokens(x: Tensor) -> Tensor:
    """(n, c, h, w), channels-last -> (n, h w, c), the same memory if it is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def pictures(x: Tensor, size: Sequence[int]) -> Tensor:
    """(n, h w, c) -> (n, c, h, w), channels-last, the same memory. size: (h, w)."""
    return x.unflatten(1, tuple(size)).permute(0, 3, 1, 2)


def _block(block: Block, parts: list[Tensor], emb: Tensor, known: Constants) -> Tensor:
    """`parts` stand for their concatenation. They are taken out of the list, so that nobody holds them longer."""
    for layer in block:
        if isinstance(layer, VideoResBlock):
            parts.append(_residual(layer, parts, emb, known))
        elif isinstance(layer, SpatialVideoTransformer):
            parts.append(_transformer(layer, parts.pop(), known))
        elif isinstance(layer, Upsample):
            x = known.ops.upsampled(parts.pop().permute(0, 2, 3, 1), known.doubled[layer], _bias(layer.conv))
            parts.append(x.permute(0, 3, 1, 2))
            del x
        else:
            parts.append(layer(parts.pop()))
    return parts.pop()


def _residual(block: VideoResBlock, parts: list[Tensor], emb: Tensor, known: Constants) -> Tensor:
    """Takes `parts`. The result comes with the bias of the layer after the block, where that is a transformer."""
    size, biases, ops = parts[0].shape[-2:], known.biases[block], known.ops
    first, last = cast(nn.Conv2d, block.in_layers[2]), cast(nn.Conv2d, block.out_layers[3])
    inputs = [tokens(part) for part in parts]
    parts.clear()
    y = ops.group_norm(inputs, cast(nn.GroupNorm, block.in_layers[0]))
    y = tokens(F.conv2d(pictures(y, size), first.weight, padding=1))
    y = ops.group_norm([y], cast(nn.GroupNorm, block.out_layers[0]), add=_embedded(block, emb, biases.inside))
    y, owed = ops.over_pixels(y.unflatten(1, tuple(size)), last.weight, biases.all_but_inside)
    skip = inputs[0]
    if isinstance(block.skip_connection, nn.Conv2d):
        weights = block.skip_connection.weight.flatten(1).split([part.shape[2] for part in inputs], dim=1)
        skip = F.linear(inputs[0], weights[0])
        for part, weight in zip(inputs[1:], weights[1:], strict=True):
            skip.flatten(0, 1).addmm_(part.flatten(0, 1), weight.t())
    y = ops.blend(skip, y, 1.0, 1.0, owed, out=y)
    del skip, inputs
    frames, stack, share = known.frames, block.time_stack, 1 - known.alphas[block.time_mixer]
    conv_1, conv_2 = cast(TemporalConv, stack.in_layers[2]), cast(TemporalConv, stack.out_layers[3])
    clips = max(known.wide // (3 * frames * y[0].numel()), 1) * frames
    added = _embedded(stack, emb, biases.time_inside)
    for part, add in zip(y.split(clips), added.split(clips), strict=True):
        norm = ops.moments(part).norm(cast(nn.GroupNorm, stack.in_layers[0]), frames, biases.behind)
        z = ops.over_frames(part, norm, conv_1, frames)
        norm = ops.moments(z).norm(cast(nn.GroupNorm, stack.out_layers[0]), frames, add)
        ops.over_frames(z, norm, conv_2, frames, onto=part, of=share)
    return pictures(y, size)


def _embedded(block: ResBlock, emb: Tensor, bias: Tensor) -> Tensor:
    """What is added after a residual block's first convolution, (n, c)."""
    return F.linear(emb, cast(nn.Linear, block.emb_layers[1]).weight, bias)


def _transformer(layer: SpatialVideoTransformer, x: Tensor, known: Constants) -> Tensor:
    """x comes with the bias of the last layer."""
    alpha, wide, ops = known.alphas[layer.time_mixer], known.wide, known.ops
    y = layer.proj_in(ops.group_norm([tokens(x)], layer.norm, add=-_bias(layer.proj_out), silu=False))
    for i, owed in enumerate(known.owed[layer]):
        spatial = cast(BasicTransformerBlock, layer.transformer_blocks[i])
        temporal = cast(VideoTransformerBlock, layer.time_stack[i])
        qkv = _qkv(ops.layer_norm(y, spatial.norm1), spatial.attn1)
        _plus(y, ops.attention(qkv, spatial.attn1.heads), spatial.attn1)
        del qkv
        _feed(ops, y, spatial.norm3, spatial.ff, owed.feed, wide)
        z = y.clone()
        if temporal.ff_in is not None and temporal.norm_in is not None:
            _feed(ops, z, temporal.norm_in, temporal.ff_in, owed.time_in, wide)
        qkv = _qkv(ops.layer_norm(z, temporal.norm1, owed.time), temporal.attn1)
        _plus(z, ops.temporal_attention(qkv, temporal.attn1.heads, known.frames), temporal.attn1)
        del qkv
        _feed(ops, z, temporal.norm3, temporal.ff, owed.time_feed, wide)
        y = ops.blend(y, z, alpha, 1 - alpha, owed.end, out=y)
    tokens(x).flatten(0, 1).addmm_(y.flatten(0, 1), cast(nn.Linear, layer.proj_out).weight.t())
    return x


def _plus(y: Tensor, x: Tensor, layer: CrossAttention) -> None:
    """y += x through the attention's last layer, without its bias."""
    y.flatten(0, 1).addmm_(x.flatten(0, 1), cast(nn.Linear, layer.to_out[0]).weight.t())


def _feed(ops: Ops, y: Tensor, norm: nn.LayerNorm, layer: FeedForward, owed: Tensor, most: int) -> None:
    """y += feed-forward of norm(y + owed), without its last bias; in parts, for it is up to eight times wider."""
    wide, narrow = cast(GEGLU, layer.net[0]).proj, cast(nn.Linear, layer.net[2])
    parts = math.ceil(len(y) * y.shape[1] * ops.gated_width(wide) / most)
    step = math.ceil(len(y) / parts)
    for part, add in zip(y.split(step), owed.split(step), strict=True):
        h = ops.gated(ops.layer_norm(part, norm, add).flatten(0, 1), wide)
        part.flatten(0, 1).addmm_(h, narrow.weight.t())


def _qkv(x: Tensor, layer: CrossAttention) -> Tensor:
    """Queries, keys and values from one product: (n, s, c) -> (n, s, 3 c)."""
    parts = _qkv_weights(layer)
    if not _side_by_side(parts):  # a parameter made in inference mode cannot change where it lies
        return F.linear(x, torch.cat(parts))
    return F.linear(x, parts[0].as_strided((3 * len(parts[0]), parts[0].shape[1]), parts[0].stride()))
