"""The Triton kernels of backward passes, and of sums with factors that are trained; `gradients` launches them.

Conventions are those of `triton_kernels`. Activations are contiguous, (n, s, c).
"""

# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportGeneralTypeIssues=false

from typing import Any

import triton
import triton.language

from sgm.fast.triton_kernels import normal_cdf

tl: Any = triton.language


@triton.jit
def _through_silu(y, grad):
    share = tl.sigmoid(y)
    return grad * share * (1.0 + y * (1.0 - share))


@triton.jit(do_not_specialize=["s", "tiles"])
def gradient_sums(
    x, grad, factor, offset, weight, bias, of_grad, of_product, s, tiles, c,
    silu: tl.constexpr, tile: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    # Of each tile of pixels, and each channel: the sum of the gradient before the norm's SiLU, and of its product with
    # the normalized value, x factor + offset.
    i, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    a, b = tl.load(factor + n * c + columns)[None], tl.load(offset + n * c + columns)[None]
    gain, shift = tl.load(weight + columns).to(tl.float32)[None], tl.load(bias + columns).to(tl.float32)[None]
    sums = tl.zeros([height, width], tl.float32)
    products = tl.zeros([height, width], tl.float32)
    last = tl.minimum(s, (i + 1) * tile)
    for start in tl.range(i * tile, last, height, num_stages=3):
        rows = start + tl.arange(0, height)
        mask = (rows < last)[:, None]
        offsets = (n * s + rows)[:, None] * c + columns[None]
        value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) * a + b
        g = tl.load(grad + offsets, mask=mask, other=0.0).to(tl.float32)
        if silu:
            g = _through_silu(value * gain + shift, g)
        sums += g
        products += g * value
    target = (n * tiles + i) * c + columns
    tl.store(of_grad + target, tl.sum(sums, 0))
    tl.store(of_product + target, tl.sum(products, 0))


@triton.jit(do_not_specialize=["s"])
def group_norm_gradient(
    x, grad, factor, offset, weight, bias, mean_grad, mean_product, out, s, c,
    silu: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    # mean_grad, mean_product: over a norm's group, of the gradient times the weight, and of that times the value.
    rows = tl.program_id(0) * height + tl.arange(0, height)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    n = tl.program_id(2).to(tl.int64)
    mask = (rows < s)[:, None]
    a, b = tl.load(factor + n * c + columns)[None], tl.load(offset + n * c + columns)[None]
    gain, shift = tl.load(weight + columns).to(tl.float32)[None], tl.load(bias + columns).to(tl.float32)[None]
    of_grad, of_product = tl.load(mean_grad + n * c + columns)[None], tl.load(mean_product + n * c + columns)[None]
    offsets = (n * s + rows)[:, None] * c + columns[None]
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) * a + b
    g = tl.load(grad + offsets, mask=mask, other=0.0).to(tl.float32)
    if silu:
        g = _through_silu(value * gain + shift, g)
    y = a * (g * gain - of_grad - value * of_product)
    tl.store(out + offsets, y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def geglu_gradient(both, grad, rows, c, height: tl.constexpr, width: tl.constexpr):
    # The gradient of `geglu` takes the place of its input, (rows, 2 c).
    row = tl.program_id(1) * height + tl.arange(0, height)
    columns = tl.program_id(0) * width + tl.arange(0, width)
    mask = (row < rows)[:, None]
    offsets = row.to(tl.int64)[:, None] * (2 * c) + columns[None]
    value = tl.load(both + offsets, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(both + offsets + c, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + row.to(tl.int64)[:, None] * c + columns[None], mask=mask, other=0.0).to(tl.float32)
    share = normal_cdf(gate)
    density = 0.3989422804 * tl.exp2(-0.7213475204 * gate * gate)
    tl.store(both + offsets, (g * gate * share).to(both.dtype.element_ty), mask=mask)
    tl.store(both + offsets + c, (g * value * (share + gate * density)).to(both.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["s"])
def residual_sum(
    a, b, add, factor, out, s, c,
    with_a: tl.constexpr, with_b: tl.constexpr, with_add: tl.constexpr, with_factor: tl.constexpr,
    height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    # a + factor (b + add), without the terms that are not there. add: (n, c), factor: (n,).
    rows = tl.program_id(0) * height + tl.arange(0, height)
    columns = tl.program_id(1) * width + tl.arange(0, width)
    n = tl.program_id(2).to(tl.int64)
    mask = (rows < s)[:, None]
    offsets = (n * s + rows)[:, None] * c + columns[None]
    y = tl.zeros([height, width], tl.float32)
    if with_b:
        y += tl.load(b + offsets, mask=mask, other=0.0).to(tl.float32)
    if with_add:
        y += tl.load(add + n * c + columns).to(tl.float32)[None]
    if with_factor:
        y *= tl.load(factor + n).to(tl.float32)
    if with_a:
        y += tl.load(a + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["frames", "s"])
def temporal_attention_gradient(
    q, k, v, grad, of_q, of_k, of_v, frames, s, c, scale, rows: tl.constexpr, d: tl.constexpr
):  # fmt: skip
    # The weights of attention, (rows, rows), are computed anew. scale: before the exponential, without its base.
    pixel, head, clip = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    t = tl.arange(0, rows)
    mask = (t < frames)[:, None]
    offsets = ((clip * frames + t).to(tl.int64) * s + pixel)[:, None] * c + (head * d + tl.arange(0, d))[None]
    query = tl.load(q + offsets, mask=mask, other=0.0)
    key = tl.load(k + offsets, mask=mask, other=0.0)
    value = tl.load(v + offsets, mask=mask, other=0.0)
    g = tl.load(grad + offsets, mask=mask, other=0.0)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * 1.4426950408889634)
    scores = tl.where((t < frames)[None], scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    of_weights = tl.dot(g, tl.trans(value), input_precision="ieee")
    of_scores = weights * (of_weights - tl.sum(weights * of_weights, 1)[:, None]) * scale
    half, of_half = weights.to(value.dtype), of_scores.to(value.dtype)
    out = of_q.dtype.element_ty
    tl.store(of_v + offsets, tl.dot(tl.trans(half), g, input_precision="ieee").to(out), mask=mask)
    tl.store(of_q + offsets, tl.dot(of_half, key, input_precision="ieee").to(out), mask=mask)
    tl.store(of_k + offsets, tl.dot(tl.trans(of_half), query, input_precision="ieee").to(out), mask=mask)
