"""Launchers of the kernels in Triton's Gluon, which are for Hopper cards: attention, products and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from sgm.fast import gluon_kernels
from sgm.fast.moments import per_frame

if TYPE_CHECKING:
    from sgm.fast.triton_ops import TritonMoments

kernels: Any = gluon_kernels
HALF = torch.float16, torch.bfloat16
WIDEST = 320  # channels of the rows that a group of warps can hold in its registers
MEMORY = 226 * 2**10  # bytes of a multiprocessor's shared memory for what is multiplied
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


def multiplies(y: Tensor, columns: int) -> bool:
    """Whether `normed_product` takes y (n, s, c) and a weight of so many columns (of GEGLU's: values).

    Of four steps of columns at least, since rows are loaded between the first.
    """
    n, s, c = y.shape
    fits = c % 64 == columns % 64 == 0 and c <= WIDEST and columns >= 4 * 64
    return y.dtype in HALF and n * s >= MANY and fits and aligned(y)


def normed_product(y: Tensor, add: Tensor | None, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> Tensor:
    """norm(y + add) times a weight (columns, c), (n, s, c) -> (n, s, columns); with a bias GEGLU, of half as many."""
    (n, s, c), halves = y.shape, 1 if bias is None else 2
    add, columns = per_frame(add, y), len(weight) // halves
    out = y.new_empty(n, s, columns)
    across, steps = math.ceil(s / 128), math.ceil(columns / 64)
    described = (
        describe(y, [1, 64, 64]),
        describe(weight.view(halves, columns, c), [halves, 64, 64]),
        describe(out, [1, 64, 64]),
    )
    tensors = (*described, norm.weight, norm.bias, norm.bias if bias is None else bias, add)
    sizes = (add.stride(0), n * across, across, steps, norm.eps, c // 64, 4 // halves)
    kernels.normed_product[(min(n * across, processors(y.device)),)](*tensors, *sizes, num_warps=4)
    return out


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


def convolves(y: Tensor, weight: Tensor, residual: Tensor | None) -> bool:
    """Whether `conv_over_frames` takes y (b, t, s, c), a weight (c', c, 3, 1, 1) and what the result is added to."""
    tensors = [y, weight.movedim(1, -1)] + ([] if residual is None else [residual])
    fits = weight.shape[2] == 3 and y.shape[3] % 64 == len(weight) % 64 == 0
    enough = y.shape[0] * y.shape[1] * y.shape[2] >= MANY // 4
    laid_out = tensors[1].is_contiguous() and all(x.dtype == y.dtype and aligned(x) for x in tensors)
    return y.dtype in HALF and fits and enough and laid_out


def widths(blocks: int) -> tuple[int, int]:
    """Into which two widths the columns of a tile are divided, in blocks of 64, where there are so many blocks.

    The widest that divide them and whose sums fit into registers: of more columns, fewer rows are read again.
    """
    return next(pair for pair in ((4, 1), (4, 0), (2, 1), (2, 0), (1, 0)) if blocks % sum(pair) == 0)


def conv_over_frames(
    y: Tensor,
    weight: Tensor,
    padding: int,
    residual: Tensor | None = None,
    factor: float = 1.0,
    moments: TritonMoments | None = None,
    tile: tuple[int, int] | None = None,
    stages: int | None = None,
) -> Tensor:
    """A convolution over frames, (b, t, s, c) -> (n, s, c'). weight: (c', c, 3, 1, 1), channels-last.

    padding: with zeros before and after each clip, 1 or 0; n: the frames of all clips. residual: `factor` times the
    convolution is added to it, in place. moments: where to store those of what is written. tile, stages: see `widths`
    and the kernel.
    """
    (b, t, s, c), columns = y.shape, len(weight)
    frames, blocks = t + 2 * padding - 2, math.ceil(s / 64)
    n, (wide, narrow) = b * frames, tile or widths(columns // 64)
    across, places = columns // 64 // (wide + narrow), MEMORY // ((2 + wide + narrow) * 2**13)
    tiles = (blocks // 2 * n + blocks % 2 * math.ceil(n / 2)) * across
    out = y.new_empty(n, s, columns) if residual is None else residual
    matrix = weight.movedim(1, -1).view(columns // 64, 64, 3 * c)
    tensors = (
        describe(y, [1, 1, 64, 64]),
        describe(matrix, [wide, 64, 64]),
        describe(matrix, [narrow, 64, 64]) if narrow else None,
        None if residual is None else describe(residual, [1, 64, 64]),
        describe(out, [1, 64, 64]),
    )
    measured = [] if moments is None else list(y.new_empty((2, n, blocks, columns), dtype=torch.float32))
    sizes = (tiles, across, c // 64, frames, padding, n, blocks, s, wide + narrow, stages or min(places, 6))
    arguments = (*tensors, *(measured or (None, None)), float(factor), *sizes)
    kernels.conv_over_frames[(min(tiles, processors(y.device)),)](*arguments, num_warps=4)
    if moments is not None:
        mean, deviation = measured
        moments.merge(mean, deviation, 64)
    return out


def describe(x: Tensor, block: Sequence[int]) -> TensorDescriptor:
    """x for the copying engine (TMA), which copies blocks of this size, the last dimension's 128 bytes swizzled."""
    layout = kernels.gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=len(block))
    return TensorDescriptor.from_tensor(x, list(block), layout)


@cache
def processors(device: torch.device) -> int:
    """How many multiprocessors a card has."""
    return torch.cuda.get_device_properties(device).multi_processor_count
