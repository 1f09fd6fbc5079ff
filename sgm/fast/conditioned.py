"""A network for one condition: the same results as the readable modules, in fewer passes over memory.

Each residual stream is kept as `y + offset`. Matrix products are added to y (n, s, c) in place. Terms that are the same
at every pixel of a frame (biases, attention to a single token, positional embeddings) make up offset (n, c), which
every norm adds when it reads y. An offset depends on the condition and the layer alone, so it is computed once a job.
Activations stay channels-last, so that neither branch of a transformer copies them into another layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.fast.ops import Measured, Ops
from sgm.fast.shard import Shard
from sgm.fast.torch_ops import add_product
from sgm.layers.attention import BasicTransformerBlock, CrossAttention, VideoTransformerBlock
from sgm.layers.embeddings import timestep_embedding
from sgm.layers.residual import Downsample, ResBlock, TemporalConv, Upsample
from sgm.layers.video import SpatialVideoTransformer, VideoResBlock
from sgm.layers.views import ViewTimeTransformer
from sgm.unet.unet import Block, UNet

SHALLOW = 1  # how many of the output blocks, and of the input blocks, are always evaluated
Transformer = SpatialVideoTransformer | ViewTimeTransformer
Blend = tuple[Tensor, Tensor, float, float, Tensor]  # two branches, the weight of each, and what is added


class Biases:
    """Biases of a residual block, (c,), folded into additions that take place anyway.

    spatial, temporal: of a branch's first convolution and its embedding; the branch's second norm adds them. output: of
    the last spatial convolution, the skip connection and two layers that come later and are added without a bias: the
    last temporal convolution (weighted) and a following transformer's `proj_out`. minus_folded: minus those of the two
    layers; the temporal branch's first norm adds it, since they are no part of its input.
    """

    def __init__(self, block: VideoResBlock, next_layer: nn.Module | None, temporal_weight: float) -> None:
        self.spatial, self.temporal = (
            layer_bias(b.emb_layers[1]) + layer_bias(b.in_layers[2]) for b in (block, block.temporal)
        )
        last = layer_bias(block.out_layers[3])
        folded = temporal_weight * layer_bias(block.temporal.out_layers[3]).float()
        if isinstance(next_layer, Transformer):
            folded = folded + layer_bias(next_layer.proj_out)
        output = folded + last
        if isinstance(block.skip_connection, nn.Conv2d):
            output = output + layer_bias(block.skip_connection)
        self.minus_folded, self.output = -folded.to(last.dtype), output.to(last.dtype)


class Conditioned:
    """The network for one condition, on n frames of whole clips, or on a shard of one clip.

    alphas: the weight of the spatial branch in each blend. biases: of each residual block. c: what the network takes
    beside x, in its dtype: "crossattn" (n, 1, d), the single token of each frame, perhaps "vector" (n, a).
    check(): called before each block is evaluated, load(block): before its weights are read. other: another clip's, of
    which this one shares the fused weights. join: whether to hold all projections of the embedding once more, as one.
    ops: for the condition's device. divisible: whether a shard can be less than all of a clip's frames.
    """

    divisible = True

    def __init__(
        self,
        unet: UNet,
        alphas: Mapping[nn.Module, float],
        biases: Mapping[nn.Module, Biases],
        c: Mapping[str, Tensor],
        shard: Shard,
        max_values: int,
        check: Callable[[], None],
        load: Callable[[nn.Module], None],
        other: Conditioned | None,
        join: bool,
        ops: Ops,
    ) -> None:
        self.unet, self.alphas, self.biases, self.shard = unet, alphas, biases, shard
        self.check, self.load, self.ops = check, load, ops
        self.max_values = min(max_values, self.ops.max_chunk)
        self.kept: Any = None
        self.label = shard.cut(unet.label_emb(c["vector"])) if "vector" in c else None
        self.upsample_weights: dict[nn.Module, Tensor] = other.upsample_weights if other else {}
        self.offsets: dict[Transformer, list[list[Tensor]]] = {}
        self._minus_biases: dict[Transformer, Tensor] = {}  # of `proj_out`, which is in x
        self._positions: dict[int, Tensor] = {}  # sinusoidal embeddings of the frames' numbers, by channels
        for block in unet.blocks:
            load(block)
            for layer in block:
                if isinstance(layer, Transformer):
                    self.offsets[layer] = self.offsets_of(layer, c)
                    self._minus_biases[layer] = -layer_bias(layer.proj_out)
                elif isinstance(layer, Upsample) and not other:
                    self.upsample_weights[layer] = self.ops.fused_upsample_weight(layer.conv.weight)
        self._residual_blocks = [layer for block in unet.blocks for layer in block if isinstance(layer, VideoResBlock)]
        self._embedded: dict[VideoResBlock, tuple[Tensor, Tensor]] = {}  # see `_embed`
        self._projection = other._projection if other else self._joined_projections() if join else None

    def _joined_projections(self) -> tuple[Tensor, Tensor]:
        """The weight and the bias of all projections of the embedding as those of one, to be multiplied at once."""
        weights, biases = [], []
        for block in self._residual_blocks:
            weights += [_projection(block), _projection(block.temporal)]
            biases += [self.biases[block].spatial, self.biases[block].temporal]
        return torch.cat(weights), torch.cat(biases)

    def _embed(self, block: VideoResBlock, emb: Tensor) -> tuple[Tensor, Tensor]:
        """The projected embedding plus a bias, (n, c), added between each branch's convolutions: spatial, temporal."""
        if block in self._embedded:
            return self._embedded[block]
        biases = self.biases[block]
        spatial = F.linear(emb, _projection(block), biases.spatial)
        return spatial, F.linear(emb, _projection(block.temporal), biases.temporal)

    def offsets_of(self, layer: Transformer, c: Mapping[str, Tensor]) -> list[list[Tensor]]:
        """For each of a transformer's blocks, the offsets of its residual streams at each point where they are read.

        (n, c) each: at the spatial feed-forward; on the temporal branch at the first feed-forward, the attention and
        the last feed-forward; at the blend of both branches. Those of the temporal branch are of all frames, the others
        of the shard's. Summed in float32, rounded once.
        """
        assert isinstance(layer, SpatialVideoTransformer)
        cut, frames, alpha = self.shard.cut, self.shard.frames, self.alphas[layer.time_mixer]
        context = c["crossattn"][:, 0]
        first = context[::frames].repeat_interleave(frames, 0)  # the temporal branch's context: each clip's first frame
        if layer.in_channels not in self._positions:
            numbers = torch.arange(frames, device=context.device)
            self._positions[layer.in_channels] = timestep_embedding(numbers, layer.in_channels).to(context.dtype)
        position = layer.time_pos_embed(self._positions[layer.in_channels]).repeat(len(context) // frames, 1)
        offsets = []
        for spatial, temporal in zip(layer.transformer_blocks, layer.time_stack, strict=True):
            spatial, temporal = cast(BasicTransformerBlock, spatial), cast(VideoTransformerBlock, temporal)
            at_ff = to_one_token(spatial.attn2, context).float() + layer_bias(spatial.attn1.to_out[0])
            offset = at_ff + layer_bias(spatial.ff.net[2])
            *points, last = branch_offsets(temporal, offset + position, to_one_token(temporal.attn2, first))
            points = [cut(at_ff), *points, cut(alpha * offset + (1 - alpha) * last)]
            offsets.append([point.to(context.dtype) for point in points])
        return offsets

    def __call__(self, x: Tensor, c_noise: Tensor, whole: bool = True, keep: bool = False) -> Tensor:
        """(n, c, h, w) channels-last, (n,) -> (n, out_channels, h, w), or the shard's frames of it.

        keep: keep what enters the shallow output blocks. Not `whole`: take that instead of evaluating the deep blocks.
        """
        unet, x, c_noise = self.unet, self.shard.cut(x), self.shard.cut(c_noise)
        last = len(unet.output_blocks) - SHALLOW
        emb = unet.time_embed(timestep_embedding(c_noise, unet.model_channels).to(x.dtype))
        emb = emb if self.label is None else emb + self.label
        self.begin(emb)
        emb, size = F.silu(emb), x.shape[-2:]
        if self._projection:
            sizes = [len(_projection(block)) for block in self._residual_blocks for _ in range(2)]
            parts = F.linear(emb, *self._projection).split(sizes, 1)
            self._embedded = dict(zip(self._residual_blocks, zip(parts[::2], parts[1::2], strict=True), strict=True))
        y, skips = self.ops.measured(tokens(x)), []
        for block in unet.input_blocks[: None if whole else SHALLOW]:
            y, size = self.block(cast(Block, block), [y], size, emb)
            skips.append(y)
        if whole:
            y, size = self.block(unet.middle_block, [y], size, emb)
        for i, block in enumerate(unet.output_blocks[0 if whole else last :], 0 if whole else last):
            if i == last and keep:
                if whole and self.kept is None:
                    self.kept = torch.empty_like(y.x)  # one place, which recorded evaluations know
                y = self.ops.measured(self.kept.copy_(y.x) if whole else self.kept)
            parts = [y, skips.pop()]
            del y
            y, size = self.block(cast(Block, block), parts, size, emb)
        norm, _, conv = unet.out
        y = self.ops.group_norm([y], cast(nn.GroupNorm, norm))
        return self.ops.last_conv(y.unflatten(1, tuple(size)), cast(nn.Conv2d, conv))

    def begin(self, emb: Tensor) -> None:
        """Called first in each evaluation, with the network's embedding (n, e)."""

    def block(
        self, block: Block, parts: list[Measured], size: Sequence[int], emb: Tensor
    ) -> tuple[Measured, Sequence[int]]:
        """One block: (n, h w, c) -> (n, h' w', c') and (h', w'). size: (h, w).

        parts: x, split along its channels. The list is emptied, so that memory is freed early.
        """
        self.check()
        self.load(block)
        ops = self.ops
        for layer in block:
            if isinstance(layer, VideoResBlock):
                parts.append(self.residual(layer, parts, size, emb))
            elif isinstance(layer, Transformer):
                parts.append(self.transformer(layer, parts.pop(), size))
            elif isinstance(layer, Upsample):
                weight, bias = self.upsample_weights[layer], layer_bias(layer.conv)
                parts.append(ops.upsample_conv(parts.pop().x.unflatten(1, tuple(size)), weight, bias))
                size = [2 * side for side in size]
            else:
                conv = cast(nn.Conv2d, layer.op if isinstance(layer, Downsample) else layer)
                parts.append(ops.conv(parts.pop().x.unflatten(1, tuple(size)), conv))
                size = [(side - 1) // conv.stride[0] + 1 for side in size]
        return parts.pop(), size

    def residual(self, block: VideoResBlock, parts: list[Measured], size: Sequence[int], emb: Tensor) -> Measured:
        """A spatial and a temporal residual block, blended. The output includes a following transformer's last bias."""
        ops, shard, stack, biases = self.ops, self.shard, block.temporal, self.biases[block]
        inputs = list(parts)
        parts.clear()
        conv_1, conv_2 = cast(nn.Conv2d, block.in_layers[2]), cast(nn.Conv2d, block.out_layers[3])
        norm_1, norm_2 = cast(nn.GroupNorm, block.in_layers[0]), cast(nn.GroupNorm, block.out_layers[0])
        y, _ = ops.normed_conv(inputs, norm_1, conv_1.weight, size)
        add, embedded = self._embed(block, emb)
        skip = inputs[0].x
        if isinstance(block.skip_connection, nn.Conv2d):
            weights = block.skip_connection.weight.flatten(1).split([part.x.shape[2] for part in inputs], dim=1)
            skip = F.linear(skip, weights[0])
            for part, weight in zip(inputs[1:], weights[1:], strict=True):
                skip.flatten(0, 1).addmm_(part.x.flatten(0, 1), weight.t())
        del inputs
        y, _ = ops.normed_conv([y], norm_2, conv_2.weight, size, add, biases.output, skip)
        del skip
        conv_1, conv_2 = cast(TemporalConv, stack.in_layers[2]), cast(TemporalConv, stack.out_layers[3])
        temporal_weight = 1 - self.alphas[block.time_mixer]
        step = max(self.max_values // (3 * shard.frames * y.x[0].numel()), 1) * shard.frames
        blended = []
        for part, add in zip(y.split(step), embedded.split(step), strict=True):
            norm = shard.norm(part.moments, cast(nn.GroupNorm, stack.in_layers[0]), biases.minus_folded)
            z = ops.temporal_conv(part.x, norm, conv_1, shard)
            norm = shard.norm(z.moments, cast(nn.GroupNorm, stack.out_layers[0]), add)
            z = ops.temporal_conv(z.x, norm, conv_2, shard, residual=part.x, branch_weight=temporal_weight)
            blended.append(z)
        return y.updated(blended)

    def transformer(self, layer: Transformer, x: Measured, size: Sequence[int]) -> Measured:
        """The transformers of a layer, added to x in place. x includes proj_out's bias (see `Biases`)."""
        proj_in, proj_out = cast(nn.Linear, layer.proj_in), cast(nn.Linear, layer.proj_out)
        y = self.ops.normed_linear(x, layer.norm, proj_in, self._minus_biases[layer])
        return self.ops.add_blended_product(x.x, *self.attend(layer, y, size), proj_out)

    def attend(self, layer: Transformer, y: Tensor, size: Sequence[int]) -> Blend:
        """Attention over pixels and over frames: the operands of `Ops.blend` that give its result.

        y: (n, s, c), which may be changed. size: (h, w), of s pixels.
        """
        assert isinstance(layer, SpatialVideoTransformer)
        alpha, last = self.alphas[layer.time_mixer], None
        for spatial, temporal, offsets in zip(
            layer.transformer_blocks, layer.time_stack, self.offsets[layer], strict=True
        ):
            spatial, temporal = cast(BasicTransformerBlock, spatial), cast(VideoTransformerBlock, temporal)
            at_ff, *points, at_blend = offsets
            y = y if last is None else self.ops.blend(*last, out=y)
            self.over_pixels(y, spatial, at_ff)
            z = self.branch(y, temporal, points, self.among_frames)
            last = (y, self.shard.to_frames(z, y.shape[1]), alpha, 1 - alpha, at_blend)
        assert last is not None
        return last

    def among_frames(self, qkv: Tensor, heads: int) -> Tensor:
        """Attention among the frames of each pixel. qkv: (n, s, 3 c) -> (n, s, c)."""
        return self.ops.temporal_attention(qkv, heads, self.shard.frames)

    def over_pixels(self, y: Tensor, block: BasicTransformerBlock, at_ff: Tensor) -> None:
        """Attention over the pixels of each frame, and its feed-forward layer, added to y (n, s, c) in place."""
        attended = self.ops.attention(self.ops.qkv(y, block.norm1, block.attn1), block.attn1.heads)
        add_product(y, attended, block.attn1.to_out[0])
        del attended
        self.ops.feed_forward(y, at_ff, block.norm3, block.ff, self.max_values)

    def branch(
        self,
        y: Tensor,
        block: VideoTransformerBlock,
        points: Sequence[Tensor],
        attention: Callable[[Tensor, int], Tensor],
        add: Callable[[Tensor], object] = lambda z: None,
    ) -> Tensor:
        """A block on a branch from y (n, s, c). points: offsets of its stream, see `branch_offsets`.

        attention(qkv, heads): over its sequences. add(z): adds in place what the block attends to, where that is no
        offset.
        """
        at_ff_in, at_attention, at_ff = points
        if block.ff_in is None or block.norm_in is None:
            z = self.shard.to_pixels(y)
        elif self.shard.size == 1:  # y is copied as the norm reads it
            z = torch.empty_like(y)
            self.ops.feed_forward(y, at_ff_in, block.norm_in, block.ff_in, self.max_values, out=z)
        else:
            z = self.shard.to_pixels(y)
            self.ops.feed_forward(z, at_ff_in, block.norm_in, block.ff_in, self.max_values)
        parts = self.ops.qkv(z, block.norm1, block.attn1, at_attention)
        attended = attention(parts, block.attn1.heads)
        del parts
        add_product(z, attended, block.attn1.to_out[0])
        del attended
        add(z)
        self.ops.feed_forward(z, at_ff, block.norm3, block.ff, self.max_values)
        return z


def tokens(x: Tensor) -> Tensor:
    """(n, c, h, w), channels-last -> (n, h w, c), the same memory if it is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def layer_bias(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.bias)


def _projection(block: ResBlock) -> Tensor:
    """The weight that projects the embedding to a residual block's channels, (c, e)."""
    return cast(nn.Linear, block.emb_layers[1]).weight


def branch_offsets(block: VideoTransformerBlock, offset: Tensor, token: Tensor | float) -> list[Tensor]:
    """A branch's offsets at its first feed-forward, its attention, its last feed-forward and its end, (n, c) each.

    offset: where it begins, float32. token: what its attention to the condition gives (n, c).
    """
    points = [offset]
    if block.ff_in is not None:
        offset = offset + layer_bias(block.ff_in.net[2])
    points.append(offset)
    offset = offset + token + layer_bias(block.attn1.to_out[0])
    return [*points, offset, offset + layer_bias(block.ff.net[2])]


def to_one_token(layer: CrossAttention, token: Tensor) -> Tensor:
    """Attention to a single token (n, d): its projected value for every query, since softmax over one score is 1."""
    return layer.to_out(layer.to_v(token))
