"""Launchers of the kernels in Triton's Gluon, which are for Hopper cards: attention, products and convolutions."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from sgm.fast import gluon_attention, gluon_base, gluon_convolutions, gluon_frames, gluon_products
from sgm.fast.moments import per_frame

attention: Any = gluon_attention.attention  # to a type checker a kernel is a plain function, which has no grid
short_product: Any = gluon_products.short_product
product_geglu: Any = gluon_products.product_geglu
convolution: Any = gluon_convolutions.convolution
normed_convolution: Any = gluon_frames.normed_convolution
HALF = torch.float16, torch.bfloat16
WIDEST = 320  # channels of the rows that a group of warps can hold in its registers
BLOCK = 64  # pixels whose moments a convolution stores, of narrow pictures those of a line
NARROW = 16  # width of pictures of which a block holds the same line of four, side by side
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
    _launch(attention, min(tiles, processors(qkv.device)), *described, s, heads, groups, tiles, 4, s % 128 > 0, scale)
    return out


def multiplies(y: Tensor, columns: int, *others: Tensor) -> bool:
    """Whether the products below take y (n, s, c) and a weight of so many columns (of GEGLU's: values).

    others: what is read or written beside y.
    """
    n, s, c = y.shape
    fits = c % 64 == columns % 64 == 0 and c <= WIDEST
    return y.dtype in HALF and n * s >= MANY and fits and all(aligned(x) for x in (y, *others))


def normed_product(
    y: Tensor,
    add: Tensor | None,
    norm: nn.LayerNorm,
    weight: Tensor,
    bias: Tensor | None,
    copy: Tensor | None = None,
) -> Tensor:
    """norm(y + add) times a weight (columns, c), (n, s, c) -> (n, s, columns); with a bias GEGLU, of half as many.

    copy: (n, s, c), becomes a copy of y.
    """
    out = y.new_empty(*y.shape[:2], len(weight) // (1 if bias is None else 2))
    add, gain, shift = per_frame(add, y), norm.weight, norm.bias
    return _multiply("layer norm", y, weight, out, gain, shift, copy=copy, add=add, bias=bias, eps=norm.eps)


def scaled_product(x: Tensor, scale: Tensor, shift: Tensor, layer: nn.Linear) -> Tensor:
    """layer(x * scale + shift), (n, s, c) -> (n, s, c'). scale, shift: (n, c) float32."""
    out = x.new_empty(*x.shape[:2], layer.out_features)
    return _multiply("affine", x, layer.weight, out, scale, shift, bias=layer.bias)


def add_blended_product(
    out: Tensor, a: Tensor, b: Tensor, weights: tuple[float, float], add: Tensor | None, weight: Tensor
) -> Tensor:
    """out += (weights[0] * a + weights[1] * b + add) times a weight, in place. a, b: (n, s, c), out: (n, s, c')."""
    return _multiply("blend", a, weight, out, z=b, add=per_frame(add, a), weights=weights)


def _multiply(
    kind: str,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
    z: Tensor | None = None,
    copy: Tensor | None = None,
    add: Tensor | None = None,
    bias: Tensor | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
    eps: float = 0.0,
) -> Tensor:
    """Launches `short_product`, into out."""
    (n, s, c), columns = x.shape, out.shape[2]
    halves, across = len(weight) // columns, math.ceil(s / 128)
    described = (
        describe(x, [1, 64, 64]),
        None if z is None else describe(z, [1, 64, 64]),
        None if copy is None else describe(copy, [1, 64, 64]),
        describe(weight.view(halves, columns, c), [halves, 64, 64]),
        describe(out, [1, 64, 64]),
    )
    # As fits into 227 KB of shared memory: blocks of rows in a chunk, chunks, steps of columns.
    places = (c // 64, 1, 4 // halves) if z is None else (1, min(4, c // 32), 3)
    sizes = (_row(gain), _row(add), *weights, eps, n * across, across, columns // 64, kind, c // 64, *places)
    _launch(short_product, min(n * across, processors(x.device)), *described, gain, shift, add, bias, *sizes)
    return out


def _row(x: Tensor | None) -> int:
    """From one frame's row of x to the next; 0 where all share one, or there is none."""
    return 0 if x is None or x.ndim == 1 else x.stride(0)


def gates(x: Tensor, proj: nn.Linear) -> bool:
    """Whether `geglu` takes these rows (rows, c), and the projection to values and gates."""
    rows, c = x.shape
    return x.dtype in HALF and rows >= MANY // 16 and c % 64 == proj.out_features % 256 == 0 and aligned(x)


def geglu(x: Tensor, proj: nn.Linear) -> Tensor:
    """GEGLU: the first half of proj(x) times the GELU of its second half. x: (rows, c) -> (rows, c')."""
    (rows, c), columns = x.shape, proj.out_features // 2
    out = x.new_empty(rows, columns)
    across, weight = columns // 128, proj.weight.view(2, columns, c)
    described = describe(x, [64, 64]), describe(weight, [1, 128, 64]), proj.bias, describe(out, [64, 64])
    tiles = math.ceil(rows / 192) * across
    _launch(product_geglu, min(tiles, processors(x.device)), *described, tiles, across, c // 64, 3)
    return out


def convolves(y: Tensor, weight: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> bool:
    """Whether the convolutions below take y and a weight.

    Over frames (b, t, s, c) and (c', c, 3, 1, 1), over pictures (n, h, w, c) and (c', c, 3, 3). residual: what the
    result is added to; out: where it is written.
    """
    tensors = [y, weight.movedim(1, -1), *(x for x in (residual, out) if x is not None)]
    rows, blocks = y.shape[0] * y.shape[1] * y.shape[2], len(weight) // 64
    laid_out = tensors[1].is_contiguous() and all(x.dtype == y.dtype and aligned(x) for x in tensors)
    if y.dtype not in HALF or y.shape[3] % 64 or len(weight) % 64 or not laid_out:
        return False
    if weight.ndim == 5:
        return weight.shape[2] == 3 and rows >= MANY // 4
    if weight.shape[2:] != (3, 3):
        return False
    if y.shape[2] == NARROW:
        return rows >= MANY // 16 and blocks % 5 == 0
    # Faster than cuDNN's, as measured: multiples of 320 columns, 128, and 256 where there is a residual.
    fast = blocks % 5 == 0 or blocks <= 3 or (blocks == 4 and residual is not None)
    return y.shape[2] % BLOCK == 0 and rows >= MANY and fast


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
    measured: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """A convolution over frames, (b, t, s, c) -> (n, s, c'). weight: (c', c, 3, 1, 1), channels-last.

    padding: with zeros before and after each clip, 1 or 0; n: the frames of all clips. residual: `factor` times the
    convolution is added to it, in place. measured: where to store mean and sum of squared deviations of each channel of
    what is written, for every `BLOCK` pixels: (2, n, blocks, c') float32. out: where, without a residual.
    """
    b, t, s, _ = y.shape
    frames, blocks = t + 2 * padding - 2, math.ceil(s / BLOCK)
    n = b * frames
    out = residual if residual is not None else y.new_empty(n, s, len(weight)) if out is None else out
    pairs, shape = blocks // 2 * n + blocks % 2 * math.ceil(n / 2), (frames, padding, n, blocks, s, 1)
    return _convolve(y, weight, residual, None, out, measured, factor, pairs, shape)


def convolves_normed(x: Tensor, weight: Tensor, out: Tensor | None = None) -> bool:
    """Whether the convolution below takes x (b, t, s, c) and a weight (c, c, 3, 1, 1), which stays in shared memory."""
    return weight.ndim == 5 and x.shape[3] == len(weight) in (64, 128) and convolves(x, weight, None, out)


def normed_conv_over_frames(
    x: Tensor,
    gain: Tensor,
    shift: Tensor,
    weight: Tensor,
    residual: Tensor | None = None,
    factor: float = 1.0,
    measured: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `conv_over_frames` of SiLU(x * gain + shift) with a padding of 1, to the bit. gain, shift: (n, c) float32.

    x: (b, t, s, c), none of the memory that is written.
    """
    b, t, s, c = x.shape
    out = residual if residual is not None else x.new_empty(b * t, s, c) if out is None else out
    blocks = math.ceil(s / BLOCK)
    tiles = b * t * blocks
    share = math.ceil(tiles / (2 * processors(x.device)))
    tensors = (
        describe(x, [1, 1, 64, 64]),
        describe(weight.movedim(1, -1).view(c // 64, 64, 3 * c), [c // 64, 64, 64]),
        None if residual is None else describe(residual, [1, 64, 64]),
        describe(out, [1, 64, 64]),
        *(gain, shift, *((None, None) if measured is None else measured)),
    )
    numbers = float(factor), gain.stride(0), tiles, share, t, blocks, s, s % BLOCK > 0
    _launch(normed_convolution, math.ceil(tiles / (2 * share)), *tensors, *numbers)
    return out


def conv_over_pictures(
    y: Tensor,
    weight: Tensor,
    residual: Tensor | None = None,
    add: Tensor | None = None,
    out: Tensor | None = None,
    measured: Tensor | None = None,
) -> Tensor:
    """A 3x3 convolution, (n, h, w, c) -> (n, h w, c'). weight: (c', c, 3, 3), channels-last.

    residual, add: are added to it, (n, h w, c'), (n, c') or (c',); out: where to write it, perhaps over the residual.
    measured: as for `conv_over_frames`; of pictures narrower than `BLOCK`, for every line.
    """
    n, h, w, _ = y.shape
    out = y.new_empty(n, h * w, len(weight)) if out is None else out
    return _conv_by_lines(y, weight, residual, add, out, measured)


def upsamples(x: Tensor, weight: Tensor) -> bool:
    """Whether the convolution below takes x (n, h, w, c) and a weight (4 c', c, 2, 2)."""
    (n, h, w, c), matrix = x.shape, weight.movedim(1, -1)
    fits = c % 64 == len(weight) % 256 == 0 and (w % BLOCK == 0 or w == BLOCK // 2) and weight.shape[2:] == (2, 2)
    fits = fits and 4 * n * h * w >= MANY  # of pictures 16 across, cuDNN's convolution is as fast
    laid_out = matrix.is_contiguous() and weight.dtype == x.dtype and aligned(x) and aligned(matrix)
    return x.dtype in HALF and fits and laid_out


def conv_upsampled(x: Tensor, weight: Tensor, bias: Tensor, measured: Tensor | None = None) -> Tensor:
    """A 3x3 convolution after nearest-neighbour upsampling, (n, h, w, c) -> (n, 4 h w, c').

    weight: (4 c', c, 2, 2), channels-last, from `TritonOps.fused_upsample_weight`. measured: as for
    `conv_over_pictures`, but each block's pixels are every second one of a line, and blocks do not follow each other as
    pixels do.
    """
    n, h, w, _ = x.shape
    out = x.new_empty(n, 2 * h, w, 2, len(weight) // 4)
    return _conv_by_lines(x, weight, None, bias, out, measured).view(n, 4 * h * w, -1)


def _conv_by_lines(
    y: Tensor, weight: Tensor, residual: Tensor | None, add: Tensor | None, out: Tensor, measured: Tensor | None
) -> Tensor:
    """Launches `convolution` over pictures y (n, h, w, c), of which several are side by side in a block if narrow."""
    n, h, w, _ = y.shape
    across, pictures = math.ceil(w / BLOCK), math.ceil(BLOCK / w)  # blocks in a line; pictures in a block
    pairs, shape = math.ceil(n / pictures) * math.ceil(h / 2) * across, (1, 0, n, h * across, h * w, w)
    return _convolve(y, weight, residual, add, out, measured, 1.0, pairs, shape, pictures)


def _convolve(
    y: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    add: Tensor | None,
    out: Tensor,
    measured: Tensor | None,
    factor: float,
    pairs: int,
    shape: tuple[int, ...],
    pictures: int = 1,
) -> Tensor:
    """Launches `convolution`, into out. pairs: of blocks of 64 pixels; shape: the kernel's last numbers.

    pictures: side by side in a block.
    """
    c, blocks, matrix = y.shape[3], len(weight) // 64, weight.movedim(1, -1).view(len(weight) // 64, 64, -1)
    wide, narrow = widths(out.shape[-1] // 64)  # where x is upsampled, a quarter of the weight's columns
    columns, lines = wide + narrow, 1 if weight.ndim == 5 else weight.shape[2] + 1
    stages, places = stages_and_places(columns, lines)
    rows = [pictures, 64 // pictures, 64]
    of_y, of_out = [1, lines, 64, 64], rows
    if lines == 3:  # which are copied one by one
        of_y, of_out = [pictures, 1, *rows[1:]], [pictures, 1, rows[1], 1, 64]
    elif pictures > 1:
        y, of_y = y.transpose(0, 1), [lines, *rows]
    tensors = (
        describe(y, of_y),
        describe(matrix, [wide, 64, 64]),
        describe(matrix, [narrow, 64, 64]) if narrow else None,
        None if residual is None else describe(residual, rows),
        add,
        describe(out, of_out),
    )
    across = blocks // columns
    tiles, moments = pairs * across, (None, None) if measured is None else measured
    numbers = float(factor), _row(add), tiles, across, c // 64, *shape, columns, stages, places
    _launch(convolution, min(tiles, processors(y.device)), *tensors, *moments, *numbers)
    return out


def stages_and_places(columns: int, lines: int) -> tuple[int, int]:
    """Pipeline stages of a convolution, and places in shared memory for blocks of y: as many as there is room for.

    columns: blocks of 64 in a tile. lines: of pixels in a block of y: 1 over frames, 4 of pictures, 3 of pictures that
    are upsampled.
    """
    room = MEMORY // 2**13  # blocks of 64 x 64
    if lines == 1:
        stages = min(room // (2 + columns), 6)
        return stages, 2 * stages
    # A block's stages are empty before it is replaced; if upsampled, its last one is waited for (`load`).
    most = {places: (lines - 1) * (places - 1) + (2 if lines == 3 else 1) for places in (2, 3)}
    pairs = ((min((room - lines * places) // columns, most[places], 6), places) for places in most)
    return max(pairs, key=lambda pair: pair[0])


def describe(x: Tensor, block: Sequence[int]) -> TensorDescriptor:
    """x for the copying engine (TMA), which copies blocks of this size."""
    return TensorDescriptor.from_tensor(x, list(block), swizzled(len(block)))


@cache
def swizzled(rank: int) -> Any:
    """The layout of a block of so many dimensions, the last of 128 bytes."""
    return gluon_base.gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=rank)


@cache
def processors(device: torch.device) -> int:
    """How many multiprocessors a card has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


_thread = threading.local()  # compiles_alone: whether this thread launches nothing


def _launch(kernel: Any, programs: int, *arguments: Any) -> None:
    """Launch a kernel, compiled first unless it is; in a thread of `compile_ahead`, compile it alone."""
    if getattr(_thread, "compiles_alone", False):
        kernel.warmup(*arguments, grid=(programs,), num_warps=4)
    else:
        kernel[(programs,)](*arguments, num_warps=4)


def compile_ahead(device: torch.device, dtype: torch.dtype) -> None:
    """Ahead-of-time compilation, by several threads, of what networks of SVD's size launch.

    Compiled kernels are kept on the disk. What fails here is left to the first launch, which says so.
    """
    launches = deque(_launches(device, dtype))

    def compile_some() -> None:
        _thread.compiles_alone = True
        while launches:
            with suppress(Exception), torch.cuda.device(device):
                launches.popleft()()

    # Not a pool's, whose threads a program that ends, as when the weights do not fit, would wait for.
    threads = [threading.Thread(target=compile_some, daemon=True) for _ in range(min(os.cpu_count() or 1, 8))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _launches(device: torch.device, dtype: torch.dtype) -> list[Callable[[], object]]:
    """One launch for each kernel that is compiled, on a few values: by blocks, by kind and by what may be missing.

    Without those of clips that decoding holds in the processor's memory.
    """

    def of(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def taps(columns: int, c: int, *kernel: int) -> Tensor:
        return of(columns, *kernel, c).movedim(-1, 1)

    rows, row, scale = of(1, 128, 320), of(320), of(1, 320, dtype=torch.float32)
    norm: Any = SimpleNamespace(weight=row, bias=row, eps=1e-5)
    layer: Any = SimpleNamespace(weight=of(320, 320), bias=row, out_features=320)
    gate: Any = SimpleNamespace(weight=of(256, 64), bias=of(256), out_features=256)
    launches: list[Callable[[], object]] = [
        lambda: attend(of(1, 128, 192), 1),
        lambda: attend(of(1, 192, 192), 1),
        *(partial(normed_product, rows, row, norm, of(2560, 320), of(2560), copy) for copy in (None, rows)),
        lambda: normed_product(rows, row, norm, of(960, 320), None),
        lambda: add_blended_product(rows, rows, rows, (0.5, 0.5), row, layer.weight),
        lambda: scaled_product(rows, scale, scale, layer),
        lambda: geglu(of(192, 64), gate),
    ]
    tensors = of(4, 32, 320), row, None, of(2, 4, 2, 320, dtype=torch.float32)  # of four narrow pictures, 2 high
    for given in (tensors, (None, None, *tensors[2:])):
        launches.append(partial(conv_over_pictures, of(4, 2, NARROW, 64), taps(320, 64, 3, 3), *given))
    for columns, w in ((320, 64), (320, 32), (256, 64)):
        moments, weight = of(2, 2, 4, columns, dtype=torch.float32), taps(4 * columns, 64, 2, 2)
        launches.append(partial(conv_upsampled, of(2, 1, w, 64), weight, of(columns), moments))
    for columns in (320, 256, 128):  # of the network and the decoder; 512 and more are taken in parts
        y = of(1, 2, 64, 64)  # two frames of 64 pixels, or a picture 2 high
        onto, moments = of(2, 64, columns), of(2, 2, 1, columns, dtype=torch.float32)
        added = onto.view(1, 128, columns), of(columns)
        of_picture = of(2, 1, 2, columns, dtype=torch.float32)
        pictures, frames = taps(columns, 64, 3, 3), taps(columns, 64, 3, 1, 1)
        launches.append(partial(conv_over_pictures, y, pictures, *added, None, of_picture))
        if columns != 256:
            launches.append(partial(conv_over_pictures, y, pictures, None, None, None, of_picture))
        if columns != 128:
            launches += [partial(conv_over_frames, y, frames, 1, onto, 1.0, moments)]
            launches += [partial(conv_over_frames, y, frames, 1, None, 1.0, moments)]
        if columns == 256:
            launches.append(partial(conv_over_frames, y, frames, 1, onto, 1.0, None))
        if columns == 128:
            clip, factors, weight = of(1, 2, 64, 128), of(2, 128, dtype=torch.float32), taps(128, 128, 3, 1, 1)
            for residual in (None, onto):
                for measured in (None, moments):
                    launch = normed_conv_over_frames
                    launches.append(partial(launch, clip, factors, factors, weight, residual, 1.0, measured))
    return launches
