"""Fp8Ops: the largest products and convolutions of a network in float8 (e4m3).

What enters them comes from a norm, or from GEGLU after one, and so is of the order of 1: e4m3 holds that from 2^-6 to
448 with three binary digits as it is. Weights have a scale for each row (cf. Micikevicius et al. 2022,
arXiv:2209.05433). Sums are float32, results and residual streams keep the network's dtype. Attention stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sgm.fast.moments import Measured, Moments, per_frame
from sgm.fast.shard import Shard
from sgm.fast.torch_ops import qkv_weight
from sgm.fast.triton_ops import TritonOps, kernels
from sgm.layers.attention import CrossAttention
from sgm.layers.residual import TemporalConv

FP8 = torch.float8_e4m3fn


class Fp8Ops(TritonOps):
    """As `TritonOps`, for clips of one network: weights are converted once, and must not change meanwhile."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._weights: dict[Tensor | nn.Module, tuple[Tensor, Tensor]] = {}

    def _converted(self, owner: Tensor | nn.Module) -> tuple[Tensor, Tensor]:
        """A weight (c', c, ...) as (taps c', c) in float8, and the scale of each of the c' rows, float32.

        owner: the weight, or the attention layer whose `qkv_weight` it is.
        """
        if owner not in self._weights:
            weight = qkv_weight(owner) if isinstance(owner, CrossAttention) else cast(Tensor, owner)
            scale = (weight.flatten(1).abs().amax(1).float() / 448).clamp(min=1e-12)
            rows = weight.flatten(2).movedim(2, 0) if weight.ndim > 2 else weight
            converted = (rows / scale[:, None]).to(FP8).reshape(-1, weight.shape[1]).contiguous()
            self._weights.setdefault(owner, (converted, scale))  # another thread may have been faster
        return self._weights[owner]

    def _product(
        self,
        x: Tensor,
        weight: Tensor | nn.Module,
        out: Tensor,
        factor: float = 1.0,
        residual: Tensor | None = None,
        segments: int = 1,
        rows: int | None = None,
        down: int = 0,
        across: int = 0,
        run: int = 0,
    ) -> Tensor:
        """out = factor * (x times weight) + residual. x: (..., c) float8; the rest: see the kernel `product_fp8`."""
        matrix, scale = self._converted(weight)
        c, inner, taps = len(scale), x.shape[-1], len(matrix) // len(scale)
        x = x.view(-1, inner)
        rows, segment = rows or len(x), len(x) // segments
        height, width, depth, warps, stages = _tile(c, inner, taps)
        base = out if residual is None else residual
        described = kernels.describe(x, [height, depth]), kernels.describe(matrix, [width, depth])
        grid = (math.ceil(rows / height) * math.ceil(c / width), segments)
        sizes = (rows, segment, down, across, run, c, float(factor))
        constants = (inner, taps, run > 0, residual is not None, height, width, depth)
        kernels.product_fp8[grid](*described, scale, base, out, *sizes, *constants, num_warps=warps, num_stages=stages)
        return out

    def _normed(self, y: Tensor, norm: nn.LayerNorm, add: Tensor | None) -> Tensor:
        """The layer norm of y + add, float8."""
        return self._layer_norm(y, norm, per_frame(add, y), torch.empty(y.shape, dtype=FP8, device=y.device))

    def qkv(self, y: Tensor, norm: nn.LayerNorm, layer: CrossAttention, add: Tensor | None = None) -> Tensor:
        if y.shape[2] % 16 or y.shape[2] <= 320:  # so short a product is faster in half precision
            return super().qkv(y, norm, layer, add)
        inner = layer.to_q.out_features
        return self._product(self._normed(y, norm, add), layer, y.new_empty(*y.shape[:2], 3 * inner))

    def _feed_forward(
        self, y: Tensor, add: Tensor, norm: nn.LayerNorm, proj: nn.Linear, down: nn.Linear, out: Tensor | None
    ) -> None:
        if proj.in_features % 16 or proj.out_features % 256:
            return super()._feed_forward(y, add, norm, proj, down, out)
        x, c = self._normed(y, norm, add).flatten(0, 1), proj.out_features // 2
        hidden = torch.empty((len(x), c), dtype=FP8, device=y.device)
        matrix, scale = self._converted(proj.weight)
        height, width, depth, warps, stages = 128, 64, 64, 4, 4
        tensors = (x, [height, depth]), (matrix.view(2, c, -1), [2, width, depth]), (hidden, [height, width])
        x, matrix, target = (kernels.describe(*entry) for entry in tensors)
        arguments = (x, matrix, scale, proj.bias, target, c, proj.in_features, True, height, width, depth)
        grid = (math.ceil(len(hidden) / height) * (c // width),)
        kernels.linear_geglu[grid](*arguments, num_warps=warps, num_stages=stages)
        self._product(hidden, down.weight, y if out is None else out, residual=y)  # the sum may lie elsewhere than y

    def normed_conv(
        self,
        parts: Sequence[Measured],
        norm: nn.GroupNorm,
        weight: Tensor,
        size: Sequence[int],
        add: Tensor | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> tuple[Measured, Tensor | None]:
        c = norm.num_channels
        if c % 16:
            return super().normed_conv(parts, norm, weight, size, add, bias, residual)
        (n, s, _), (h, w), x = parts[0].x.shape, size, parts[0].x
        scale, shift = Moments.joined([part.moments for part in parts], 2).norm(norm, 1, add)
        # A row of zeros above and below, and one pixel between rows, which is to the right of one and left of the next.
        padded = torch.empty((n, (h + 2) * (w + 1) + 1, c), dtype=FP8, device=x.device)
        above, inside, below = padded.split([w + 2, h * (w + 1), w + 1], dim=1)
        for zeros in above, inside.unflatten(1, (h, w + 1))[:, :, w], below:
            zeros.zero_()
        start = 0
        for part in parts:
            channels = slice(start, start + part.x.shape[2])
            self.scale_shift(part.x, scale[:, channels], shift[:, channels], True, inside[:, :, channels], run=w)
            start = channels.stop
        out = x.new_empty(n, s, len(weight))
        self._product(padded, weight, out, segments=n, rows=h * (w + 1), down=w + 1, across=1, run=w)
        return self._with_residual(out, bias, residual)

    def temporal_conv(
        self,
        x: Tensor,
        norm: tuple[Tensor, Tensor],
        conv: TemporalConv,
        shard: Shard,
        residual: Tensor | None = None,
        branch_weight: float = 1.0,
        measure: bool = True,
        out: Tensor | None = None,
    ) -> Measured:
        n, s, c = x.shape
        if c % 16 or shard.size > 1 or conv.kernel_size[0] != 3 or out is not None:
            return super().temporal_conv(x, norm, conv, shard, residual, branch_weight, measure, out)
        clips, frames = n // shard.frames, shard.frames
        padded = torch.empty((clips, frames + 2, s, c), dtype=FP8, device=x.device)
        padded[:, 0], padded[:, -1] = 0.0, 0.0
        scales = (value.unflatten(0, (clips, frames)) for value in norm)
        for part, scale, shift, target in zip(x.unflatten(0, (clips, frames)), *scales, padded, strict=True):
            self.scale_shift(part, scale, shift, True, target[1:-1])
        out = x.new_empty(n, s, len(conv.weight)) if residual is None else residual
        self._product(padded, conv.weight, out, branch_weight, residual, segments=clips, rows=frames * s, across=s)
        return self.measured(out)


def _tile(c: int, inner: int, taps: int) -> tuple[int, int, int, int, int]:
    """Rows, columns, depth, warps and stages of a program of `product_fp8`: the fastest measured on an H100."""
    if min(c, inner) >= 1280:
        return 128, 256, 128, 8, 3
    if taps > 1:
        return 256, 128, 64, 8, 3
    return (128, 64, 128, 4, 4) if c <= 320 else (128, 128, 64, 4, 4)
