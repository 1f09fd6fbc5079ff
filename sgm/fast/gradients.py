"""Norms, gates, sums and attention over frames for training: Triton kernels, forward and backward.

Activations are x (n, s, c): n frames of s pixels with c channels, contiguous, of any floating dtype. What a backward
pass needs is computed in float32; what it keeps are its inputs and a few values for each frame and channel.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sgm.fast import gradient_kernels
from sgm.fast.moments import Moments
from sgm.fast.triton_ops import TritonMoments, attend_over_frames, attends, channel_block, frame_block, kernels

of_gradients: Any = gradient_kernels


class _GroupNorm(torch.autograd.Function):
    """SiLU of the group norm of x + add, or without SiLU. add: (n, c) or None; float32 statistics, result as x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, add: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, frames: int,
        silu: bool,
    ) -> Tensor:  # fmt: skip
        n, s, c = x.shape
        moments = cast(TritonMoments, TritonMoments(n, s, c, x.device).measure(x))
        one, zero = weight.new_ones(c), weight.new_zeros(c)
        factor, offset = moments.combine(one, zero, groups, eps, frames, add)  # to the normalized value
        out, width = torch.empty_like(x), channel_block(c)
        scale, shift = factor * weight, torch.addcmul(bias.float(), offset, weight.float())
        strides = (x.stride(0), *out.stride()[:2], c)
        grid = (math.ceil(s / 128), c // width, n)
        kernels.scale_shift[grid](x, scale, shift, out, *strides, s, 0, c, silu, False, 128, width, num_warps=8)
        ctx.save_for_backward(x, factor, offset, weight, bias, _sums(moments) if ctx.needs_input_grad[1] else None)
        ctx.settings = groups, frames, silu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, factor, offset, weight, bias, of_x = ctx.saved_tensors
        groups, frames, silu = ctx.settings
        (n, s, c), grad = x.shape, grad.contiguous()
        of_grad, of_product = _gradient_sums(x, grad, factor, offset, weight, bias, silu)
        per_group = torch.stack([of_grad, of_product]) * weight.float()
        means = per_group.view(2, n // frames, frames, groups, -1).mean((2, 4), keepdim=True) / s
        means = means.expand(-1, -1, frames, -1, c // groups).reshape(2, n, c)
        out, width = torch.empty_like(x), channel_block(c)
        arguments = (x, grad, factor, offset, weight, bias, *means, out, s, c, silu, 128, width)
        of_gradients.group_norm_gradient[(math.ceil(s / 128), c // width, n)](*arguments, num_warps=8)
        of_add = None
        if of_x is not None:  # the sum of `out` over the pixels
            values = torch.addcmul(s * offset, of_x, factor)
            of_add = factor * (of_grad * weight.float() - s * means[0] - values * means[1])
        of_weight = of_product.sum(0) if ctx.needs_input_grad[2] else None
        return out, of_add, of_weight, of_grad.sum(0) if ctx.needs_input_grad[3] else None, *[None] * 4


def _sums(moments: Moments) -> Tensor:
    """The sums over the pixels, (n, c)."""
    last = moments.pixels - (moments.mean.shape[1] - 1) * moments.tile
    return moments.mean.sum(1) * moments.tile + moments.mean[:, -1] * (last - moments.tile)


def _gradient_sums(
    x: Tensor, grad: Tensor, factor: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, silu: bool = False
) -> Tensor:
    """The sums over the pixels of the gradient, and of its product with x * factor + offset: (2, n, c) float32."""
    n, s, c = x.shape
    tiles, width = math.ceil(s / Moments.tile), channel_block(c)
    sums = x.new_empty((2, n, tiles, c), dtype=torch.float32)
    arguments = (x, grad, factor, offset, weight, bias, *sums, s, tiles, c, silu, Moments.tile, 64, width)
    of_gradients.gradient_sums[(tiles, c // width, n)](*arguments, num_warps=4)
    return sums.sum(2)


def group_norm(
    x: Tensor, module: nn.GroupNorm, frames: int = 1, add: Tensor | None = None, silu: bool = True
) -> Tensor:
    """The group norm of (x + add), statistics over `frames` consecutive frames, then SiLU if `silu`.

    x: (n, s, c), add: (n, c) or None.
    """
    settings = module.num_groups, module.eps, frames, silu
    return cast(Tensor, _GroupNorm.apply(x.contiguous(), add, module.weight, module.bias, *settings))


class _Residual(torch.autograd.Function):
    """a + factor (b + add). b and add may be None; factor: (n,) float32 or None for 1."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor | None, add: Tensor | None, factor: Tensor | None) -> Tensor:
        ctx.save_for_backward(*((b, add, factor) if ctx.needs_input_grad[3] else (None, None, factor)))
        ctx.dtypes = None if b is None else b.dtype, None if add is None else add.dtype
        return _residual_sum(a, b, add, factor, a.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (b, add, factor), (of_b, of_add) = ctx.saved_tensors, ctx.dtypes
        grad, needed = grad.contiguous(), ctx.needs_input_grad
        n, _, c = grad.shape
        found: list[Tensor | None] = [grad, None, None, None]
        if needed[1]:
            found[1] = grad.to(of_b) if factor is None else _residual_sum(None, grad, None, factor, of_b)
        if needed[2] or needed[3]:
            one, zero = grad.new_ones(1, dtype=torch.float32), grad.new_zeros(1, dtype=torch.float32)
            factors, offsets = one.expand(n, c).contiguous(), zero.expand(n, c).contiguous()
            given = (grad if b is None else b), grad, factors, offsets, factors[0], offsets[0]
            sums, products = _gradient_sums(*given)
            if needed[2]:
                found[2] = (sums if factor is None else sums * factor[:, None]).to(of_add)
            if needed[3]:
                terms = ([] if b is None else [products]) + ([] if add is None else [sums * add.float()])
                found[3] = torch.stack(terms).sum((0, 2))
        return tuple(found)


def _residual_sum(
    a: Tensor | None, b: Tensor | None, add: Tensor | None, factor: Tensor | None, dtype: torch.dtype
) -> Tensor:
    like = a if a is not None else cast(Tensor, b)
    (n, s, c), out = like.shape, torch.empty_like(like, dtype=dtype)
    width = channel_block(c)
    terms = [a, b, add, factor]
    arguments = (*(out if term is None else term.contiguous() for term in terms), out, s, c)
    there = [term is not None for term in terms]
    of_gradients.residual_sum[(math.ceil(s / 128), c // width, n)](*arguments, *there, 128, width, num_warps=8)
    return out


def residual(a: Tensor, b: Tensor | None, add: Tensor | None = None, factor: Tensor | None = None) -> Tensor:
    """a + factor (b + add): a, b (n, s, c), add (n, c), factor (n,) or None for 1; without b, a + factor add."""
    return cast(Tensor, _Residual.apply(a.contiguous(), None if b is None else b.contiguous(), add, factor))


class _Gate(torch.autograd.Function):
    """As the gate of `sgm.layers.attention`: its gradient takes its input's place."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        rows, c = both[..., 0].numel(), both.shape[-1] // 2
        out, width = both.new_empty(*both.shape[:-1], c), channel_block(c)
        kernels.geglu[(c // width, math.ceil(rows / 64))](both, out, rows, c, 64, width, num_warps=8)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (both,), rows = ctx.saved_tensors, grad[..., 0].numel()
        c, width = grad.shape[-1], channel_block(grad.shape[-1])
        arguments = (both, grad.contiguous(), rows, c, 64, width)
        of_gradients.geglu_gradient[(c // width, math.ceil(rows / 64))](*arguments, num_warps=8)
        torch.autograd.graph.increment_version(both)  # a second backward pass would read something else
        return both


def gate(both: Tensor) -> Tensor:
    """GEGLU's gating, x GELU(gate), of (..., 2 c), which holds x and gate -> (..., c)."""
    return cast(Tensor, _Gate.apply(both.contiguous()))


class _TemporalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.settings = heads, frames
        return attend_over_frames(q, k, v, heads, frames, q.shape[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (q, k, v), (heads, frames) = ctx.saved_tensors, ctx.settings
        n, s, c = q.shape
        d, found = c // heads, [torch.empty_like(q) for _ in range(3)]
        arguments = (q, k, v, grad.contiguous(), *found, frames, s, c, d**-0.5, frame_block(frames), d)
        of_gradients.temporal_attention_gradient[(s, heads, n // frames)](*arguments, num_warps=2)
        return *found, None, None


def temporal_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int) -> Tensor:
    """Attention among the frames of each pixel: (b t, s, c) each -> (b t, s, c). See `attends` for what it takes."""
    assert attends(q.shape[2] // heads, frames)
    return cast(Tensor, _TemporalAttention.apply(*(x.contiguous() for x in (q, k, v)), heads, frames))
