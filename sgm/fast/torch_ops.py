"""Norms, convolutions and attention of the fast paths in plain torch: `TorchOps` for CUDA, `ProcessorOps` for the rest.

Activations are x (n, s, c): n frames of s pixels with c channels. Pixels are contiguous, so that a channels-last
picture is such an x without a copy; frames may have any stride. Threads may share the operations.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.fast.moments import CACHE_VALUES, Measured, Moments, ProcessorMoments, per_frame
from sgm.fast.shard import Shard
from sgm.layers.attention import GEGLU, CrossAttention, FeedForward
from sgm.layers.residual import TemporalConv, frames_first, frames_in_batch


def qkv_weights(layer: CrossAttention) -> list[Tensor]:
    return [layer.to_q.weight, layer.to_k.weight, layer.to_v.weight]


def contiguous(parts: list[Tensor]) -> bool:
    """Whether three tensors of one shape lie one after the other in one storage."""
    positions = [(part.untyped_storage()._cdata, part.storage_offset()) for part in parts]
    storage, start = positions[0]
    return positions == [(storage, start + i * parts[0].numel()) for i in range(3)]


def qkv_weight(layer: CrossAttention) -> Tensor:
    """The weights of queries, keys and values as one, (3 c, c)."""
    parts = qkv_weights(layer)
    if not contiguous(parts):  # parameters made in inference mode cannot be moved to another storage
        return torch.cat(parts)
    return parts[0].as_strided((3 * len(parts[0]), parts[0].shape[1]), parts[0].stride())


def add_product(y: Tensor, x: Tensor, layer: nn.Module) -> None:
    """y += a linear layer of x, in place, without the layer's bias. y: (n, s, c); x: (..., c')."""
    y.flatten(0, 1).addmm_(x.view(-1, x.shape[-1]), cast(nn.Linear, layer).weight.t())


class TorchOps:
    """Operations between the matrix products and convolutions, for CUDA devices."""

    max_chunk = sys.maxsize  # values that the activations of a chunk may have at most, to stay in the caches
    has_triton = False
    has_fp8 = False  # whether the device has products of float8 matrices
    empty_moments: type[Moments] = Moments  # (n, s, c, device): to be filled by `measure`

    def compile_ahead(self, device: torch.device, dtype: torch.dtype) -> None:
        """Ahead-of-time compilation of the kernels of networks of SVD's size that take long, if there are any."""

    def measured(self, x: Tensor, moments: Moments | None = None) -> Measured:
        """x, (n, s, c), whose moments are measured when they are first asked for, unless they are given."""
        return Measured(x, self.empty_moments, moments)

    def scale_shift(
        self, x: Tensor, scale: Tensor, shift: Tensor, silu: bool = True, out: Tensor | None = None
    ) -> Tensor:
        """x * scale + shift, then SiLU if `silu`. scale, shift: (n, c) float32; out may be a view of a larger one."""
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
        torch.addcmul(shift[:, None], x, scale[:, None], out=out)
        return F.silu(out, inplace=True) if silu else out

    def group_norm(
        self,
        parts: Sequence[Measured],
        module: nn.GroupNorm,
        frames: int = 1,
        add: Tensor | None = None,
        silu: bool = True,
    ) -> Tensor:
        """The group norm of (x + add), statistics over `frames` consecutive frames, then SiLU if `silu`.

        parts: x, split along its channels, so that a skip connection need not be concatenated. add: (n, c) or (c,).
        """
        scale, shift = Moments.joined([part.moments for part in parts], 2).norm(module, frames, add)
        out, start = parts[0].x.new_empty(*parts[0].x.shape[:2], scale.shape[1]), 0
        for x in (part.x for part in parts):
            channels = slice(start, start + x.shape[2])
            self.scale_shift(x, scale[:, channels], shift[:, channels], silu, out[:, :, channels])
            start = channels.stop
        return out

    def normed_linear(self, x: Measured, norm: nn.GroupNorm, layer: nn.Linear, add: Tensor | None = None) -> Tensor:
        """A linear layer of norm(x + add), of each frame by itself: (n, s, c) -> (n, s, c'). add: (n, c) or (c,)."""
        return layer(self.group_norm([x], norm, add=add, silu=False))

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
        """x += a linear layer of `blend(a, b, weight_a, weight_b, add)`, in place, without the layer's bias.

        x: (n, s, c'), a, b: (n, s, c), of which a may be changed.
        """
        add_product(x, self.blend(a, b, weight_a, weight_b, add, out=a), layer)
        return self.measured(x)

    def layer_norm(
        self, x: Tensor, module: nn.LayerNorm, add: Tensor | None = None, copy: Tensor | None = None
    ) -> Tensor:
        """The layer norm of (x + add). add: (n, c) or (c,). copy: contiguous, becomes a copy of x, since it is read."""
        n, _, c = x.shape
        if copy is not None:
            copy.copy_(x)
        y = x if add is None else x + add.expand(n, c)[:, None]
        return F.layer_norm(y, (c,), module.weight, module.bias, module.eps).to(x.dtype)

    def qkv(self, y: Tensor, norm: nn.LayerNorm, layer: CrossAttention, add: Tensor | None = None) -> Tensor:
        """Queries | keys | values of norm(y + add), from one product: (n, s, c) -> (n, s, 3 c)."""
        return F.linear(self.layer_norm(y, norm, add), qkv_weight(layer))

    def feed_forward(
        self,
        y: Tensor,
        offset: Tensor,
        norm: nn.LayerNorm,
        layer: FeedForward,
        max_values: int,
        out: Tensor | None = None,
    ) -> None:
        """y += the feed-forward layer of norm(y + offset), without its last bias. y: (n, s, c).

        In parts of `max_values` values, since the hidden layer has up to eight times as many channels. out: (n, s, c),
        contiguous, where the sum is written instead, so that y stays.
        """
        proj = cast(GEGLU, layer.net[0]).proj
        step = math.ceil(len(y) / math.ceil(len(y) * y.shape[1] * self.geglu_width(proj) / max_values))
        onto = y if out is None else out
        for part, add, target in zip(y.split(step), offset.split(step), onto.split(step), strict=True):
            down = cast(nn.Linear, layer.net[2])
            self._feed_forward(part, add, norm, proj, down, None if out is None else target)

    def _feed_forward(
        self, y: Tensor, add: Tensor, norm: nn.LayerNorm, proj: nn.Linear, down: nn.Linear, out: Tensor | None
    ) -> None:
        hidden = self.geglu(self.layer_norm(y, norm, add, out).flatten(0, 1), proj)
        add_product(y if out is None else out, hidden, down)

    def geglu(self, x: Tensor, proj: nn.Linear) -> Tensor:
        """GEGLU: the first half of proj(x) times the GELU of its second half. x: (rows, i) -> (rows, c)."""
        # Two matrix products, since torch is slower on halves that are not contiguous.
        halves = zip(proj.weight.chunk(2), proj.bias.chunk(2), strict=True)
        value, gate = (F.linear(x, weight, bias) for weight, bias in halves)
        return F.gelu(gate).mul_(value)

    def geglu_width(self, proj: nn.Linear) -> int:
        """How many values `geglu` holds at once for each row of x, its result included."""
        return proj.out_features

    def blend(
        self, a: Tensor, b: Tensor, weight_a: float, weight_b: float, add: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        """weight_a * a + weight_b * b + add. a, b: (n, s, c); add: (n, c) or (c,); out may be a or b."""
        out = torch.empty(a.shape, dtype=a.dtype, device=a.device) if out is None else out
        if add is None and weight_a == 1:
            return torch.add(a, b, alpha=weight_b, out=out)
        return torch.add(torch.add(per_frame(add, a)[:, None].float(), a, alpha=weight_a), b, alpha=weight_b, out=out)

    def blend_measured(
        self, a: Tensor, b: Tensor, weight_a: float, weight_b: float, add: Tensor | None, out: Tensor | None = None
    ) -> Measured:
        """As `blend`, where the result's moments will be asked for: a device may measure it as it is written."""
        return self.measured(self.blend(a, b, weight_a, weight_b, add, out))

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
        """A convolution over frames of SiLU(x * scale + shift), without its bias. x: (b t, s, c) -> (b t, s, c').

        x: the shard's frames of b clips; one clip where it is divided. norm: scale and shift, (b t, c). residual:
        `branch_weight` times the result is added to it, in place. measure: whether moments will be asked for. out:
        where the result is written, where there is no residual.
        """
        if shard.size == 1:
            clips = x.unflatten(0, (-1, shard.frames))
            fused = self._fused_normed_conv(clips, norm, conv, residual, branch_weight, measure, out)
            if fused is not None:
                return fused
        padding = conv.kernel_size[0] // 2
        halo, n = padding if shard.size > 1 else 0, len(x)
        y = torch.empty((n + 2 * halo, *x.shape[1:]), dtype=x.dtype, device=x.device)
        self.scale_shift(x, *norm, out=y[halo : halo + n])
        if halo:
            shard.fill_halo(y, halo)
        y = y.unflatten(0, (-1, len(y) if halo else shard.frames))
        fused = self._fused_conv(y, conv, padding - halo, residual, branch_weight, measure, out)
        if fused is not None:
            return fused
        y = self._conv_over_frames(y.permute(0, 3, 1, 2), conv, padding - halo).permute(0, 2, 3, 1).flatten(0, 1)
        # Of a single clip, a convolution's result may be laid out in another way.
        y = y.contiguous() if out is None else out.copy_(y)
        if residual is None:
            return self.measured(y)
        if not measure:
            return self.measured(self.blend(residual, y, 1.0, branch_weight, None, out=residual))
        return self.blend_measured(residual, y, 1.0, branch_weight, None, out=residual)

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
        """`temporal_conv` of whole clips x (b, t, s, c) by a single kernel; None where there is none."""
        return None

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
        """The convolution of y (b, t, s, c) by a kernel that adds, and measures, too; None where there is none."""
        return None

    def _conv_over_frames(self, x: Tensor, conv: TemporalConv, padding: int) -> Tensor:
        """x: (b, c, t, s). As a video one pixel high: cuDNN takes up to five times as long over any other layout."""
        return F.conv3d(x[:, :, :, None], conv.weight, padding=(padding, 0, 0)).squeeze(3)

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
        """A 3x3 convolution of SiLU(norm(x + add)) of frames of size (h, w): (n, h w, c'), and `bias` if not added yet.

        parts, add: as for `group_norm`. residual: as for `spatial_conv`.
        """
        y = self.group_norm(parts, norm, add=add).unflatten(1, tuple(size))
        return self.spatial_conv(y, weight, bias, residual=residual)

    def conv(self, x: Tensor, layer: nn.Conv2d) -> Measured:
        """A 3x3 convolution with its bias, perhaps strided, (n, h, w, c) -> (n, h' w', c')."""
        y, bias = self._conv_over_pixels(x, layer.weight, layer.bias, layer.stride[0])
        return self.measured(y) if bias is None else self.blend_measured(y, y, 1.0, 0.0, bias, out=y)

    def last_conv(self, x: Tensor, layer: nn.Conv2d) -> Tensor:
        """A 3x3 convolution with its bias, to few channels: (n, h, w, c) -> (n, c', h, w)."""
        return F.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, padding=1)

    def last_temporal_conv(self, x: Tensor, conv: TemporalConv) -> Tensor:
        """A convolution over the frames of a clip, with its bias, of few channels: (t, c, h, w) -> (t, c', h, w)."""
        return frames_in_batch(conv(frames_first(x, len(x))), *x.shape[-2:])

    def spatial_conv(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> tuple[Measured, Tensor | None]:
        """A 3x3 convolution, (n, h, w, c) -> (n, h w, c'), and the bias where it is not yet added to the result.

        The caller passes that bias as `add` to the operation that reads the result. residual: (n, h w, c'), is added to
        the result, and then the bias is, too. out: where to write that sum, perhaps over the residual.
        """
        fused = self._fused_spatial_conv(x, weight, bias, residual, out)
        if fused is not None:
            return fused, bias if residual is None else None
        y, bias = self._conv_over_pixels(x, weight, bias)
        return self._with_residual(y, bias, residual, out)

    def _with_residual(
        self, y: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None = None
    ) -> tuple[Measured, Tensor | None]:
        """What `spatial_conv` returns, of the convolution alone."""
        if residual is None:
            return self.measured(y), bias
        return self.blend_measured(residual, y, 1.0, 1.0, bias, out=y if out is None else out), None

    def _fused_spatial_conv(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None
    ) -> Measured | None:
        """`spatial_conv` by a kernel that adds, and measures, too; None where there is none. bias: for a residual."""
        return None

    def _conv_over_pixels(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1
    ) -> tuple[Tensor, Tensor | None]:
        """A 3x3 convolution, (n, h, w, c) -> (n, h' w', c'), and the bias where it is not yet added."""
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding=1)
        return y.permute(0, 2, 3, 1).flatten(1, 2).contiguous(), None

    def fused_upsample_weight(self, weight: Tensor) -> Tensor:
        """The weight for `upsample_conv`, of a 3x3 convolution (o, i, 3, 3) that follows nearest-neighbour upsampling.

        Upsampling is a transposed convolution with ones, and so are the two layers fused: (i, o, 4, 4).
        """
        mirrored = weight.float().flip(2, 3).transpose(0, 1)
        shifted = [F.pad(mirrored, (right, 1 - right, below, 1 - below)) for right in (0, 1) for below in (0, 1)]
        return sum(shifted[1:], shifted[0]).to(weight.dtype, memory_format=torch.channels_last)

    def upsample_conv(self, x: Tensor, weight: Tensor, bias: Tensor) -> Measured:
        """Nearest-neighbour upsampling to twice the size, then a 3x3 convolution: (n, h, w, c) -> (n, 4 h w, c').

        weight: from `fused_upsample_weight` of the same device. Moments measured already may be of other pixels than
        those of their tiles, but over a whole frame they are right.
        """
        y = F.conv_transpose2d(x.permute(0, 3, 1, 2), weight, bias, stride=2, padding=1)
        return self.measured(y.permute(0, 2, 3, 1).contiguous().flatten(1, 2))

    def attention(self, qkv: Tensor, heads: int) -> Tensor:
        """Self-attention among the pixels of each frame. qkv: (n, s, 3 c), queries | keys | values -> (n, s, c)."""
        n, s, _ = qkv.shape
        q, k, v = qkv.view(n, s, 3, heads, -1).permute(2, 0, 3, 1, 4)  # each (n, heads, s, d)
        return self._attention(q, k, v).transpose(1, 2).reshape(n, s, -1)

    def wide_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Single-head attention, of a head with many channels: (s, c) each -> (s, c)."""
        return self._attention(q[None, None], k[None, None], v[None, None])[0, 0]

    def temporal_attention(self, qkv: Tensor, heads: int, frames: int) -> Tensor:
        """Self-attention among the frames of each pixel. qkv: (b t, s, 3 c) -> (b t, s, c)."""
        n, s, c = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        out = qkv.new_empty(n, s, c)
        for clip, clip_out in zip(qkv.split(frames), out.split(frames), strict=True):  # views: no clip is copied
            q, k, v = clip.view(frames, s, 3, heads, -1).permute(2, 1, 3, 0, 4)  # each (s, heads, t, d)
            clip_out.copy_(self._attention(q, k, v).permute(2, 0, 1, 3).flatten(2))
        return out

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(d)) v of n sequences with h heads: (n, h, s, d) each -> (n, h, s, d)."""
        return F.scaled_dot_product_attention(q, k, v)


class ProcessorOps(TorchOps):
    """Operations for processors (CPUs), and for devices other than CUDA, such as Apple's GPUs (MPS)."""

    empty_moments = ProcessorMoments

    def __init__(self, max_chunk: int = CACHE_VALUES) -> None:
        self.max_chunk = max_chunk

    def scale_shift(
        self, x: Tensor, scale: Tensor, shift: Tensor, silu: bool = True, out: Tensor | None = None
    ) -> Tensor:
        if x.dtype == torch.float32:
            return super().scale_shift(x, scale, shift, silu, out)
        y = x.float()  # only on CUDA does `addcmul` convert as it computes
        y = super().scale_shift(y, scale, shift, silu, y)
        return y.to(x.dtype) if out is None else out.copy_(y)

    def group_norm(
        self,
        parts: Sequence[Measured],
        module: nn.GroupNorm,
        frames: int = 1,
        add: Tensor | None = None,
        silu: bool = True,
    ) -> Tensor:
        x = parts[0].x
        n, s, _ = x.shape
        if frames > 1 or s < 1024 or x.dtype == torch.float32:
            return super().group_norm(parts, module, frames, add, silu)
        # torch's own group norm is the fastest; its sums of squares are exact enough for half precision alone.
        x = torch.cat([part.x for part in parts], dim=2) if len(parts) > 1 else x
        x = x if add is None else x + add.to(x.dtype).expand(n, x.shape[2])[:, None]
        y = x.unflatten(1, (-1, math.gcd(s, 64))).permute(0, 3, 1, 2)  # a channels-last picture
        y = F.group_norm(y, module.num_groups, module.weight, module.bias, module.eps)
        return (F.silu(y, inplace=True) if silu else y).permute(0, 2, 3, 1).flatten(1, 2)

    def blend(
        self, a: Tensor, b: Tensor, weight_a: float, weight_b: float, add: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        if add is None and weight_a == 1:
            return super().blend(a, b, weight_a, weight_b, None, out)
        out = torch.empty(a.shape, dtype=a.dtype, device=a.device) if out is None else out
        add = per_frame(add, a)
        for i in range(len(a)):  # a frame at a time, whose float32 intermediate stays in the caches
            frame = slice(i, i + 1)
            super().blend(a[frame], b[frame], weight_a, weight_b, add[frame], out[frame])
        return out

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.dtype != torch.bfloat16 or q.device.type != "cpu":
            return super()._attention(q, k, v)
        # In bfloat16, whole products and a softmax of parts that stay in the caches take two thirds of torch's time.
        s, scale = k.shape[2], k.shape[3] ** -0.5
        out = torch.empty(q.shape, dtype=q.dtype)
        rows = max(self.max_chunk // s, 1)  # queries whose scores fit
        heads = max(rows // s, 1)
        parts = (x.flatten(0, 1).split(heads) for x in (q, k, v, out))
        for queries, keys, values, results in zip(*parts, strict=True):
            for query, result in zip(queries.split(rows, dim=1), results.split(rows, dim=1), strict=True):
                scores = query.new_empty(*query.shape[:2], s)
                torch.baddbmm(scores, query, keys.transpose(1, 2), beta=0, alpha=scale, out=scores)
                result.copy_(torch.bmm(scores.softmax(-1), values))
        return out

    def _conv_over_frames(self, x: Tensor, conv: TemporalConv, padding: int) -> Tensor:
        """x: (b, c, t, s). As a 2D convolution of a picture t high and s across, with a kernel (k, 1)."""
        return F.conv2d(x, conv.weight.squeeze(-1), padding=(padding, 0))
