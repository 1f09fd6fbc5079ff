"""Launchers of the kernels in Triton's Gluon, which are for Hopper cards: attention and products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from sgm.fast import gluon_kernels
from sgm.fast.moments import per_frame

kernels: Any = gluon_kernels
HALF = torch.float16, torch.bfloat16
WIDEST = 320  # channels of the rows that a group of warps can hold in its registers
LONG, MANY = 512, 2**16  # pixels to attend to, and rows to multiply, from which on these kernels are faster than others


def aligned(x: Tensor) -> bool:
    """Whether the copying engine takes x: its rows contiguous, all else at multiples of 16 bytes."""
    return x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and all(stride % 8 == 0 for stride in x.stride()[:-1])


def attends(qkv: Tensor, heads: int) -> bool:
    """Whether `attend` takes these: half precision, heads of 64 channels, and enough pixels."""
    return qkv.dtype in HALF and qkv.shape[2] == 3 * 64 * heads and qkv.shape[1] >= LONG and aligned(qkv)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention among the pixels of each frame. qkv: (n, s, 3 c), queries | keys | values -> (n, s, c)."""
    n, s, c = qkv.shape[0], qkv.shape[1], 64 * heads
    out, groups = qkv.new_empty(n, s, c), math.ceil(s / 192)
    tiles, scale = n * heads * groups, math.log2(math.e) / math.sqrt(64)
    described = describe(qkv, [1, 64, 64]), describe(qkv, [1, 128, 64]), describe(out, [1, 64, 64])
    grid = (min(tiles, processors(qkv.device)),)
    kernels.attention[grid](*described, s, heads, groups, tiles, 4, s % 128 > 0, scale, num_warps=4)
    return out


def multiplies(y: Tensor, columns: int, *others: Tensor) -> bool:
    """Whether the products below take y (n, s, c) and a weight of so many columns (of GEGLU's: values).

    others: what is read or written beside y.
    """
    n, s, c = y.shape
    fits = c % 64 == columns % 64 == 0 and c <= WIDEST
    return y.dtype in HALF and n * s >= MANY and fits and all(aligned(x) for x in (y, *others))


def normed_product(y: Tensor, add: Tensor | None, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> Tensor:
    """norm(y + add) times a weight (columns, c), (n, s, c) -> (n, s, columns); with a bias GEGLU, of half as many."""
    out = y.new_empty(*y.shape[:2], len(weight) // (1 if bias is None else 2))
    add = per_frame(add, y)
    return _multiply("layer norm", y, weight, out, norm.weight, norm.bias, add=add, bias=bias, eps=norm.eps)


def scaled_product(x: Tensor, scale: Tensor, shift: Tensor, layer: nn.Linear) -> Tensor:
    """layer(x * scale + shift), (n, s, c) -> (n, s, c'). scale, shift: (n, c) float32."""
    out = x.new_empty(*x.shape[:2], layer.out_features)
    return _multiply("affine", x, layer.weight, out, scale, shift, bias=layer.bias)


def add_blended_product(
    out: Tensor, a: Tensor, b: Tensor, weights: tuple[float, float], add: Tensor | None, weight: Tensor
) -> Tensor:
    """out += (weights[0] * a + weights[1] * b + add) times a weight, in place; returns what has been measured of it.

    a, b: (n, s, c), out: (n, s, c'). Measured are the mean and the sum of squared deviations of each channel, for each
    64 pixels: (2, n, about s / 64, c') float32.
    """
    n, s, c = out.shape
    measured = torch.empty((2, n, math.ceil(s / 64), c), device=out.device)
    _multiply("blend", a, weight, out, z=b, add=per_frame(add, a), weights=weights, measured=measured)
    return measured


def _multiply(
    kind: str,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    z: Tensor | None = None,
    add: Tensor | None = None,
    bias: Tensor | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
    measured: Tensor | tuple[None, None] = (None, None),
    eps: float = 0.0,
    consumers: int = 2,
) -> Tensor:
    """Launches `short_product`, into out."""
    (n, s, c), columns = x.shape, out.shape[2]
    halves, blended, across = len(weight) // columns, z is not None, math.ceil(s / (64 * consumers))
    described = (
        describe(x, [1, 64, 64]),
        None if z is None else describe(z, [1, 64, 64]),
        describe(weight.view(halves, columns, c), [halves, 64, 64]),
        describe(out, [1, 64, 64]),
    )
    tensors, rows = (gain, shift, add, bias, *measured), [_row(gain), _row(add)]
    # As fits into 227 KB of shared memory: blocks of rows, steps of columns.
    places = (1, min(4, c // 32), 5 - consumers) if blended else (c // 64, 1, 4 // halves)
    sizes = (*rows, *weights, eps, s, n * across, across, columns // 64, kind, c // 64, *places, consumers)
    kernels.short_product[(min(n * across, processors(x.device)),)](*described, *tensors, *sizes, num_warps=4)
    return out


def _row(x: Tensor | None) -> int:
    """From one frame's row of x to the next; 0 where all share one, or there is none."""
    return 0 if x is None or x.ndim == 1 else x.stride(0)


def gates(x: Tensor, proj: nn.Linear) -> bool:
    """Whether `geglu` takes these rows (rows, c), and the projection to values and gates."""
    rows, c = x.shape
    return x.dtype in HALF and rows >= MANY // 4 and c % 64 == proj.out_features % 256 == 0 and aligned(x)


def geglu(x: Tensor, proj: nn.Linear) -> Tensor:
    """GEGLU: the first half of proj(x) times the GELU of its second half. x: (rows, c) -> (rows, c')."""
    (rows, c), columns = x.shape, proj.out_features // 2
    out = x.new_empty(rows, columns)
    across, weight = columns // 128, proj.weight.view(2, columns, c)
    described = describe(x, [64, 64]), describe(weight, [2, 128, 64]), proj.bias, describe(out, [64, 128])
    tiles = math.ceil(rows / 128) * across
    kernels.product_geglu[(min(tiles, processors(x.device)),)](*described, tiles, across, c // 64, 4, num_warps=4)
    return out


def describe(x: Tensor, block: Sequence[int]) -> TensorDescriptor:
    """x for the copying engine (TMA), which copies blocks of this size, the last dimension's 128 bytes swizzled."""
    layout = kernels.gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=len(block))
    return TensorDescriptor.from_tensor(x, list(block), layout)


@cache
def processors(device: torch.device) -> int:
    """How many multiprocessors a card has."""
    return torch.cuda.get_device_properties(device).multi_processor_count
