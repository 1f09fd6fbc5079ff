"""The Triton kernels that `triton_ops` launches; the methods of `torch_ops` say what they compute.

height and width are those of a program's block. Kernels are specialized on c and the strides, so that loads are known
to be aligned, but not on the sizes of pictures, so that each is compiled a few times at most.
"""

# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportGeneralTypeIssues=false

from typing import Any

import triton
import triton.language

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before Triton 3.4
    TensorDescriptor = None

# Type checkers cannot read Triton's language.
tl: Any = triton.language
describe: Any = TensorDescriptor and TensorDescriptor.from_tensor


@triton.jit
def store_moments(mean, deviation, offsets, origin, sums, squares, rows):
    # sums, squares: of differences to the origin and of their squares, over a tile's rows once dimension 0 is summed.
    count = rows.to(tl.float32)
    average = tl.sum(sums, 0) / count
    tl.store(mean + offsets, origin + average)
    tl.store(deviation + offsets, tl.maximum(tl.sum(squares, 0) - average * average * count, 0.0))


@triton.jit(do_not_specialize=["s"])
def measure(
    x, mean, deviation, frame, out_frame, out_tile, s, c,
    tile: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    i, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    x += n * frame
    # Sums of differences to the tile's first value, so that no digits are lost where the mean is far from zero.
    origin = tl.load(x + i.to(tl.int64) * tile * c + columns).to(tl.float32)
    sums = tl.zeros([height, width], tl.float32)
    squares = tl.zeros([height, width], tl.float32)
    last = tl.minimum(s, (i + 1) * tile)
    for start in tl.range(i * tile, last, height, num_stages=3):
        rows = start + tl.arange(0, height)
        mask = (rows < last)[:, None]
        value = tl.load(x + rows.to(tl.int64)[:, None] * c + columns[None], mask=mask, other=0.0)
        difference = tl.where(mask, value.to(tl.float32) - origin[None], 0.0)
        sums += difference
        squares += difference * difference
    store_moments(mean, deviation, n * out_frame + i * out_tile + columns, origin, sums, squares, last - i * tile)


@triton.jit(do_not_specialize=["s", "blocks"])
def merge(
    block_mean, block_deviation, mean, deviation, s, blocks, c,
    rows: tl.constexpr, tile: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    # From the moments of blocks of `rows` pixels, (n, blocks, c), to those of tiles; all are contiguous.
    i, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * width + tl.arange(0, width)[None]
    block = (i * (tile // rows) + tl.arange(0, tile // rows))[:, None]
    offsets = (n * blocks + block) * c + columns
    count = tl.minimum(tl.maximum(s - block * rows, 0), rows).to(tl.float32)
    total = tl.minimum(s - i * tile, tile).to(tl.float32)
    value = tl.load(block_mean + offsets, mask=block < blocks, other=0.0)
    average = (tl.sum(value * count, 0) / total)[None]
    within = tl.load(block_deviation + offsets, mask=block < blocks, other=0.0)
    spread = tl.sum(within + (value - average) * (value - average) * count, 0)[None]
    place = (n * tl.num_programs(0) + i) * c + columns
    tl.store(mean + place, average)
    tl.store(deviation + place, spread)


@triton.jit(do_not_specialize=["pixels", "tiles", "frames", "size"])
def combine(
    mean, deviation, add, weight, bias, scale, shift, add_row, pixels, tiles, frames, c, size, eps,
    tile: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    clip, group = tl.program_id(0), tl.program_id(1)
    in_group = (tl.arange(0, width) < size)[None]
    columns = group * size + tl.arange(0, width)[None]
    total = frames.to(tl.float32) * pixels * size
    mean += clip * frames * tiles * c
    deviation += clip * frames * tiles * c
    add += clip * frames * add_row
    # All that does not depend on the average is loaded first, at once: waiting for memory is what takes long here.
    weights = tl.load(weight + columns, mask=in_group, other=0.0).to(tl.float32)
    offset = tl.load(bias + columns, mask=in_group, other=0.0).to(tl.float32)
    sums, within = tl.zeros([height, width], tl.float32), tl.zeros([height, width], tl.float32)
    for start in range(0, frames * tiles, height):
        i = (start + tl.arange(0, height))[:, None]
        mask = (i < frames * tiles) & in_group
        count = tl.minimum(pixels - i % tiles * tile, tile).to(tl.float32)
        value = tl.load(mean + i * c + columns, mask=mask, other=0.0)
        value += tl.load(add + i // tiles * add_row + columns, mask=mask, other=0.0).to(tl.float32)
        sums += tl.where(mask, value * count, 0.0)
        within += tl.load(deviation + i * c + columns, mask=mask, other=0.0)
    average = tl.sum(sums) / total
    for start in range(0, frames * tiles, height):
        i = (start + tl.arange(0, height))[:, None]
        mask = (i < frames * tiles) & in_group
        count = tl.minimum(pixels - i % tiles * tile, tile).to(tl.float32)
        difference = tl.load(mean + i * c + columns, mask=mask, other=0.0) - average
        difference += tl.load(add + i // tiles * add_row + columns, mask=mask, other=0.0).to(tl.float32)
        within += tl.where(mask, difference * difference * count, 0.0)
    gain = weights * tl.rsqrt(tl.sum(within) / total + eps)
    for start in range(0, frames, height):
        i = (start + tl.arange(0, height))[:, None]
        mask = (i < frames) & in_group
        offsets = (clip * frames + i) * c + columns
        added = tl.load(add + i * add_row + columns, mask=mask, other=0.0).to(tl.float32)
        tl.store(scale + offsets, gain + tl.zeros_like(added), mask=mask)
        tl.store(shift + offsets, (added - average) * gain + offset, mask=mask)


@triton.jit(do_not_specialize=["s", "run"])
def scale_shift(
    x, scale, shift, out, frame, out_frame, out_pixel, scale_row, s, run, c,
    silu: tl.constexpr, gaps: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    # gaps: after each run of pixels, a row of a picture, one pixel of `out` is left out.
    rows = tl.program_id(0) * height + tl.arange(0, height)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    n = tl.program_id(2).to(tl.int64)
    mask = (rows < s)[:, None]
    rows = rows.to(tl.int64)[:, None]
    y = tl.load(x + n * frame + rows * c + columns[None], mask=mask, other=0.0).to(tl.float32)
    y = y * tl.load(scale + n * scale_row + columns)[None] + tl.load(shift + n * scale_row + columns)[None]
    if silu:
        y = y * tl.sigmoid(y)
    if gaps:
        rows += rows // run
    offsets = n * out_frame + rows * out_pixel + columns[None]
    tl.store(out + offsets, y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["s"])
def layer_norm(
    x, add, weight, bias, out, copy, frame, add_row, s, eps,
    c: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    # Rows stay in registers, in parts, since 320, 640 and 1280 are no powers of two. copy: of x as it is, or None.
    n = tl.program_id(1).to(tl.int64)
    rows = (tl.program_id(0) * height + tl.arange(0, height))[:, None]
    x, add, out = x + n * frame + rows * c, add + n * add_row, out + n * s * c + rows * c
    raw = ()
    parts = ()
    sums = tl.zeros([height, width], tl.float32)
    for first in tl.static_range(0, c, width):
        columns = first + tl.arange(0, width)[None]
        value = tl.load(x + columns, mask=rows < s, other=0.0)
        y = value.to(tl.float32) + tl.load(add + columns).to(tl.float32)
        raw = raw + (value,)  # noqa: RUF005 (no starred items in Triton)
        parts = parts + (y,)  # noqa: RUF005
        sums += y
    if copy is not None:  # only now: no load would overtake a store
        copy += n * s * c + rows * c
        for i in tl.static_range(c // width):
            tl.store(copy + i * width + tl.arange(0, width)[None], raw[i], mask=rows < s)
    average = (tl.sum(sums, 1) / c)[:, None]
    sums = tl.zeros([height, width], tl.float32)
    for i in tl.static_range(c // width):
        sums += (parts[i] - average) * (parts[i] - average)
    factor = tl.rsqrt(tl.sum(sums, 1) / c + eps)[:, None]
    for i in tl.static_range(c // width):
        columns = i * width + tl.arange(0, width)[None]
        y = (parts[i] - average) * factor
        y = y * tl.load(weight + columns).to(tl.float32) + tl.load(bias + columns).to(tl.float32)
        tl.store(out + columns, y.to(out.dtype.element_ty), mask=rows < s)


@triton.jit(do_not_specialize=["count"])
def exponentials(scores, weights, sums, count, scale, width: tl.constexpr):
    # A softmax before its division: weights = exp2(scale * (scores - the greatest of the row)), for one row a program,
    # and the sum of these weights.
    row = tl.program_id(0).to(tl.int64)
    scores, weights = scores + row * count, weights + row * count
    greatest = tl.full([width], float("-inf"), tl.float32)
    for start in range(0, count, width):
        i = start + tl.arange(0, width)
        greatest = tl.maximum(greatest, tl.load(scores + i, mask=i < count, other=float("-inf")))
    top = tl.max(greatest, 0)
    total = tl.zeros([width], tl.float32)
    for start in range(0, count, width):
        i = start + tl.arange(0, width)
        weight = tl.exp2((tl.load(scores + i, mask=i < count, other=float("-inf")) - top) * scale)
        total += weight
        tl.store(weights + i, weight.to(weights.dtype.element_ty), mask=i < count)
    tl.store(sums + row, tl.sum(total, 0))


@triton.jit
def normal_cdf(x):
    # Φ(x) as the sigmoid of x P(x²): half the operations of an error function. The polynomial P was fitted to an
    # absolute error of 3e-6 of x Φ(x).
    t = tl.minimum(x * x, 31.36)
    y = -9.521042555e-06 + t * (2.917405482e-07 - t * 3.537095949e-09)
    y = 1.800427417e-04 + t * (1.408132084e-04 + t * y)
    y = -2.302120447 + t * (-0.1049996093 + t * y)
    root = tl.rsqrt(1.0 + tl.exp2(x * y))  # its square costs less than a division
    return root * root


@triton.jit
def gelu(x):
    return x * normal_cdf(x)


@triton.jit(do_not_specialize=["rows"])
def geglu(x, out, rows, c, height: tl.constexpr, width: tl.constexpr):
    row = tl.program_id(1) * height + tl.arange(0, height)
    columns = tl.program_id(0) * width + tl.arange(0, width)
    mask = (row < rows)[:, None]
    offsets = row.to(tl.int64)[:, None] * (2 * c) + columns[None]
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + offsets + c, mask=mask, other=0.0).to(tl.float32)
    y = value * gelu(gate)
    tl.store(out + row.to(tl.int64)[:, None] * c + columns[None], y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def linear_geglu(
    x, weight, scale, bias, out, c, inner,
    scaled: tl.constexpr, height: tl.constexpr, width: tl.constexpr, depth: tl.constexpr,
):  # fmt: skip
    # x, weight (2, c, inner) and out are tensor descriptors. Neighbouring programs share their rows of x. scaled: by
    # `scale`, one for each row of a float8 weight.
    row = tl.program_id(0) // (c // width) * height
    column = tl.program_id(0) % (c // width) * width
    sums = tl.zeros([height, 2 * width], tl.float32)
    for i in range(0, inner, depth):
        both = weight.load([0, column, i]).reshape(2 * width, depth)
        sums = tl.dot(x.load([row, i]), both.T, sums)
    value, gate = sums.reshape(height, 2, width).permute(0, 2, 1).split()
    columns = column + tl.arange(0, width)
    if scaled:
        value *= tl.load(scale + columns)[None]
        gate *= tl.load(scale + c + columns)[None]
    value += tl.load(bias + columns).to(tl.float32)[None]
    gate += tl.load(bias + c + columns).to(tl.float32)[None]
    out.store([row, column], (value * gelu(gate)).to(out.dtype))


@triton.jit(do_not_specialize=["rows", "segment", "down", "across", "run"])
def product_fp8(
    x, weight, scale, residual, out, rows, segment, down, across, run, c, factor,
    inner: tl.constexpr, taps: tl.constexpr, gaps: tl.constexpr, add: tl.constexpr,
    height: tl.constexpr, width: tl.constexpr, depth: tl.constexpr,
):  # fmt: skip
    # A product of float8 matrices, or a convolution: the sum of `taps` products of shifted rows. x and weight (taps c,
    # inner) are tensor descriptors. Of each of `axis 1` segments of x, `segment` rows long, `rows` are computed; tap t
    # reads those t // 3 * down + t % 3 * across further on. gaps: after each run of rows, one has no place in `out`.
    columns_of = tl.cdiv(c, width)
    first = tl.program_id(0) // columns_of * height
    column = tl.program_id(0) % columns_of * width
    start = tl.program_id(1) * segment + first
    parts: tl.constexpr = (inner + depth - 1) // depth
    sums = tl.zeros([height, width], tl.float32)
    for i in range(0, taps * parts):
        tap, k = i // parts, i % parts * depth
        a = x.load([start + tap // 3 * down + tap % 3 * across, k])
        sums = tl.dot(a, weight.load([tap * c + column, k]).T, sums)
    columns = column + tl.arange(0, width)
    row, inside = first + tl.arange(0, height), columns < c
    mask = (row < rows)[:, None] & inside[None]
    kept = rows
    if gaps:
        mask = mask & (row % (run + 1) < run)[:, None]
        row -= row // (run + 1)
        kept = rows // (run + 1) * run
    offsets = (tl.program_id(1).to(tl.int64) * kept + row)[:, None] * c + columns[None]
    y = sums * (tl.load(scale + columns, mask=inside, other=0.0) * factor)[None]
    if add:
        y += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["s"])
def blend(
    a, b, add, out, weight_a, weight_b, a_frame, b_frame, out_frame, add_row, s, c,
    height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * height + tl.arange(0, height)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    n = tl.program_id(2).to(tl.int64)
    mask = (rows < s)[:, None]
    offsets = rows.to(tl.int64)[:, None] * c + columns[None]
    added = tl.load(add + n * add_row + columns).to(tl.float32)[None]
    y = weighted_sum(a + n * a_frame + offsets, b + n * b_frame + offsets, weight_a, weight_b, added, mask)
    tl.store(out + n * out_frame + offsets, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def weighted_sum(a, b, weight_a, weight_b, added, mask):
    return tl.load(a, mask=mask).to(tl.float32) * weight_a + tl.load(b, mask=mask).to(tl.float32) * weight_b + added


@triton.jit(do_not_specialize=["s"])
def blend_measured(
    a, b, add, out, mean, deviation, weight_a, weight_b, a_frame, b_frame, out_frame, add_row, s, c,
    tile: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    # `blend`, then `measure` of the result as rounded. mean and deviation are contiguous.
    i, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    a, b, out = a + n * a_frame, b + n * b_frame, out + n * out_frame
    added = tl.load(add + n * add_row + columns).to(tl.float32)
    first = i.to(tl.int64) * tile * c + columns
    origin = weighted_sum(a + first, b + first, weight_a, weight_b, added, None)
    origin = origin.to(out.dtype.element_ty).to(tl.float32)
    tl.debug_barrier()  # `out` may be a or b: no thread writes the first row before all have read it
    sums = tl.zeros([height, width], tl.float32)
    squares = tl.zeros([height, width], tl.float32)
    last = tl.minimum(s, (i + 1) * tile)
    for start in tl.range(i * tile, last, height, num_stages=3):
        rows = start + tl.arange(0, height)
        mask = (rows < last)[:, None]
        offsets = rows.to(tl.int64)[:, None] * c + columns[None]
        y = weighted_sum(a + offsets, b + offsets, weight_a, weight_b, added[None], mask).to(out.dtype.element_ty)
        tl.store(out + offsets, y, mask=mask)
        difference = tl.where(mask, y.to(tl.float32) - origin[None], 0.0)
        sums += difference
        squares += difference * difference
    place = (n * tl.num_programs(0) + i) * c + columns
    store_moments(mean, deviation, place, origin, sums, squares, last - i * tile)


@triton.jit(do_not_specialize=["h", "w"])
def interleave(x, bias, out, h, w, c, height: tl.constexpr, width: tl.constexpr):
    columns = tl.program_id(0) * width + tl.arange(0, width)
    pixels = tl.program_id(1) * height + tl.arange(0, height)
    n, row = (tl.program_id(2) // h).to(tl.int64), tl.program_id(2) % h
    mask = (pixels < w)[:, None]
    added = tl.load(bias + columns).to(tl.float32)[None]
    for i in tl.static_range(4):
        right, below = i // 2, i % 2
        offsets = ((n * (h + 1) + row + below) * (w + 1) + pixels + right)[:, None] * (4 * c) + i * c + columns[None]
        y = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) + added
        offsets = ((n * 2 * h + 2 * row + below) * 2 * w + 2 * pixels + right)[:, None] * c + columns[None]
        tl.store(out + offsets, y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["h", "w"])
def sum_taps(products, bias, out, h, w, width: tl.constexpr):
    # A 3x3 convolution: products (n, o, 9, h, w) are those of each pixel with each tap, out (n, o, h, w) their sums.
    pixel = tl.program_id(0) * width + tl.arange(0, width)
    plane = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    row, column = pixel // w, pixel % w
    sums = tl.zeros([width], tl.float32) + tl.load(bias + tl.program_id(1)).to(tl.float32)
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        inside = (row + down >= 0) & (row + down < h) & (column + right >= 0) & (column + right < w)
        sums += tl.load(products + (plane * 9 + tap) * h * w + pixel + down * w + right, mask=inside, other=0.0)
    tl.store(out + plane * h * w + pixel, sums.to(out.dtype.element_ty), mask=pixel < h * w)


@triton.jit(do_not_specialize=["frames", "s"])
def temporal_attention(q, k, v, out, frames, s, row, c, scale, rows: tl.constexpr, d: tl.constexpr):
    # row: from a pixel of q, k and v to the next.
    pixel, head, clip = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    t = tl.arange(0, rows)
    frame = (clip * frames + t).to(tl.int64) * s + pixel
    mask = (t < frames)[:, None]
    columns = head * d + tl.arange(0, d)
    offsets = frame[:, None] * row + columns[None]
    query = tl.load(q + offsets, mask=mask, other=0.0)
    key = tl.load(k + offsets, mask=mask, other=0.0)
    value = tl.load(v + offsets, mask=mask, other=0.0)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where((t < frames)[None], scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    y = tl.dot(weights.to(value.dtype), value, input_precision="ieee") / tl.sum(weights, 1)[:, None]
    tl.store(out + frame[:, None] * c + columns[None], y.to(out.dtype.element_ty), mask=mask)
