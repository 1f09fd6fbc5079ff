"""What stands between matrix products and convolutions, each in as few passes over memory as there can be.

Everywhere x is (n, s, c): n frames of s pixels with c channels. Pixels are contiguous, so that a channels-last picture
is x without a copy; frames may lie apart. Where Triton compiles for the device these are its kernels, which compute in
float32 and round once, to x's dtype; anywhere else the same in plain torch.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.layers.residual import TemporalConv

logger = logging.getLogger(__name__)
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own way to try kernels on a processor
compiled: Any = None
if torch.cuda.is_available() or _INTERPRETED:  # else the import is time for nothing
    with suppress(ImportError):  # Windows
        compiled = import_module("sgm.fast.triton_kernels")

NEAR = 2**22  # values that a processor's caches hold
_RUN = 1024  # pixels over which moments are taken at a time


def has_kernels(x: Tensor) -> bool:
    """Whether the Triton kernels run for this tensor; on the `meta` device they do, and compute nothing."""
    if compiled is None or x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return False
    card = _card(x)
    if card is not None:
        return not _INTERPRETED and _runs(card)
    return x.is_meta or (_INTERPRETED and _runs(x.device))


def _card(x: Tensor) -> torch.device | None:
    """The CUDA device of this tensor; on the `meta` device the one that it stands for."""
    if x.is_meta and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return x.device if x.is_cuda else None


@cache
def _runs(device: torch.device) -> bool:
    if device.type == "cuda" and (torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0)):
        return False
    # One of them is tried, for Triton may lack something of the system, a C compiler above all. Whoever watches torch's
    # functions, as a job that may be cancelled, is not asked: what they raise would be taken for Triton's.
    with torch._C.DisableTorchFunction():
        x = torch.zeros(1, 1, 64, dtype=torch.float16, device=device)
        try:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                compiled.blend[(1, 1, 1)](x, x, x, x, 1.0, 1.0, 64, 64, 64, 64, 1, 64, 128, 64, num_warps=8)
        except Exception as error:  # whatever it is, there is another way
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            logger.warning("Triton cannot be used here (%s); plain torch takes its place.", reason)
            return False
    return True


def channels_last(module: nn.Module) -> None:
    """Have the weights of convolutions lie in memory as they are read, in place."""
    with torch.inference_mode(False):
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | TemporalConv) and not layer.weight.is_inference():
                form = torch.channels_last_3d if isinstance(layer, TemporalConv) else torch.channels_last
                layer.weight.data = layer.weight.detach().contiguous(memory_format=form)


class Moments:
    """Mean and squared deviation of each channel over runs of pixels: what any group norm can be computed from.

    For n frames of s pixels; parts of the pixels may be measured one after another, each from a multiple of 1024 on.
    """

    run = _RUN

    def __init__(self, n: int, s: int, c: int, device: torch.device) -> None:
        self.pixels = s
        self.mean, self.deviation = torch.empty((2, n, math.ceil(s / _RUN), c), device=device)

    def measure(self, x: Tensor, start: int = 0, channel: int = 0) -> Moments:
        """x: (n, part, c), the pixels from `start` on, of the channels from `channel` on."""
        n, s, c = x.shape
        offset, runs = start // _RUN, math.ceil(s / _RUN)
        mean, deviation = (y[:, offset : offset + runs, channel : channel + c] for y in (self.mean, self.deviation))
        if has_kernels(x):
            width = _divisor(c)
            strides = (x.stride(0), *mean.stride()[:2])
            arguments = (x, mean, deviation, *strides, s, c, _RUN, 64, width)
            _run(compiled.measure, (runs, c // width, n), *arguments, num_warps=4)
        else:
            first, whole = 0, s - s % _RUN
            step = s if x.is_cuda else max(NEAR // (4 * n * _RUN * c), 1) * _RUN
            for part in (*x[:, :whole].split(step, dim=1), x[:, whole:]):
                values = part.unflatten(1, (-1, min(part.shape[1], _RUN) or 1))  # either may be empty
                at = slice(first, first + values.shape[1])
                if x.is_cuda and x.dtype != torch.float32:  # read twice and no more; good for half precision
                    mean[:, at] = values.mean(2, dtype=mean.dtype)
                    squares = torch.linalg.vector_norm(values, dim=2, dtype=mean.dtype).square_()
                    deviation[:, at] = squares.addcmul_(mean[:, at], mean[:, at], value=-values.shape[2]).clamp_(min=0)
                else:
                    values = values.float()
                    mean[:, at] = values.mean(2)  # `var_mean` takes ten times as long on processors
                    own = None if values.dtype == x.dtype else values
                    deviation[:, at] = torch.sub(values, mean[:, at, None], out=own).square_().sum(2)
                first = at.stop
        return self

    def norm(self, module: nn.GroupNorm, frames: int = 1, add: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The group norm of (value + add), statistics over `frames` consecutive frames, as value * scale + shift.

        add: (n, c) or (c,). Returns scale and shift, (n, c) float32.
        """
        n, runs, c = self.mean.shape
        groups, size = module.num_groups, c // module.num_groups
        add = _rows(add, self.mean)
        if has_kernels(self.mean):
            scale, shift = torch.empty_like(self.mean[:, 0]), torch.empty_like(self.mean[:, 0])
            arguments = (self.mean, self.deviation, add, module.weight, module.bias, scale, shift)
            width = compiled.triton.next_power_of_2(size)
            sizes = (self.pixels, runs, frames, c, size, module.eps, _RUN, max(2048 // width, 1), width)
            _run(compiled.finish, (n // frames, groups), *arguments, add.stride(0), *sizes, num_warps=8)
            return scale, shift
        counts = torch.full((runs, 1, 1), float(_RUN), device=add.device)
        counts[-1] = self.pixels - (runs - 1) * _RUN
        add = add.float()
        means = (self.mean + add[:, None]).view(-1, frames, runs, groups, size)
        total = frames * self.pixels * size
        mean = (means * counts).sum((1, 2, 4), keepdim=True) / total
        spread = self.deviation.view_as(means).sum((1, 2, 4), keepdim=True)
        spread = spread + ((means - mean).square() * counts).sum((1, 2, 4), keepdim=True)
        scale = (spread / total + module.eps).rsqrt().expand(-1, frames, -1, -1, size).reshape(n, c) * module.weight
        mean = mean.expand(-1, frames, -1, -1, size).reshape(n, c)
        return scale, (add - mean) * scale + module.bias


def moments(x: Tensor) -> Moments:
    return Moments(*x.shape, device=x.device).measure(x)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor, silu: bool = True, out: Tensor | None = None) -> Tensor:
    """x * scale + shift, then SiLU where asked. scale, shift: (n, c) float32; out may be a part of a larger tensor."""
    n, s, c = x.shape
    if out is None:
        out = torch.empty((n, s, c), dtype=x.dtype, device=x.device)
    if has_kernels(x):
        width = _divisor(c)
        grid = (math.ceil(s / 128), c // width, n)
        strides = (x.stride(0), *out.stride()[:2], scale.stride(0))
        _run(compiled.scale_shift, grid, x, scale, shift, out, *strides, s, c, silu, 128, width, num_warps=8)
        return out
    y = x if x.is_cuda else x.float()  # cards convert on the way
    y = torch.addcmul(shift[:, None], y, scale[:, None], out=out if y is x else y)
    y = F.silu(y, inplace=True) if silu else y
    return out if y is out else out.copy_(y)


def group_norm(
    parts: Sequence[Tensor], module: nn.GroupNorm, frames: int = 1, add: Tensor | None = None, silu: bool = True
) -> Tensor:
    """The group norm of (x + add), statistics over `frames` consecutive frames, then SiLU where asked.

    x is given in parts of its channels, so that what is to be concatenated need not be. add: (n, c) or (c,).
    """
    x, c = parts[0], sum(part.shape[2] for part in parts)
    n, s, _ = x.shape
    card = x.is_cuda or x.is_meta
    if frames == 1 and s >= 1024 and x.dtype != torch.float32 and not card and not has_kernels(x):
        # Torch's own is the fastest on processors; on cards it lays channels-last pictures out anew. Its sums of
        # squares are good for no more than half precision.
        x = torch.cat(list(parts), dim=2) if len(parts) > 1 else x
        x = x if add is None else x + add.to(x.dtype).expand(n, c)[:, None]
        y = x.unflatten(1, (-1, math.gcd(s, 64))).permute(0, 3, 1, 2)  # as a channels-last picture
        y = F.group_norm(y, module.num_groups, module.weight, module.bias, module.eps)
        return (F.silu(y, inplace=True) if silu else y).permute(0, 2, 3, 1).flatten(1, 2)
    found, first = Moments(n, s, c, x.device), 0
    for part in parts:
        found.measure(part, channel=first)
        first += part.shape[2]
    scale, shift = found.norm(module, frames, add)
    out, first = torch.empty((n, s, c), dtype=x.dtype, device=x.device), 0
    for part in parts:
        own = slice(first, first + part.shape[2])
        scale_shift(part, scale[:, own], shift[:, own], silu, out[:, :, own])
        first = own.stop
    return out


def layer_norm(x: Tensor, module: nn.LayerNorm, add: Tensor | None = None) -> Tensor:
    """The layer norm of (x + add). add: (n, c) or (c,)."""
    n, s, c = x.shape
    if not has_kernels(x) or c % 16:
        y = x if add is None else x + add.expand(n, c)[:, None]
        return F.layer_norm(y, (c,), module.weight, module.bias, module.eps).to(x.dtype)
    add, out = _rows(add, x), torch.empty_like(x)
    width = min(c & -c, 256)
    height = 1024 // width
    grid = (math.ceil(s / height), n)
    arguments = (x, add, module.weight, module.bias, out, x.stride(0), add.stride(0), s, module.eps)
    _run(compiled.layer_norm, grid, *arguments, c, height, width, num_warps=4 if width < 128 else 8)
    return out


def gates_in_product(x: Tensor, wide: nn.Linear) -> bool:
    """Whether `gated` is one kernel for these, which never holds the values that it gates. Made for Hopper cards."""
    if not has_kernels(x) or x.dtype == torch.float32 or wide.in_features % 64 or wide.out_features % 128:
        return False
    card = _card(x)
    return compiled.describe is not None and (card is None or torch.cuda.get_device_capability(card)[0] == 9)


def gated(x: Tensor, wide: nn.Linear) -> Tensor:
    """x (rows, i) through `wide`, then the first half of the values times the GELU of the second: (rows, c)."""
    rows, c = len(x), wide.out_features // 2
    if gates_in_product(x, wide):
        out = x.new_empty(rows, c)
        if not x.is_meta:
            weight = wide.weight.view(2, c, -1)
            tensors = zip((x, weight, out), ([128, 64], [2, 64, 64], [128, 64]), strict=True)
            x, weight, to = (compiled.describe(*entry) for entry in tensors)
            arguments = (x, weight, wide.bias, to, c, wide.in_features, 128, 64, 64)
            compiled.gated[(math.ceil(rows / 128) * (c // 64),)](*arguments, num_warps=4, num_stages=2)
        return out
    if has_kernels(x) and x.dtype != torch.float32:
        y, out, width = F.linear(x, wide.weight, wide.bias), x.new_empty(rows, c), _divisor(c)
        _run(compiled.geglu, (c // width, math.ceil(rows / 64)), y, out, rows, c, 64, width, num_warps=8)
        return out
    # Two products, since torch takes longer over halves that are not contiguous.
    halves = zip(wide.weight.chunk(2), wide.bias.chunk(2), strict=True)
    value, gate = (F.linear(x, weight, bias) for weight, bias in halves)
    return F.gelu(gate).mul_(value)


def blend(a: Tensor, b: Tensor, of_a: float, of_b: float, add: Tensor | None, out: Tensor | None = None) -> Tensor:
    """of_a * a + of_b * b + add. add: (n, c) or (c,); out may be a or b."""
    n, s, c = a.shape
    if out is None:
        out = torch.empty((n, s, c), dtype=a.dtype, device=a.device)
    nothing, add = add is None, _rows(add, a)
    if has_kernels(a):
        width = _divisor(c)
        grid = (math.ceil(s / 128), c // width, n)
        strides = (a.stride(0), b.stride(0), out.stride(0), add.stride(0))
        _run(compiled.blend, grid, a, b, add, out, float(of_a), float(of_b), *strides, s, c, 128, width, num_warps=8)
        return out
    if nothing and of_a == 1:
        return torch.add(a, b, alpha=of_b, out=out)
    step = n if a.is_cuda else 1  # what lies in between stays near a processor
    for i in range(0, n, step):
        part = slice(i, i + step)
        torch.add(torch.add(add[part, None].float(), a[part], alpha=of_a), b[part], alpha=of_b, out=out[part])
    return out


def over_frames(
    x: Tensor, norm: tuple[Tensor, Tensor], conv: TemporalConv, frames: int, onto: Tensor | None = None, of: float = 1.0
) -> Tensor:
    """A convolution over frames of SiLU(x * scale + shift), without its bias. x: (b t, s, c) -> (b t, s, c').

    onto: what `of` times the result is added to, in place. The pixels are given to the library as one long row, of a
    picture on processors, of a film on cards: with anything else it takes up to five times as long.
    """
    y, padding = scale_shift(x, *norm).unflatten(0, (-1, frames)).permute(0, 3, 1, 2), conv.kernel_size[0] // 2
    if x.is_cuda:
        y = F.conv3d(y[:, :, :, None], conv.weight, padding=(padding, 0, 0)).squeeze(3)
    else:
        y = F.conv2d(y, conv.weight.squeeze(-1), padding=(padding, 0))
    y = y.permute(0, 2, 3, 1).flatten(0, 1)
    return y if onto is None else blend(onto, y, 1.0, of, None, out=onto)


def over_pixels(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor | None]:
    """A 3x3 convolution, (n, h, w, c) -> (n, h w, c'), and what is owed of its bias.

    That is all of it where kernels read the result, for they add it on the way; elsewhere nothing.
    """
    inside, owed = (None, bias) if has_kernels(x) else (bias, None)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, inside, padding=1)
    return y.permute(0, 2, 3, 1).flatten(1, 2).contiguous(), owed


def for_doubled(weight: Tensor) -> Tensor:
    """A 3x3 convolution's weight (o, i, 3, 3) as `upsampled` takes it, for pictures doubled by nearest neighbours.

    There all neighbours of a pixel are copies of four. Where there are kernels it is one of 2x2, (4 o, i, 2, 2): for
    each of the four ways that a pixel can lie, the sums of the weights that meet the same copy, ordered by right or
    left, then below or above. Elsewhere it is that of a transposed convolution, (i, o, 4, 4), for doubling is one too,
    with ones.
    """
    if not has_kernels(weight):
        mirrored = weight.float().flip(2, 3).transpose(0, 1)
        shifted = [F.pad(mirrored, (right, 1 - right, below, 1 - below)) for right in (0, 1) for below in (0, 1)]
        return sum(shifted[1:], shifted[0]).to(weight.dtype, memory_format=torch.channels_last)

    def halves(weight: Tensor, dim: int) -> Tensor:
        a, b, c = weight.unbind(dim)
        return torch.stack([torch.stack([a, b + c], dim), torch.stack([a + b, c], dim)])

    rows = halves(weight.float().permute(0, 2, 3, 1), 1)  # (2, o, 2, 3, i)
    return halves(rows, 3).flatten(0, 2).to(weight.dtype).permute(0, 3, 1, 2)


def upsampled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution of x doubled along both sides by nearest neighbours.

    (n, h, w, c) -> (n, 2 h, 2 w, c'). weight: the convolution's `for_doubled`.
    """
    n, h, w, _ = x.shape
    x = x.permute(0, 3, 1, 2)
    if not has_kernels(x):
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=1).permute(0, 2, 3, 1).contiguous()
    c = len(weight) // 4
    width = _divisor(c)
    y = F.conv2d(x, weight, padding=1).permute(0, 2, 3, 1).contiguous()
    out = torch.empty((n, 2 * h, 2 * w, c), dtype=x.dtype, device=x.device)
    _run(compiled.interleave, (c // width, math.ceil(w / 64), n * h), y, bias, out, h, w, c, 64, width, num_warps=8)
    return out


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Among the pixels of each frame. qkv: (n, s, 3 c), queries, keys and values beside one another -> (n, s, c)."""
    n, s, _ = qkv.shape
    q, k, v = qkv.view(n, s, 3, heads, -1).permute(2, 0, 3, 1, 4)  # each (n, heads, s, d)
    return attend(q, k, v).transpose(1, 2).reshape(n, s, -1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each (n, heads, s, d). On the `meta` device it takes the memory that it takes where there are kernels for it."""
    if q.is_meta:
        return torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v)


def temporal_attention(qkv: Tensor, heads: int, frames: int) -> Tensor:
    """Among the frames of each pixel. qkv: (b t, s, 3 c) -> (b t, s, c)."""
    n, s, c = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    d = c // heads
    if has_kernels(qkv) and d in (16, 32, 64, 128) and frames <= 64:
        out = qkv.new_empty(n, s, c)
        rows = max(compiled.triton.next_power_of_2(frames), 16)
        arguments = (qkv, out, frames, s, c, d**-0.5 * math.log2(math.e), rows, d)
        _run(compiled.attend, (s, heads, n // frames), *arguments, num_warps=2)
        return out
    out = qkv.new_empty(n, s, c)
    for clip, to in zip(qkv.split(frames), out.split(frames), strict=True):  # each lies as it can be read
        q, k, v = clip.view(frames, s, 3, heads, d).permute(2, 1, 3, 0, 4)  # each (s, heads, t, d)
        to.copy_(F.scaled_dot_product_attention(q, k, v).permute(2, 0, 1, 3).flatten(2))
    return out


def _run(kernel: Any, grid: tuple[int, ...], first: Tensor, *arguments: Any, **options: Any) -> None:
    if not first.is_meta:
        kernel[grid](first, *arguments, **options)


def _divisor(c: int) -> int:
    """The widest block of channels, up to 64, that divides c."""
    return min(c & -c, 64)


def _rows(add: Tensor | None, like: Tensor) -> Tensor:
    """What is added to each frame of `like` (n, ..., c), as (n, c); nothing: zeros."""
    shape = (like.shape[0], like.shape[-1])
    return like.new_zeros(shape[1]).expand(shape) if add is None else add.expand(shape)
