"""The kernels of `sgm.fast.kernels` in Triton, which says what each computes and lays the arguments out.

c and the strides are specialized on, so that loads are known to be aligned; sizes of pictures are not, so that each
kernel is compiled a few times at most.
"""

# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportGeneralTypeIssues=false

from typing import Any

import triton
import triton.language

# To a type checker Triton's language is no Python.
tl: Any = triton.language


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
    for start in range(i * run, last, height):
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
    run: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    clip, group = tl.program_id(0), tl.program_id(1)
    total = frames.to(tl.float32) * pixels * size
    count = frames * runs * size
    sums = tl.zeros([block], tl.float32)
    for start in range(0, count, block):
        i = start + tl.arange(0, block)
        part, channel = i // size % runs, group * size + i % size
        row = clip * frames + i // size // runs
        value = tl.load(mean + (row * runs + part) * c + channel, mask=i < count, other=0.0)
        value += tl.load(add + row * add_row + channel, mask=i < count, other=0.0).to(tl.float32)
        sums += tl.where(i < count, value * tl.minimum(pixels - part * run, run).to(tl.float32), 0.0)
    middle = tl.sum(sums) / total
    sums = tl.zeros([block], tl.float32)
    for start in range(0, count, block):
        i = start + tl.arange(0, block)
        part, channel = i // size % runs, group * size + i % size
        row = clip * frames + i // size // runs
        at = (row * runs + part) * c + channel
        apart = tl.load(mean + at, mask=i < count, other=0.0) - middle
        apart += tl.load(add + row * add_row + channel, mask=i < count, other=0.0).to(tl.float32)
        own = tl.load(deviation + at, mask=i < count, other=0.0)
        value = own + apart * apart * tl.minimum(pixels - part * run, run).to(tl.float32)
        sums += tl.where(i < count, value, 0.0)
    factor = tl.rsqrt(tl.sum(sums) / total + eps)
    for start in range(0, frames * size, block):
        i = start + tl.arange(0, block)
        inside = i < frames * size
        row, channel = clip * frames + i // size, group * size + i % size
        gain = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32) * factor
        more = tl.load(add + row * add_row + channel, mask=inside, other=0.0).to(tl.float32)
        offset = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
        tl.store(scale + row * c + channel, gain, mask=inside)
        tl.store(shift + row * c + channel, (more - middle) * gain + offset, mask=inside)


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
def layer_norm(x, add, weight, bias, out, frame, add_row, s, c, eps, height: tl.constexpr, width: tl.constexpr):
    n = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * height + tl.arange(0, height)
    columns = tl.arange(0, width)
    real = columns < c
    inside = (rows < s)[:, None] & real[None]
    at = rows[:, None] * c + columns[None]
    value = tl.load(x + n * frame + at, mask=inside, other=0.0).to(tl.float32)
    more = tl.load(add + n * add_row + columns, mask=real, other=0.0).to(tl.float32)
    value += more[None]
    middle = tl.sum(value, 1) / c
    apart = tl.where(inside, value - middle[:, None], 0.0)
    factor = tl.rsqrt(tl.sum(apart * apart, 1) / c + eps)
    gain = tl.load(weight + columns, mask=real, other=0.0).to(tl.float32)
    offset = tl.load(bias + columns, mask=real, other=0.0).to(tl.float32)
    y = apart * factor[:, None] * gain[None] + offset[None]
    tl.store(out + n * s * c + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def geglu(x, out, rows, c, height: tl.constexpr, width: tl.constexpr):
    row = tl.program_id(1) * height + tl.arange(0, height)
    columns = tl.program_id(0) * width + tl.arange(0, width)
    inside = (row < rows)[:, None]
    at = row.to(tl.int64)[:, None] * (2 * c) + columns[None]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + at + c, mask=inside, other=0.0).to(tl.float32)
    # GELU by the complementary error function, to a relative 1.2e-7 (Press et al., Numerical Recipes, 6.2.2): where
    # `tl.erf` would keep the processors busy for longer than the memory.
    z = tl.abs(gate) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.5 * z)
    series = -0.82215223 + t * 0.17087277
    series = -1.13520398 + t * (1.48851587 + t * series)
    series = -0.18628806 + t * (0.27886807 + t * series)
    series = 0.37409196 + t * (0.09678418 + t * series)
    tail = 0.5 * t * tl.exp(-z * z - 1.26551223 + t * (1.00002368 + t * series))
    y = value * gate * tl.where(gate > 0, 1.0 - tail, tail)
    tl.store(out + row.to(tl.int64)[:, None] * c + columns[None], y.to(out.dtype.element_ty), mask=inside)


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


@triton.jit(do_not_specialize=["frames", "s"])
def unfold(x, scale, shift, out, frame, frames, s, c, taps: tl.constexpr, height: tl.constexpr, width: tl.constexpr):
    rows = (tl.program_id(0) * height + tl.arange(0, height)).to(tl.int64)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    n = tl.program_id(2).to(tl.int64)
    inside = (rows < s)[:, None]
    y = tl.load(x + n * frame + rows[:, None] * c + columns[None], mask=inside, other=0.0).to(tl.float32)
    y = y * tl.load(scale + n * c + columns)[None] + tl.load(shift + n * c + columns)[None]
    y = (y * tl.sigmoid(y)).to(out.dtype.element_ty)
    t = n % frames
    for tap in tl.static_range(taps):
        after = taps // 2 - tap  # as its tap-th neighbour this frame stands beside the one so much later
        at = tap * c + columns[None]
        if (t + after >= 0) & (t + after < frames):
            tl.store(out + ((n + after) * s + rows)[:, None] * (taps * c) + at, y, mask=inside)
        if (t - after < 0) | (t - after >= frames):  # nor has it such a neighbour
            tl.store(out + (n * s + rows)[:, None] * (taps * c) + at, tl.zeros_like(y), mask=inside)


@triton.jit(do_not_specialize=["h", "w"])
def interleave(x, out, h, w, c, height: tl.constexpr, width: tl.constexpr):
    columns = tl.program_id(0) * width + tl.arange(0, width)
    pixels = tl.program_id(1) * height + tl.arange(0, height)
    n, row = (tl.program_id(2) // h).to(tl.int64), tl.program_id(2) % h
    inside = (pixels < w)[:, None]
    for i in tl.static_range(4):
        right, below = i // 2, i % 2
        at = ((n * (h + 1) + row + below) * (w + 1) + pixels + right)[:, None] * (4 * c) + i * c + columns[None]
        y = tl.load(x + at, mask=inside, other=0.0)
        at = ((n * 2 * h + 2 * row + below) * 2 * w + 2 * pixels + right)[:, None] * c + columns[None]
        tl.store(out + at, y, mask=inside)


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
