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

from sgm.fast.kernels import (
    attention,
    blend,
    for_doubled,
    gated,
    group_norm,
    layer_norm,
    moments,
    over_frames,
    temporal_attention,
    upsampled,
)
from sgm.layers.attention import GEGLU, BasicTransformerBlock, CrossAttention, FeedForward, VideoTransformerBlock
from sgm.layers.embeddings import timestep_embedding
from sgm.layers.residual import ResBlock, TemporalConv, Upsample
from sgm.layers.video import AlphaBlender, SpatialVideoTransformer, VideoResBlock
from sgm.unet.video_unet import Block, VideoUNet

WIDE = 55 * 10**7  # keeps a large GPU busy, and needs no more memory than decoding does


@dataclass
class Constants:
    """What does not change from step to step, for n frames of whole clips.

    wide: how many values the widest activations may have at once; where they have more, they come in parts.
    label: the embedded vector condition (n, e), or None. vectors: of each transformer, for each of its spatial blocks
    and each of its temporal ones what attention to the context adds, (n, c), and the frames' positions (n, c).
    alphas: the spatial branch's share in each blend. doubled: the upsamplings' weights, `for_doubled`.
    """

    frames: int
    wide: int
    label: Tensor | None
    vectors: dict[SpatialVideoTransformer, tuple[list[Tensor], list[Tensor], Tensor]] = field(default_factory=dict)
    alphas: dict[AlphaBlender, float] = field(default_factory=dict)
    doubled: dict[Upsample, Tensor] = field(default_factory=dict)


def supports(unet: nn.Module, context: Tensor) -> TypeGuard[VideoUNet]:
    """Whether the fast path computes what `unet` does on this context (n, m, d): one token, and no dropout."""
    return isinstance(unet, VideoUNet) and not unet.training and context.shape[1] == 1


def constants(unet: VideoUNet, context: Tensor, y: Tensor | None, frames: int, wide: int = WIDE) -> Constants:
    """context: (n, 1, d), y: (n, a) or None, of n frames that are clips of `frames`, in the network's dtype."""
    found = Constants(frames, wide, None if y is None else unet.label_emb(y))
    context = context[:, 0]
    first = context[::frames].repeat_interleave(frames, 0)  # the temporal branch attends to the first frame's context
    for module in unet.modules():
        if isinstance(module, Upsample):
            found.doubled[module] = for_doubled(module.conv.weight)
        if isinstance(module, AlphaBlender):
            fixed = module.merge_strategy == "fixed"
            found.alphas[module] = float(module.mix_factor if fixed else torch.sigmoid(module.mix_factor))
        if isinstance(module, SpatialVideoTransformer):
            position = timestep_embedding(torch.arange(frames, device=context.device), module.in_channels)
            position = module.time_pos_embed(position.to(context.dtype)).repeat(len(context) // frames, 1)
            found.vectors[module] = (
                [_of_one_token(cast(BasicTransformerBlock, b).attn2, context) for b in module.transformer_blocks],
                [_of_one_token(cast(VideoTransformerBlock, b).attn2, first) for b in module.time_stack],
                position,
            )
    return found


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
    return conv(pictures(group_norm([tokens(x)], cast(nn.GroupNorm, norm)), x.shape[-2:]))


def tokens(x: Tensor) -> Tensor:
    """(n, c, h, w), channels-last -> (n, h w, c), the same memory if it is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def pictures(x: Tensor, size: Sequence[int]) -> Tensor:
    """(n, h w, c) -> (n, c, h, w), channels-last, the same memory. size: (h, w)."""
    return x.unflatten(1, tuple(size)).permute(0, 3, 1, 2)


def _block(block: Block, parts: list[Tensor], emb: Tensor, known: Constants) -> Tensor:
    """`parts` stand for their concatenation. They are taken out of the list, so that nobody holds them longer."""
    layers = list(block)
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, VideoResBlock):
            owed = cast(nn.Linear, after.proj_out).bias if isinstance(after, SpatialVideoTransformer) else None
            parts.append(_residual(layer, parts, emb, known, owed))
        elif isinstance(layer, SpatialVideoTransformer):
            parts.append(_transformer(layer, parts.pop(), known))
        elif isinstance(layer, Upsample):
            x = upsampled(parts.pop().permute(0, 2, 3, 1), known.doubled[layer]).permute(0, 3, 1, 2)
            parts.append(x.add_(cast(Tensor, layer.conv.bias)[:, None, None]))
            del x
        else:
            parts.append(layer(parts.pop()))
    return parts.pop()


def _residual(block: VideoResBlock, parts: list[Tensor], emb: Tensor, known: Constants, ahead: Tensor | None) -> Tensor:
    """Takes `parts`. `ahead`: bias (c,) of a later layer, that the result comes with."""
    size = parts[0].shape[-2:]
    first, last = cast(nn.Conv2d, block.in_layers[2]), cast(nn.Conv2d, block.out_layers[3])
    inputs = [tokens(part) for part in parts]
    parts.clear()
    y = group_norm(inputs, cast(nn.GroupNorm, block.in_layers[0]))
    y = tokens(F.conv2d(pictures(y, size), first.weight, padding=1))
    y = group_norm([y], cast(nn.GroupNorm, block.out_layers[0]), add=_added(block, emb))
    y = tokens(F.conv2d(pictures(y, size), last.weight, padding=1))
    skip, bias = inputs[0], cast(Tensor, last.bias)
    if isinstance(block.skip_connection, nn.Conv2d):
        weights = block.skip_connection.weight.flatten(1).split([part.shape[2] for part in inputs], dim=1)
        skip = F.linear(inputs[0], weights[0])
        for part, weight in zip(inputs[1:], weights[1:], strict=True):
            skip.flatten(0, 1).addmm_(part.flatten(0, 1), weight.t())
        bias = bias + cast(Tensor, block.skip_connection.bias)
    # The temporal branch adds itself to its own input by a product that cannot add a bias: that is there before it.
    frames, stack, share = known.frames, block.time_stack, 1 - known.alphas[block.time_mixer]
    conv_1, conv_2 = cast(TemporalConv, stack.in_layers[2]), cast(TemporalConv, stack.out_layers[3])
    early = share * cast(Tensor, conv_2.bias)
    early = early if ahead is None else early + ahead
    y = blend(skip, y, 1.0, 1.0, bias + early, out=y)
    del skip, inputs
    clips = max(known.wide // (3 * frames * y[0].numel()), 1) * frames
    for part, added in zip(y.split(clips), _added(stack, emb).split(clips), strict=True):
        norm = moments(part).norm(cast(nn.GroupNorm, stack.in_layers[0]), frames, -early)
        z = over_frames(part, norm, conv_1, frames)
        norm = moments(z).norm(cast(nn.GroupNorm, stack.out_layers[0]), frames, added)
        over_frames(z, norm, conv_2, frames, onto=part, of=share)
    return pictures(y, size)


def _added(block: ResBlock, emb: Tensor) -> Tensor:
    """What is added after a residual block's first convolution: its bias and the embedding, (n, c)."""
    return cast(nn.Module, block.emb_layers[1])(emb) + cast(nn.Conv2d, block.in_layers[2]).bias


def _transformer(layer: SpatialVideoTransformer, x: Tensor, known: Constants) -> Tensor:
    """x comes with the bias of the last layer."""
    spatial_vectors, temporal_vectors, position = known.vectors[layer]
    alpha, wide = known.alphas[layer.time_mixer], known.wide
    y = layer.proj_in(group_norm([tokens(x)], layer.norm, add=-cast(nn.Linear, layer.proj_out).bias, silu=False))
    for i, block in enumerate(layer.transformer_blocks):
        spatial, temporal = cast(BasicTransformerBlock, block), cast(VideoTransformerBlock, layer.time_stack[i])
        _plus(y, attention(_qkv(layer_norm(y, spatial.norm1), spatial.attn1), spatial.attn1.heads), spatial.attn1)
        owed = spatial_vectors[i] + cast(nn.Linear, spatial.attn1.to_out[0]).bias
        _feed(y, spatial.norm3, spatial.ff, owed, wide)
        owed = owed + cast(nn.Linear, spatial.ff.net[2]).bias

        z, owed_z = y.clone(), owed + position
        if temporal.ff_in is not None and temporal.norm_in is not None:
            _feed(z, temporal.norm_in, temporal.ff_in, owed_z, wide)
            owed_z = owed_z + cast(nn.Linear, temporal.ff_in.net[2]).bias
        qkv = _qkv(layer_norm(z, temporal.norm1, owed_z), temporal.attn1)
        _plus(z, temporal_attention(qkv, temporal.attn1.heads, known.frames), temporal.attn1)
        del qkv
        owed_z = owed_z + temporal_vectors[i] + cast(nn.Linear, temporal.attn1.to_out[0]).bias
        _feed(z, temporal.norm3, temporal.ff, owed_z, wide)
        owed_z = owed_z + cast(nn.Linear, temporal.ff.net[2]).bias
        y = blend(y, z, alpha, 1 - alpha, alpha * owed + (1 - alpha) * owed_z, out=y)
    tokens(x).flatten(0, 1).addmm_(y.flatten(0, 1), cast(nn.Linear, layer.proj_out).weight.t())
    return x


def _plus(y: Tensor, x: Tensor, layer: CrossAttention) -> None:
    """y += x through the attention's last layer, without its bias."""
    y.flatten(0, 1).addmm_(x.flatten(0, 1), cast(nn.Linear, layer.to_out[0]).weight.t())


def _feed(y: Tensor, norm: nn.LayerNorm, layer: FeedForward, owed: Tensor, most: int) -> None:
    """y += feed-forward of norm(y + owed), without its last bias; in parts, for it is eight times wider."""
    wide, narrow = cast(GEGLU, layer.net[0]).proj, cast(nn.Linear, layer.net[2])
    parts = math.ceil(len(y) * y.shape[1] * wide.out_features / most)
    step = math.ceil(len(y) / parts)
    for part, add in zip(y.split(step), owed.split(step), strict=True):
        h = gated(layer_norm(part, norm, add).flatten(0, 1), wide)
        part.flatten(0, 1).addmm_(h, narrow.weight.t())


def _qkv(x: Tensor, layer: CrossAttention) -> Tensor:
    """Queries, keys and values from one product: (n, s, c) -> (n, s, 3 c)."""
    parts = [layer.to_q.weight, layer.to_k.weight, layer.to_v.weight]
    size = parts[0].numel()
    if parts[0].is_inference():  # a parameter made in inference mode cannot change where it lies
        return F.linear(x, torch.cat(parts))
    if [part.storage_offset() for part in parts[1:]] != [size, 2 * size]:
        with torch.inference_mode(False):  # laid side by side, of which the parameters become parts
            for part, value in zip(parts, torch.cat([p.detach() for p in parts]).chunk(3), strict=True):
                part.data = value
    return F.linear(x, parts[0].as_strided((3 * len(parts[0]), parts[0].shape[1]), parts[0].stride()))
