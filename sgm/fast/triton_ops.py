"""The operations as Triton kernels (`triton_kernels`), which compute in float32 and round once, to the dtype of x.

Shapes and dtypes that a kernel does not support go to plain torch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.fast import triton_kernels
from sgm.fast.moments import Measured, Moments, per_frame
from sgm.fast.torch_ops import TorchOps, add_product, qkv_weight
from sgm.layers.attention import CrossAttention
from sgm.layers.residual import TemporalConv

logger = logging.getLogger(__name__)
MAX_SCORES = 2**25  # that `wide_attention` holds at once, in float32
kernels: Any = triton_kernels  # to a type checker a kernel is a plain Python function, which has no grid


class TritonMoments(Moments):
    def measure(self, x: Tensor, start: int = 0) -> Moments:
        n, s, c = x.shape
        first, tiles, width = start // self.tile, math.ceil(s / self.tile), channel_block(c)
        mean, deviation = (values[:, first : first + tiles] for values in (self.mean, self.deviation))
        strides = (x.stride(0), *mean.stride()[:2])
        kernels.measure[(tiles, c // width, n)](x, mean, deviation, *strides, s, c, self.tile, 64, width, num_warps=4)
        return self

    def merge(self, mean: Tensor, deviation: Tensor, rows: int) -> Moments:
        """Store the moments that are given of each block of so many pixels, (n, blocks, c)."""
        n, blocks, c = mean.shape
        grid, width = (self.mean.shape[1], c // channel_block(c), n), channel_block(c)
        tensors = (mean, deviation, self.mean, self.deviation)
        kernels.merge[grid](*tensors, self.pixels, blocks, c, rows, self.tile, width, num_warps=4)
        return self

    def norm(self, module: nn.GroupNorm, frames: int = 1, add: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.combine(module.weight, module.bias, module.num_groups, module.eps, frames, add)

    def combine(
        self, weight: Tensor, bias: Tensor, groups: int, eps: float, frames: int, add: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `norm`, of a group norm with this weight and bias."""
        n, tiles, c = self.mean.shape
        size = c // groups
        add, width = per_frame(add, self.mean), kernels.triton.next_power_of_2(size)
        scale, shift = torch.empty_like(self.mean[:, 0]), torch.empty_like(self.mean[:, 0])
        tensors = (self.mean, self.deviation, add, weight, bias, scale, shift)
        height = min(max(kernels.triton.next_power_of_2(frames * tiles), 4), max(2048 // width, 1))
        sizes = (self.pixels, tiles, frames, c, size, eps, self.tile, height, width)
        warps = min(max(height * width // 256, 1), 8)
        kernels.combine[(n // frames, groups)](*tensors, add.stride(0), *sizes, num_warps=warps)
        return scale, shift


class TritonOps(TorchOps):
    """Operations for CUDA devices of compute capability 8.0 and above, and for Triton's interpreter on processors.

    dtypes: float16, bfloat16 and float32.
    """

    has_triton = True
    empty_moments = TritonMoments

    def __init__(self, device: torch.device) -> None:
        hopper = device.type != "cuda" or torch.cuda.get_device_capability(device)[0] == 9
        self._can_fuse = self.has_fp8 = hopper and kernels.describe is not None
        self._gluon: Any = None  # the kernels in Gluon, for Hopper cards alone, which no interpreter runs
        if hopper and device.type == "cuda":
            with suppress(Exception):  # Gluon is experimental: it is not in every Triton, nor the same in all
                self._gluon = import_module("sgm.fast.gluon_ops")

    def compile_ahead(self, device: torch.device, dtype: torch.dtype) -> None:
        if self._gluon and dtype in self._gluon.HALF:
            self._gluon.compile_ahead(device, dtype)

    def _by_gluon(self, launch: Callable[..., Tensor], *arguments: Any) -> Tensor | None:
        """What a kernel in Gluon gives; None where the installed Triton cannot run it, from then on."""
        try:
            return launch(*arguments)
        except Exception as error:  # of any kind: the other kernels compute the same
            if "out of memory" in str(error).lower() or (
                torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
            ):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            logger.warning("Gluon's kernels cannot be used here (%s); slower ones take their place.", reason)
            self._gluon = None
            return None

    def scale_shift(
        self, x: Tensor, scale: Tensor, shift: Tensor, silu: bool = True, out: Tensor | None = None, run: int = 0
    ) -> Tensor:
        """As `TorchOps.scale_shift`. run: after so many pixels, one of `out` is left out."""
        n, s, c = x.shape
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
        width = channel_block(c)
        grid = (math.ceil(s / 128), c // width, n)
        strides = (x.stride(0), *out.stride()[:2], scale.stride(0))
        kernels.scale_shift[grid](x, scale, shift, out, *strides, s, run, c, silu, run > 0, 128, width, num_warps=8)
        return out

    def normed_linear(self, x: Measured, norm: nn.GroupNorm, layer: nn.Linear, add: Tensor | None = None) -> Tensor:
        gluon, out = self._gluon, None
        if gluon and gluon.multiplies(x.x, layer.out_features):
            out = self._by_gluon(gluon.scaled_product, x.x, *x.moments.norm(norm, 1, add), layer)
        return super().normed_linear(x, norm, layer, add) if out is None else out

    def add_blended_product(
        self,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        weight_a: float,
        weight_b: float,
        add: Tensor | None,
        layer: nn.Linear,
    ) -> Measured:
        gluon, out = self._gluon, None
        if gluon and gluon.multiplies(a, layer.out_features, b, x):
            weights = float(weight_a), float(weight_b)
            out = self._by_gluon(gluon.add_blended_product, x, a, b, weights, add, layer.weight)
        if out is None:
            return super().add_blended_product(x, a, b, weight_a, weight_b, add, layer)
        return self.measured(out)

    def layer_norm(
        self, x: Tensor, module: nn.LayerNorm, add: Tensor | None = None, copy: Tensor | None = None
    ) -> Tensor:
        if x.shape[2] % 16:
            return super().layer_norm(x, module, add, copy)
        return self._layer_norm(x, module, per_frame(add, x), torch.empty_like(x), copy)

    def _layer_norm(
        self, x: Tensor, module: nn.LayerNorm, add: Tensor, out: Tensor, copy: Tensor | None = None
    ) -> Tensor:
        _, s, c = x.shape
        n, width = len(x), min(c & -c, 256)
        height = 1024 // width
        arguments = (x, add, module.weight, module.bias, out, copy, x.stride(0), add.stride(0), s, module.eps)
        warps = 8 if width == 128 else 4  # as measured: of 640 channels, and of 320 and 1280
        kernels.layer_norm[(math.ceil(s / height), n)](*arguments, c, height, width, num_warps=warps)
        return out

    def qkv(self, y: Tensor, norm: nn.LayerNorm, layer: CrossAttention, add: Tensor | None = None) -> Tensor:
        gluon, out = self._gluon, None
        if gluon and gluon.multiplies(y, 3 * layer.to_q.out_features):
            out = self._by_gluon(gluon.normed_product, y, add, norm, qkv_weight(layer), None)
        return super().qkv(y, norm, layer, add) if out is None else out

    def _feed_forward(
        self, y: Tensor, add: Tensor, norm: nn.LayerNorm, proj: nn.Linear, down: nn.Linear, out: Tensor | None
    ) -> None:
        gluon, hidden, onto = self._gluon, None, y if out is None else out
        if gluon and gluon.multiplies(y, down.in_features, onto):
            hidden = self._by_gluon(gluon.normed_product, y, add, norm, proj.weight, proj.bias, out)
        if hidden is None:
            return super()._feed_forward(y, add, norm, proj, down, out)
        add_product(onto, hidden, down)

    def attention(self, qkv: Tensor, heads: int) -> Tensor:
        gluon, out = self._gluon, None
        if gluon and gluon.attends(qkv, heads):
            out = self._by_gluon(gluon.attend, qkv, heads)
        return super().attention(qkv, heads) if out is None else out

    def _fused_normed_conv(
        self,
        x: Tensor,
        norm: tuple[Tensor, Tensor],
        conv: TemporalConv,
        residual: Tensor | None,
        factor: float,
        measure: bool,
        out: Tensor | None,
    ) -> Measured | None:
        gluon = self._gluon
        if not (gluon and gluon.convolves_normed(x, conv.weight, out if residual is None else residual)):
            return None
        b, t, s, c = x.shape
        measured = x.new_empty((2, b * t, math.ceil(s / gluon.BLOCK), c), dtype=torch.float32) if measure else None
        arguments = (x, *norm, conv.weight, residual, factor, measured, out)
        y = self._by_gluon(gluon.normed_conv_over_frames, *arguments)
        return None if y is None else self._merged(y, measured, gluon.BLOCK)

    def _fused_conv(
        self,
        y: Tensor,
        conv: TemporalConv,
        padding: int,
        residual: Tensor | None,
        factor: float,
        measure: bool,
        out: Tensor | None,
    ) -> Measured | None:
        gluon, (b, t, s, _) = self._gluon, y.shape
        if not (gluon and gluon.convolves(y, conv.weight, out if residual is None else residual)):
            return None
        n, c = b * (t + 2 * padding - 2), len(conv.weight)
        measured = y.new_empty((2, n, math.ceil(s / gluon.BLOCK), c), dtype=torch.float32) if measure else None
        out = self._by_gluon(gluon.conv_over_frames, y, conv.weight, padding, residual, factor, measured, out)
        return None if out is None else self._merged(out, measured, gluon.BLOCK)

    def _merged(self, x: Tensor, measured: Tensor | None, rows: int) -> Measured:
        """x, with its moments if they were measured of each block of so many rows.

        Not in `_by_gluon`, which would have a residual added again.
        """
        if measured is None:
            return self.measured(x)
        (n, s, c), (mean, deviation) = x.shape, measured
        return self.measured(x, TritonMoments(n, s, c, x.device).merge(mean, deviation, rows))

    def geglu(self, x: Tensor, proj: nn.Linear) -> Tensor:
        n, c = len(x), proj.out_features // 2
        if x.dtype == torch.float32:
            return super().geglu(x, proj)
        gluon = self._gluon
        if gluon and gluon.gates(x, proj) and (out := self._by_gluon(gluon.geglu, x, proj)) is not None:
            return out
        out = x.new_empty(n, c)
        if self._is_fused(proj):
            tensors = (x, [128, 64]), (proj.weight.view(2, c, -1), [2, 64, 64]), (out, [128, 64])
            x, weight, target = (kernels.describe(*entry) for entry in tensors)
            arguments = (x, weight, proj.bias, proj.bias, target, c, proj.in_features, False, 128, 64, 64)
            kernels.linear_geglu[(math.ceil(n / 128) * (c // 64),)](*arguments, num_warps=4, num_stages=2)
        else:
            y, width = F.linear(x, proj.weight, proj.bias), channel_block(c)
            kernels.geglu[(c // width, math.ceil(n / 64))](y, out, n, c, 64, width, num_warps=8)
        return out

    def geglu_width(self, proj: nn.Linear) -> int:
        return proj.out_features // 2 if self._is_fused(proj) else super().geglu_width(proj)

    def _is_fused(self, proj: nn.Linear) -> bool:
        """Whether `geglu` is one kernel, fused with the matrix product, without an intermediate. For Hopper GPUs."""
        fits = proj.in_features % 64 == 0 and proj.out_features % 128 == 0
        return self._can_fuse and fits and proj.weight.dtype != torch.float32

    def blend(
        self, a: Tensor, b: Tensor, weight_a: float, weight_b: float, add: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        n, s, c = a.shape
        out = torch.empty(a.shape, dtype=a.dtype, device=a.device) if out is None else out
        add, width = per_frame(add, a), channel_block(c)
        grid = (math.ceil(s / 128), c // width, n)
        strides = (a.stride(0), b.stride(0), out.stride(0), add.stride(0))
        kernels.blend[grid](a, b, add, out, float(weight_a), float(weight_b), *strides, s, c, 128, width, num_warps=8)
        return out

    def blend_measured(
        self, a: Tensor, b: Tensor, weight_a: float, weight_b: float, add: Tensor | None, out: Tensor | None = None
    ) -> Measured:
        n, s, c = a.shape
        out = torch.empty(a.shape, dtype=a.dtype, device=a.device) if out is None else out
        add, width, moments = per_frame(add, a), channel_block(c), TritonMoments(n, s, c, a.device)
        tiles = moments.mean.shape[1]
        tensors = (a, b, add, out, moments.mean, moments.deviation)
        strides = (a.stride(0), b.stride(0), out.stride(0), add.stride(0))
        sizes = (s, c, moments.tile, 64, width)
        grid = (tiles, c // width, n)
        kernels.blend_measured[grid](*tensors, float(weight_a), float(weight_b), *strides, *sizes, num_warps=4)
        return self.measured(out, moments)

    def _fused_spatial_conv(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None
    ) -> Measured | None:
        gluon, (n, h, w, _) = self._gluon, x.shape
        if not (gluon and gluon.convolves(x, weight, residual, out)):
            return None
        rows = min(w, gluon.BLOCK)
        measured = x.new_empty((2, n, h * w // rows, len(weight)), dtype=torch.float32)
        add = None if residual is None else bias  # else the kernel that reads the result adds it
        y = self._by_gluon(gluon.conv_over_pictures, x, weight, residual, add, out, measured)
        return None if y is None else self._merged(y, measured, rows)

    def _conv_over_pixels(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1
    ) -> tuple[Tensor, Tensor | None]:
        # The kernel that reads the result adds the bias; cuDNN would add it in another pass over memory.
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, None, stride, padding=1)
        return y.permute(0, 2, 3, 1).flatten(1, 2).contiguous(), bias

    def last_conv(self, x: Tensor, layer: nn.Conv2d) -> Tensor:
        # To so few channels, cuDNN convolves slowly: a product with all taps at once reads x once.
        (n, h, w, c), o = x.shape, layer.out_channels
        if o > 7 or x.dtype == torch.float32 or not x.is_cuda:
            return super().last_conv(x, layer)
        taps = layer.weight.permute(0, 2, 3, 1).reshape(9 * o, c)
        products = torch.bmm(taps.expand(n, -1, -1), x.flatten(1, 2).transpose(1, 2), out_dtype=torch.float32)
        out = x.new_empty(n, o, h, w)
        kernels.sum_taps[(math.ceil(h * w / 1024), o, n)](products, layer.bias, out, h, w, 1024, num_warps=4)
        return out

    def last_temporal_conv(self, x: Tensor, conv: TemporalConv) -> Tensor:
        # Of so few channels, too: one product with a banded matrix, from all frames to all frames.
        (t, c, h, w), (o, _, taps) = x.shape, conv.weight.shape[:3]
        before = taps // 2
        band = x.new_zeros(t, o, t + 2 * before, c)
        for tap, weight in enumerate(conv.weight.flatten(2).unbind(2)):
            band.diagonal(tap, 0, 2).copy_(weight[:, :, None])
        band = band[:, :, before : before + t].reshape(t * o, t * c)
        bias = cast(Tensor, conv.bias).repeat(t)[:, None]
        return torch.addmm(bias, band, x.reshape(t * c, h * w)).view(t, o, h, w)

    def fused_upsample_weight(self, weight: Tensor) -> Tensor:
        """The weight of a 2x2 convolution, (4 o, i, 2, 2): the 3x3 neighbours of an upsampled pixel are copies of four.

        For each of the four positions of an upsampled pixel (left or right, then above or below) it holds the sums of
        the weights that are applied to the same copy.
        """

        def halves(weight: Tensor, dim: int) -> Tensor:
            a, b, c = weight.unbind(dim)
            return torch.stack([torch.stack([a, b + c], dim), torch.stack([a + b, c], dim)])

        vertical = halves(weight.float().permute(0, 2, 3, 1), 1)  # (2, o, 2, 3, i)
        return halves(vertical, 3).flatten(0, 2).to(weight.dtype).permute(0, 3, 1, 2)

    def upsample_conv(self, x: Tensor, weight: Tensor, bias: Tensor) -> Measured:
        gluon, (n, h, w, _), c, padding = self._gluon, x.shape, len(weight) // 4, 1
        if gluon and gluon.upsamples(x, weight):
            rows = min(w, gluon.BLOCK)
            measured = x.new_empty((2, n, 4 * h * w // rows, c), dtype=torch.float32)
            y = self._by_gluon(gluon.conv_upsampled, x, weight, bias, measured)
            if y is not None:  # its blocks are not in the order of pixels, which no norm of whole frames asks for
                return self._merged(y, measured, rows)
        if h * w <= 256:  # there cuDNN pads by a kernel that took twice as long (9 x 16 pixels, H200)
            x, padding = F.pad(x, (0, 0, 1, 1, 1, 1)), 0
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=padding).permute(0, 2, 3, 1).contiguous()
        out, width = torch.empty((n, 2 * h, 2 * w, c), dtype=x.dtype, device=x.device), channel_block(c)
        grid = (c // width, math.ceil(w / 64), n * h)
        kernels.interleave[grid](y, bias, out, h, w, c, 64, width, num_warps=8)
        return self.measured(out.flatten(1, 2))

    def wide_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # With more than 256 channels, the library's attention takes 2.7 times as long as two of its products.
        (s, c), count = q.shape, len(k)
        if c <= 256 or q.dtype == torch.float32 or not q.is_cuda:
            return super().wide_attention(q, k, v)
        out, step = torch.empty_like(q), max(MAX_SCORES // count, 1)
        weights, sums = q.new_empty(min(step, s), count), torch.empty(s, 1, device=q.device)
        for rows in (slice(i, min(i + step, s)) for i in range(0, s, step)):
            scores = torch.mm(q[rows], k.t(), out_dtype=torch.float32)
            part, scale = weights[: len(scores)], math.log2(math.e) / math.sqrt(c)
            kernels.exponentials[(len(scores),)](scores, part, sums[rows], count, scale, 4096, num_warps=8)
            del scores  # before there are the next
            torch.div(torch.mm(part, v, out_dtype=torch.float32), sums[rows], out=out[rows])
        return out

    def temporal_attention(self, qkv: Tensor, heads: int, frames: int) -> Tensor:
        c = qkv.shape[2] // 3
        if not attends(c // heads, frames):
            return super().temporal_attention(qkv, heads, frames)
        return attend_over_frames(qkv, qkv[..., c:], qkv[..., 2 * c :], heads, frames, c)


def attends(d: int, frames: int) -> bool:
    """Whether the kernels of attention over frames take heads of d channels and so many frames."""
    return d in (16, 32, 64, 128) and frames <= 64


def attend_over_frames(q: Tensor, k: Tensor, v: Tensor, heads: int, frames: int, c: int) -> Tensor:
    """Attention among the frames of each pixel, of the first c channels of (b t, s, ...) each -> (b t, s, c)."""
    n, s, _ = q.shape
    out, block = q.new_empty(n, s, c), frame_block(frames)
    arguments = (q, k, v, out, frames, s, q.stride(1), c, (c // heads) ** -0.5 * math.log2(math.e), block, c // heads)
    kernels.temporal_attention[(s, heads, n // frames)](*arguments, num_warps=2)
    return out


def frame_block(frames: int) -> int:
    """The rows of a kernel's block for so many frames."""
    return max(kernels.triton.next_power_of_2(frames), 16)


def channel_block(c: int) -> int:
    """The widest block of channels, up to 64, that divides c."""
    return min(c & -c, 64)
