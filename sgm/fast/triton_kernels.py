"""The Triton kernels that `triton_ops` launches; `torch_ops` says what each computes.

c and the strides are specialized on, so that loads are known to be aligned; sizes of pictures are not, so that each
kernel is compiled a few times at most.
"""

# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportGeneralTypeIssues=false

from typing import Any

import triton
import triton.language

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # before Triton 3.4
    TensorDescriptor = None

# To a type checker Triton's language is no Python.
tl: Any = triton.language
describe: Any = TensorDescriptor and TensorDescriptor.from_tensor


@triton.jit(do_not_specialize=["s"])
def measure(
    x, mean, deviation, frame, out_frame, out_run, s, c,
    run: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    i, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    x += n * frame
    # Sums of differences to one of the values: no digits are lost where the mean is far from zero.
    origin = tl.load(x + i.to(tl.int64) * run * c + columns).to(tl.float32)
    sums = tl.zeros([height, width], tl.float32)
    squares = tl.zeros([height, width], tl.float32)
    last = tl.minimum(s, (i + 1) * run)
    for start in tl.range(i * run, last, height, num_stages=3):
        rows = start + tl.arange(0, height)
        inside = (rows < last)[:, None]
        value = tl.load(x + rows.to(tl.int64)[:, None] * c + columns[None], mask=inside, other=0.0)
        apart = tl.where(inside, value.to(tl.float32) - origin[None], 0.0)
        sums += apart
        squares += apart * apart
    count = (last - i * run).to(tl.float32)
    middle = tl.sum(sums, 0) / count
    at = n * out_frame + i * out_run + columns
    tl.store(mean + at, origin + middle)
    tl.store(deviation + at, tl.maximum(tl.sum(squares, 0) - middle * middle * count, 0.0))


@triton.jit(do_not_specialize=["pixels", "runs", "frames", "size"])
def finish(
    mean, deviation, add, weight, bias, scale, shift, add_row, pixels, runs, frames, c, size, eps,
    run: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    clip, group = tl.program_id(0), tl.program_id(1)
    real = (tl.arange(0, width) < size)[None]
    columns = group * size + tl.arange(0, width)[None]
    total = frames.to(tl.float32) * pixels * size
    mean += clip * frames * runs * c
    deviation += clip * frames * runs * c
    add += clip * frames * add_row
    sums = tl.zeros([height, width], tl.float32)
    for start in range(0, frames * runs, height):
        i = (start + tl.arange(0, height))[:, None]
        inside = (i < frames * runs) & real
        count = tl.minimum(pixels - i % runs * run, run).to(tl.float32)
        value = tl.load(mean + i * c + columns, mask=inside, other=0.0)
        value += tl.load(add + i // runs * add_row + columns, mask=inside, other=0.0).to(tl.float32)
        sums += tl.where(inside, value * count, 0.0)
    middle = tl.sum(sums) / total
    sums = tl.zeros([height, width], tl.float32)
    for start in range(0, frames * runs, height):
        i = (start + tl.arange(0, height))[:, None]
        inside = (i < frames * runs) & real
        count = tl.minimum(pixels - i % runs * run, run).to(tl.float32)
        apart = tl.load(mean + i * c + columns, mask=inside, other=0.0) - middle
        apart += tl.load(add + i // runs * add_row + columns, mask=inside, other=0.0).to(tl.float32)
        own = tl.load(deviation + i * c + columns, mask=inside, other=0.0)
        sums += tl.where(inside, own + apart * apart * count, 0.0)
    factor = tl.rsqrt(tl.sum(sums) / total + eps)
    gain = tl.load(weight + columns, mask=real, other=0.0).to(tl.float32) * factor
    offset = tl.load(bias + columns, mask=real, other=0.0).to(tl.float32)
    for start in range(0, frames, height):
        i = (start + tl.arange(0, height))[:, None]
        inside = (i < frames) & real
        at = (clip * frames + i) * c + columns
        more = tl.load(add + i * add_row + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(scale + at, gain + tl.zeros_like(more), mask=inside)
        tl.store(shift + at, (more - middle) * gain + offset, mask=inside)


@triton.jit(do_not_specialize=["s"])
def scale_shift(
    x, scale, shift, out, frame, out_frame, out_pixel, scale_row, s, c,
    silu: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * height + tl.arange(0, height)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    n = tl.program_id(2).to(tl.int64)
    inside = (rows < s)[:, None]
    rows = rows.to(tl.int64)[:, None]
    y = tl.load(x + n * frame + rows * c + columns[None], mask=inside, other=0.0).to(tl.float32)
    y = y * tl.load(scale + n * scale_row + columns)[None] + tl.load(shift + n * scale_row + columns)[None]
    if silu:
        y = y * tl.sigmoid(y)
    at = n * out_frame + rows * out_pixel + columns[None]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["s"])
def layer_norm(
    x, add, weight, bias, out, frame, add_row, s, eps,
    c: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    # Rows come in parts, since 320, 640 and 1280 are no powers of two, and thrice, the last two times from the cache.
    n = tl.program_id(1).to(tl.int64)
    rows = (tl.program_id(0) * height + tl.arange(0, height))[:, None]
    x, add, out = x + n * frame + rows * c, add + n * add_row, out + n * s * c + rows * c
    sums = tl.zeros([height, width], tl.float32)
    for first in tl.static_range(0, c, width):
        columns = first + tl.arange(0, width)[None]
        sums += tl.load(x + columns, mask=rows < s, other=0.0).to(tl.float32) + tl.load(add + columns).to(tl.float32)
    middle = (tl.sum(sums, 1) / c)[:, None]
    sums = tl.zeros([height, width], tl.float32)
    for first in tl.static_range(0, c, width):
        columns = first + tl.arange(0, width)[None]
        y = tl.load(x + columns, mask=rows < s, other=0.0).to(tl.float32) + tl.load(add + columns).to(tl.float32)
        sums += (y - middle) * (y - middle)
    factor = tl.rsqrt(tl.sum(sums, 1) / c + eps)[:, None]
    for first in tl.static_range(0, c, width):
        columns = first + tl.arange(0, width)[None]
        y = tl.load(x + columns, mask=rows < s, other=0.0).to(tl.float32) + tl.load(add + columns).to(tl.float32)
        y = (y - middle) * factor * tl.load(weight + columns).to(tl.float32) + tl.load(bias + columns).to(tl.float32)
        tl.store(out + columns, y.to(out.dtype.element_ty), mask=rows < s)


@triton.jit
def gelu(x):
    # x Φ(x), where Φ is the sigmoid of x P(x²): P was fitted to an absolute 3e-6 of x Φ(x), which takes half the
    # operations of an error function.
    t = tl.minimum(x * x, 31.36)
    y = -9.521042555e-06 + t * (2.917405482e-07 - t * 3.537095949e-09)
    y = 1.800427417e-04 + t * (1.408132084e-04 + t * y)
    y = -2.302120447 + t * (-0.1049996093 + t * y)
    root = tl.rsqrt(1.0 + tl.exp2(x * y))  # its square costs less than a division
    return x * root * root


@triton.jit(do_not_specialize=["rows"])
def geglu(x, out, rows, c, height: tl.constexpr, width: tl.constexpr):
    row = tl.program_id(1) * height + tl.arange(0, height)
    columns = tl.program_id(0) * width + tl.arange(0, width)
    inside = (row < rows)[:, None]
    at = row.to(tl.int64)[:, None] * (2 * c) + columns[None]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + at + c, mask=inside, other=0.0).to(tl.float32)
    y = value * gelu(gate)
    tl.store(out + row.to(tl.int64)[:, None] * c + columns[None], y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gated(x, weight, bias, out, c, inner, height: tl.constexpr, width: tl.constexpr, depth: tl.constexpr):
    # All tensors but the bias are descriptors; of the weight (2, c, inner). Neighbours share their rows of x.
    row = tl.program_id(0) // (c // width) * height
    column = tl.program_id(0) % (c // width) * width
    sums = tl.zeros([height, 2 * width], tl.float32)
    for i in range(0, inner, depth):
        both = weight.load([0, column, i]).reshape(2 * width, depth)
        sums = tl.dot(x.load([row, i]), both.T, sums)
    value, gate = sums.reshape(height, 2, width).permute(0, 2, 1).split()
    columns = column + tl.arange(0, width)
    value += tl.load(bias + columns).to(tl.float32)[None]
    gate += tl.load(bias + c + columns).to(tl.float32)[None]
    out.store([row, column], (value * gelu(gate)).to(out.dtype))


@triton.jit(do_not_specialize=["s"])
def blend(
    a, b, add, out, of_a, of_b, a_frame, b_frame, out_frame, add_row, s, c,
    height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * height + tl.arange(0, height)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    n = tl.program_id(2).to(tl.int64)
    inside = (rows < s)[:, None]
    at = rows.to(tl.int64)[:, None] * c + columns[None]
    y = tl.load(a + n * a_frame + at, mask=inside, other=0.0).to(tl.float32) * of_a
    y += tl.load(b + n * b_frame + at, mask=inside, other=0.0).to(tl.float32) * of_b
    y += tl.load(add + n * add_row + columns).to(tl.float32)[None]
    tl.store(out + n * out_frame + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["h", "w"])
def interleave(x, bias, out, h, w, c, height: tl.constexpr, width: tl.constexpr):
    columns = tl.program_id(0) * width + tl.arange(0, width)
    pixels = tl.program_id(1) * height + tl.arange(0, height)
    n, row = (tl.program_id(2) // h).to(tl.int64), tl.program_id(2) % h
    inside = (pixels < w)[:, None]
    more = tl.load(bias + columns).to(tl.float32)[None]
    for i in tl.static_range(4):
        right, below = i // 2, i % 2
        at = ((n * (h + 1) + row + below) * (w + 1) + pixels + right)[:, None] * (4 * c) + i * c + columns[None]
        y = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + more
        at = ((n * 2 * h + 2 * row + below) * 2 * w + 2 * pixels + right)[:, None] * c + columns[None]
        tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["frames", "s"])
def attend(qkv, out, frames, s, c, scale, rows: tl.constexpr, d: tl.constexpr):
    pixel, head, clip = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    t = tl.arange(0, rows)
    frame = (clip * frames + t).to(tl.int64) * s + pixel
    inside = (t < frames)[:, None]
    columns = head * d + tl.arange(0, d)
    at = frame[:, None] * (3 * c) + columns[None]
    q = tl.load(qkv + at, mask=inside, other=0.0)
    k = tl.load(qkv + at + c, mask=inside, other=0.0)
    v = tl.load(qkv + at + 2 * c, mask=inside, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where((t < frames)[None], scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    y = tl.dot(weights.to(v.dtype), v, input_precision="ieee") / tl.sum(weights, 1)[:, None]
    tl.store(out + frame[:, None] * c + columns[None], y.to(out.dtype.element_ty), mask=inside)
