"""The operations in plain torch: `TorchOps` for CUDA devices and the base of the others, `ProcessorOps` for the rest.

Activations are x (n, s, c): n frames of s pixels with c channels. Pixels are contiguous, so that a channels-last
picture is such an x without a copy; frames may have any stride. The operations are stateless: threads may share them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.fast.moments import CACHE_VALUES, Moments, ProcessorMoments, per_frame
from sgm.layers.residual import TemporalConv


class TorchOps:
    """Operations between the matrix products and convolutions, for CUDA devices."""

    max_chunk = sys.maxsize  # the most values that the activations of a chunk may have, to stay in the caches

    def empty_moments(self, n: int, s: int, c: int, device: torch.device) -> Moments:
        """Moments of n frames of s pixels with c channels, to be measured in parts."""
        return Moments(n, s, c, device)

    def moments(self, x: Tensor) -> Moments:
        n, s, c = x.shape
        return self.empty_moments(n, s, c, x.device).measure(x)

    def scale_shift(
        self, x: Tensor, scale: Tensor, shift: Tensor, silu: bool = True, out: Tensor | None = None
    ) -> Tensor:
        """x * scale + shift, then SiLU if `silu`. scale, shift: (n, c) float32; out may be a view of a larger one."""
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
        torch.addcmul(shift[:, None], x, scale[:, None], out=out)
        return F.silu(out, inplace=True) if silu else out

    def group_norm(
        self,
        parts: Sequence[Tensor],
        module: nn.GroupNorm,
        frames: int = 1,
        add: Tensor | None = None,
        silu: bool = True,
    ) -> Tensor:
        """The group norm of (x + add), statistics over `frames` consecutive frames, then SiLU if `silu`.

        parts: x, split along its channels, so that a skip connection need not be concatenated. add: (n, c) or (c,).
        """
        x, c = parts[0], sum(part.shape[2] for part in parts)
        n, s, _ = x.shape
        moments, first = self.empty_moments(n, s, c, x.device), 0
        for part in parts:
            moments.measure(part, channel=first)
            first += part.shape[2]
        scale, shift = moments.norm(module, frames, add)
        out, first = torch.empty((n, s, c), dtype=x.dtype, device=x.device), 0
        for part in parts:
            own = slice(first, first + part.shape[2])
            self.scale_shift(part, scale[:, own], shift[:, own], silu, out[:, :, own])
            first = own.stop
        return out

    def layer_norm(self, x: Tensor, module: nn.LayerNorm, add: Tensor | None = None) -> Tensor:
        """The layer norm of (x + add). add: (n, c) or (c,)."""
        n, _, c = x.shape
        y = x if add is None else x + add.expand(n, c)[:, None]
        return F.layer_norm(y, (c,), module.weight, module.bias, module.eps).to(x.dtype)

    def gated(self, x: Tensor, proj: nn.Linear) -> Tensor:
        """GEGLU: the first half of proj(x) times the GELU of its second half. x: (rows, i) -> (rows, c)."""
        # Two products, since torch takes longer over halves that are not contiguous.
        halves = zip(proj.weight.chunk(2), proj.bias.chunk(2), strict=True)
        value, gate = (F.linear(x, weight, bias) for weight, bias in halves)
        return F.gelu(gate).mul_(value)

    def gated_width(self, proj: nn.Linear) -> int:
        """How many values a row `gated` holds at once, its result among them."""
        return proj.out_features

    def blend(
        self, a: Tensor, b: Tensor, of_a: float, of_b: float, add: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        """of_a * a + of_b * b + add. add: (n, c) or (c,); out may be a or b."""
        out = torch.empty(a.shape, dtype=a.dtype, device=a.device) if out is None else out
        if add is None and of_a == 1:
            return torch.add(a, b, alpha=of_b, out=out)
        return torch.add(torch.add(per_frame(add, a)[:, None].float(), a, alpha=of_a), b, alpha=of_b, out=out)

    def over_frames(
        self,
        x: Tensor,
        norm: tuple[Tensor, Tensor],
        conv: TemporalConv,
        frames: int,
        onto: Tensor | None = None,
        of: float = 1.0,
    ) -> Tensor:
        """A convolution over frames of SiLU(x * scale + shift), without its bias. x: (b t, s, c) -> (b t, s, c').

        norm: scale and shift. onto: a tensor to which `of` times the result is added, in place.
        """
        y = self.scale_shift(x, *norm).unflatten(0, (-1, frames)).permute(0, 3, 1, 2)
        y = self._temporal_conv(y, conv).permute(0, 2, 3, 1).flatten(0, 1)
        return y if onto is None else self.blend(onto, y, 1.0, of, None, out=onto)

    def _temporal_conv(self, x: Tensor, conv: TemporalConv) -> Tensor:
        """x: (b, c, t, s). As a film of one row of pixels: cuDNN takes up to five times as long over anything else."""
        return F.conv3d(x[:, :, :, None], conv.weight, padding=(conv.kernel_size[0] // 2, 0, 0)).squeeze(3)

    def over_pixels(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor | None]:
        """A 3x3 convolution, (n, h, w, c) -> (n, h w, c'), and the bias that is not yet added to it, if any.

        The caller hands that bias to the operation that reads the result, as its `add`.
        """
        y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1)
        return y.permute(0, 2, 3, 1).flatten(1, 2).contiguous(), None

    def for_doubled(self, weight: Tensor) -> Tensor:
        """The weight (o, i, 3, 3) of a convolution after nearest-neighbour upsampling, as `upsampled` takes it.

        Upsampling is a transposed convolution with ones; joined with the convolution it is one again: (i, o, 4, 4).
        """
        mirrored = weight.float().flip(2, 3).transpose(0, 1)
        shifted = [F.pad(mirrored, (right, 1 - right, below, 1 - below)) for right in (0, 1) for below in (0, 1)]
        return sum(shifted[1:], shifted[0]).to(weight.dtype, memory_format=torch.channels_last)

    def upsampled(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A 3x3 convolution of x upsampled to twice its size by nearest neighbours, (n, h, w, c) -> (n, 2 h, 2 w, c').

        weight: the convolution's, from `for_doubled` of the same device.
        """
        y = F.conv_transpose2d(x.permute(0, 3, 1, 2), weight, bias, stride=2, padding=1)
        return y.permute(0, 2, 3, 1).contiguous()

    def attention(self, qkv: Tensor, heads: int) -> Tensor:
        """Self-attention among the pixels of each frame. qkv: (n, s, 3 c), queries | keys | values -> (n, s, c)."""
        n, s, _ = qkv.shape
        q, k, v = qkv.view(n, s, 3, heads, -1).permute(2, 0, 3, 1, 4)  # each (n, heads, s, d)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, s, -1)

    def temporal_attention(self, qkv: Tensor, heads: int, frames: int) -> Tensor:
        """Self-attention among the frames of each pixel. qkv: (b t, s, 3 c) -> (b t, s, c)."""
        n, s, c = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        out = qkv.new_empty(n, s, c)
        for clip, to in zip(qkv.split(frames), out.split(frames), strict=True):  # each is read without a copy
            q, k, v = clip.view(frames, s, 3, heads, -1).permute(2, 1, 3, 0, 4)  # each (s, heads, t, d)
            to.copy_(F.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).flatten(2))
        return out


class ProcessorOps(TorchOps):
    """For processors, and for what torch runs on that is neither a processor nor CUDA, as Apple's GPUs (MPS)."""

    def __init__(self, max_chunk: int = CACHE_VALUES) -> None:
        self.max_chunk = max_chunk

    def empty_moments(self, n: int, s: int, c: int, device: torch.device) -> Moments:
        return ProcessorMoments(n, s, c, device)

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
        parts: Sequence[Tensor],
        module: nn.GroupNorm,
        frames: int = 1,
        add: Tensor | None = None,
        silu: bool = True,
    ) -> Tensor:
        x = parts[0]
        n, s, _ = x.shape
        if frames > 1 or s < 1024 or x.dtype == torch.float32:
            return super().group_norm(parts, module, frames, add, silu)
        # Torch's own is the fastest; its sums of squares are good for no more than half precision.
        x = torch.cat(list(parts), dim=2) if len(parts) > 1 else x
        x = x if add is None else x + add.to(x.dtype).expand(n, x.shape[2])[:, None]
        y = x.unflatten(1, (-1, math.gcd(s, 64))).permute(0, 3, 1, 2)  # as a channels-last picture
        y = F.group_norm(y, module.num_groups, module.weight, module.bias, module.eps)
        return (F.silu(y, inplace=True) if silu else y).permute(0, 2, 3, 1).flatten(1, 2)

    def blend(
        self, a: Tensor, b: Tensor, of_a: float, of_b: float, add: Tensor | None, out: Tensor | None = None
    ) -> Tensor:
        if add is None and of_a == 1:
            return super().blend(a, b, of_a, of_b, None, out)
        out = torch.empty(a.shape, dtype=a.dtype, device=a.device) if out is None else out
        add = per_frame(add, a)
        for i in range(len(a)):  # a frame at a time, whose float32 intermediate stays in the caches
            at = slice(i, i + 1)
            super().blend(a[at], b[at], of_a, of_b, add[at], out[at])
        return out

    def _temporal_conv(self, x: Tensor, conv: TemporalConv) -> Tensor:
        """As a picture t high and s wide, with a kernel (k, 1)."""
        return F.conv2d(x, conv.weight.squeeze(-1), padding=(conv.kernel_size[0] // 2, 0))
