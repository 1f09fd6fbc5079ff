"""Fused: the layers of a network for training on a CUDA device, with fewer passes over memory than the readable ones.

Norms with their SiLU, gates, sums and attention over frames are kernels with a backward pass (`sgm.fast.gradients`);
activations stay in one layout, (b t, s, c), and in half precision. Results differ from the readable layers' by
rounding alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sgm.fast.conditioned import layer_bias
from sgm.fast.gradients import gate, group_norm, residual, temporal_attention
from sgm.fast.triton_ops import attends
from sgm.layers.attention import GEGLU, BasicTransformerBlock, CrossAttention, VideoTransformerBlock, maybe_recomputed
from sgm.layers.embeddings import timestep_embedding
from sgm.layers.residual import GroupNorm, ResBlock, TemporalConv
from sgm.layers.video import SpatialVideoTransformer, VideoResBlock


def fuse(network: nn.Module, frames: int) -> None:
    """Replace a UNet's layers by fused ones, in place, if the kernels take its heads and so many frames."""
    temporal = [m.attn1 for m in network.modules() if isinstance(m, VideoTransformerBlock)]
    if not all(attends(layer.to_q.out_features // layer.heads, frames) for layer in temporal):
        return
    for module in network.modules():
        if isinstance(module, ResBlock):
            for conv in _convolutions(module):
                conv.__class__ = _UNBIASED.get(type(conv), type(conv))
        module.__class__ = _FUSED.get(type(module), type(module))


def _convolutions(block: ResBlock) -> list[nn.Conv2d | TemporalConv]:
    every = block.in_layers[2], block.out_layers[3], block.skip_connection
    return [conv for conv in every if isinstance(conv, nn.Conv2d | TemporalConv)]


def rows(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (n, h w, c), a view of what is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def picture(x: Tensor, like: Tensor) -> Tensor:
    """(n, h w, c) -> (n, c, h, w), channels-last, a view. like: of that height and width."""
    return x.unflatten(1, like.shape[-2:]).permute(0, 3, 1, 2)


class _Unbiased(nn.Conv2d):
    """A convolution without its bias, which is added where its result is read."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, None)


class _UnbiasedTemporal(TemporalConv):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, None)


class _GroupNorm(GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        return picture(group_norm(rows(input), self, silu=False), input)


class _LayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):  # which would have it, and its result, in float32
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class _GEGLU(GEGLU):
    def forward(self, x: Tensor) -> Tensor:
        return gate(self.proj(x))


class _VideoResBlock(VideoResBlock):
    def forward(self, x: Tensor, emb: Tensor, frames: int, image_only_indicator: Tensor | None = None) -> Tensor:
        skip, last = rows(self.skip_connection(x)), layer_bias(self.temporal.out_layers[3])
        bias = torch.stack([layer_bias(conv) for conv in _convolutions(self)[1:]]).sum(0)
        y = residual(skip, _branch(self, rows(x), emb, 1, x), bias.expand(len(x), -1))
        z, share = _branch(self.temporal, y, emb, frames, x), 1 - self.time_mixer.alpha(image_only_indicator)
        y = residual(y, z, last.expand(len(x), -1), share.float().expand(len(x)))
        return picture(y, x)


def _branch(block: ResBlock, x: Tensor, emb: Tensor, frames: int, like: Tensor) -> Tensor:
    """What a residual block adds to its input, (n, h w, c), but for its last bias. like: a picture of that size."""

    def convolved(conv: nn.Module, x: Tensor) -> Tensor:
        if isinstance(conv, TemporalConv):
            return rearrange(conv(rearrange(x, "(b t) s c -> b c t s", t=frames)), "b c t s -> (b t) s c")
        return rows(conv(picture(x, like)))

    first, last = block.in_layers[2], block.out_layers[3]
    h = convolved(first, group_norm(x, cast(GroupNorm, block.in_layers[0]), frames))
    h = group_norm(h, cast(GroupNorm, block.out_layers[0]), frames, block.emb_layers(emb) + layer_bias(first))
    return convolved(last, block.out_layers[2](h))


class _BasicTransformerBlock(BasicTransformerBlock):
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = residual(x, self.attn1(self.norm1(x)), _token(self.attn2, x, context))
        return x + self.ff(self.norm3(x))


class _VideoTransformerBlock(VideoTransformerBlock):
    """Of x (b t, s, dim), and so without a copy in another layout."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, context: Tensor | None, frames: int, recompute: bool = False
    ) -> Tensor:
        if self.ff_in is not None and self.norm_in is not None:
            x = x + maybe_recomputed(recompute, self.ff_in, self.norm_in(x))
        layer, y = self.attn1, self.norm1(x)
        y = layer.to_out(temporal_attention(layer.to_q(y), layer.to_k(y), layer.to_v(y), layer.heads, frames))
        x = residual(x, y, _token(self.attn2, x, context).repeat_interleave(frames, 0))
        return x + self.ff(self.norm3(x))


def _token(layer: CrossAttention, x: Tensor, context: Tensor | None) -> Tensor:
    """Attention to a condition of one token, (n, 1, d) -> (n, c)."""
    assert context is not None
    assert context.shape[1] == 1, "more than one token"
    return layer(x, context)[:, 0]


class _SpatialVideoTransformer(SpatialVideoTransformer):
    def _over_pixels(self, depth: int, x: Tensor, context: Tensor | None) -> Tensor:
        if depth == 0:
            x = self.proj_in(group_norm(rows(x), self.norm, silu=False))
        return self.transformer_blocks[depth](x, context)

    def _over_frames(
        self,
        depth: int,
        x: Tensor,
        y: Tensor,
        context: Tensor | None,
        frames: int,
        image_only_indicator: Tensor | None,
        recompute: bool,
    ) -> Tensor:
        position = timestep_embedding(torch.arange(frames, device=x.device), self.in_channels).to(y.dtype)
        z = residual(y, None, self.time_pos_embed(position).repeat(len(y) // frames, 1))
        z = self.time_stack[depth](z, None if context is None else context[::frames], frames, recompute)
        y = self.time_mixer(y, z, image_only_indicator)
        if depth + 1 < len(self.time_stack):
            return y
        return picture(rows(x) + self.proj_out(y), x)


_UNBIASED: dict[type, Any] = {nn.Conv2d: _Unbiased, TemporalConv: _UnbiasedTemporal}
_FUSED: dict[type, Any] = {
    GroupNorm: _GroupNorm,
    nn.LayerNorm: _LayerNorm,
    GEGLU: _GEGLU,
    VideoResBlock: _VideoResBlock,
    BasicTransformerBlock: _BasicTransformerBlock,
    VideoTransformerBlock: _VideoTransformerBlock,
    SpatialVideoTransformer: _SpatialVideoTransformer,
}
