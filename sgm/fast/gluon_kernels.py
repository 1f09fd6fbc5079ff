"""Kernels in Triton's Gluon for Hopper cards, which `gluon_ops` launches: attention and products.

Each has groups of four warps that compute and a warp that copies (TMA) what they need next. Barriers in shared memory
(mbarrier) tell one that a place is full, the other that it is empty again; a wait names the parity of a phase.
As many programs are started as the card has multiprocessors; each goes through its share of the tiles.
"""

# Gluon unpacks tuples whole, and knows neither enumerations nor starred items.
# ruff: noqa: RUF005, RUF059, SIM113
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportGeneralTypeIssues=false

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language
from triton.experimental.gluon.language.nvidia import hopper

from sgm.fast import triton_kernels

# Type checkers cannot read Gluon's language.
gl: Any = language
mbarrier: Any = hopper.mbarrier
tma: Any = hopper.tma
wgmma: Any = hopper.warpgroup_mma
wait: Any = hopper.warpgroup_mma_wait
fence: Any = hopper.fence_async_shared
kernel: Any = gluon.jit
normal_cdf: Any = gluon.jit(triton_kernels.normal_cdf.fn)

ROWS = gl.constexpr(64)  # that a group of warps multiplies: those of one wgmma
WIDTH = gl.constexpr(64)  # columns of a step's results; with GEGLU, as many values and as many gates are multiplied
DEPTH = gl.constexpr(64)  # channels of a block in shared memory: 128 bytes, the widest swizzle; also of a head


@kernel
def at_count(count, places: gl.constexpr):
    """Where the count-th block lies among so many places, and the parity of its phase."""
    return count % places, (count // places) & 1


@kernel
def halves_of(x):
    """(ROWS, c) as two of (ROWS, c / 2), without moving anything between threads."""
    return gl.split(gl.permute(gl.reshape(x, [ROWS, 2, x.shape[1] // 2]), [0, 2, 1]))


@kernel
def gated(products, value_bias, gate_bias, layout: gl.constexpr):
    """GEGLU of products with the columns of values | gates, (ROWS, 2 c) -> (ROWS, c) in this layout."""
    value, gate = halves_of(products)
    value = gl.convert_layout(value, layout) + value_bias.to(gl.float32)[None]
    gate = gl.convert_layout(gate, layout) + gate_bias.to(gl.float32)[None]
    return value * (gate * normal_cdf(gate))


# Products of rows that are normed or blended first. Where their inner dimension is short (320 channels: the first
# level, which has the most pixels), loading takes as long as multiplying, and GELU as long again. So 64 rows are loaded
# once, changed and kept in registers while all columns of the weight stream past them. Each group of warps has 64 rows
# of its own, later than another: one multiplies while the other finishes and stores.


@kernel
def rows_at(tile, across, consumers: gl.constexpr, i: gl.constexpr):
    """The frame and the first row of consumer i's part of a tile."""
    return tile // across, (tile % across * consumers + i) * ROWS


@kernel
def load_rows(x, z, rows, barriers, sizes, consumers: gl.constexpr, parts: gl.constexpr):
    """Copies each tile's rows, of one consumer after the other: blocks of x, each followed by that of z if there is."""
    rows_full, rows_empty, full, empty, turns, residual_full = barriers
    tiles, across, steps = sizes
    places: gl.constexpr = rows_empty.type.shape[0]
    sources: gl.constexpr = 1 if z is None else 2
    chunk: gl.constexpr = rows.type.shape[0] // (places * sources)
    count = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        for i in gl.static_range(consumers):
            frame, row = rows_at(tile, across, consumers, i)
            for k in gl.static_range(0, parts, chunk):
                place, phase = at_count(count, places)
                here = rows_full.index((i * parts + k) // chunk)
                mbarrier.wait(rows_empty.index(place), phase ^ 1)
                mbarrier.expect(here, chunk * sources * x.block_type.nbytes)
                for j in gl.static_range(chunk):
                    block, at = (place * chunk + j) * sources, [frame, row, (k + j) * DEPTH]
                    tma.async_copy_global_to_shared(x, at, here, rows.index(block))
                    if sources == 2:
                        tma.async_copy_global_to_shared(z, at, here, rows.index(block + 1))
                count += 1


@kernel
def load_columns(weight, columns, barriers, sizes, parts: gl.constexpr):
    """Copies all columns of the weight, for each tile."""
    rows_full, rows_empty, full, empty, turns, residual_full = barriers
    tiles, across, steps = sizes
    stages: gl.constexpr = full.type.shape[0]
    count = 0
    for _ in range(gl.program_id(0), tiles, gl.num_programs(0)):
        for step in range(0, steps):
            stage, phase = at_count(count, stages)
            mbarrier.wait(empty.index(stage), phase ^ 1)
            mbarrier.expect(full.index(stage), parts * weight.block_type.nbytes)
            for k in gl.static_range(parts):
                at = [0, step * WIDTH, k * DEPTH]
                tma.async_copy_global_to_shared(weight, at, full.index(stage), columns.index(stage * parts + k))
            count += 1


@kernel
def by_channel(x, k, channel):
    """What x has for the channels of the k-th block: (1, DEPTH), float32."""
    return gl.load(x + k * DEPTH + channel).to(gl.float32)[None]


@kernel
def in_float32(memory, layout: gl.constexpr):
    """A block (1, ROWS, DEPTH) of shared memory as (ROWS, DEPTH) in registers."""
    return memory.reshape([ROWS, DEPTH]).load(layout).to(gl.float32)


@kernel
def computed(x):
    """x, half precision, computed here: else the compiler puts it off until what it depends on fills the registers."""
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)


@kernel
def statistics(rows, add, eps, channel, parts: gl.constexpr, layout: gl.constexpr):
    """The mean of each row of x + add, and the reciprocal of its standard deviation: (ROWS, 1)."""
    sums = gl.zeros([ROWS, DEPTH], gl.float32, layout)
    for k in range(parts):
        sums += in_float32(rows.index(k), layout) + by_channel(add, k, channel)
    average = (gl.sum(sums, 1) / (parts * DEPTH))[:, None]
    sums = gl.zeros([ROWS, DEPTH], gl.float32, layout)
    for k in range(parts):
        difference = in_float32(rows.index(k), layout) + by_channel(add, k, channel) - average
        sums += difference * difference
    return average, gl.rsqrt(gl.sum(sums, 1) / (parts * DEPTH) + eps)[:, None]


@kernel
def changed_rows(
    rows, barriers, tensors, numbers, frame, number,
    i: gl.constexpr, consumers: gl.constexpr, parts: gl.constexpr, kind: gl.constexpr,
    layout: gl.constexpr, operand: gl.constexpr,
):  # fmt: skip
    """The number-th rows of consumer i, of f(x) (see `short_product`), rounded: `parts` operands of (ROWS, DEPTH)."""
    rows_full, rows_empty, full, empty, turns, residual_full = barriers
    gain, shift, add, bias, mean, deviation = tensors
    gain_row, add_row, weight_x, weight_z, eps, pixels = numbers
    places: gl.constexpr = rows_empty.type.shape[0]
    sources: gl.constexpr = 2 if kind == "blend" else 1
    chunk: gl.constexpr = rows.type.shape[0] // (places * sources)
    channel = gl.arange(0, DEPTH, gl.SliceLayout(0, layout))
    operands = ()
    for k in gl.static_range(parts):
        place = ((number * consumers + i) * (parts // chunk) + k // chunk) % places
        block = (place * chunk + k % chunk) * sources
        if k % chunk == 0:
            mbarrier.wait(rows_full.index((i * parts + k) // chunk), number & 1)
        if k == 0 and kind == "layer norm":
            average, factor = statistics(rows, add + frame * add_row, eps, channel, parts, layout)
        y = in_float32(rows.index(block), layout)
        if kind == "blend":
            y = y * weight_x + in_float32(rows.index(block + 1), layout) * weight_z
        if kind != "affine":
            y += by_channel(add + frame * add_row, k, channel)
        if kind == "layer norm":
            y = (y - average) * factor
        if kind != "blend":
            y = y * by_channel(gain + frame * gain_row, k, channel)
            y += by_channel(shift + frame * gain_row, k, channel)
        operands = operands + (gl.convert_layout(computed(y.to(rows.dtype)), operand),)
        if k % chunk == chunk - 1:
            fence()
            mbarrier.arrive(rows_empty.index(place), count=1)
    return operands


@kernel
def store_moments(mean, deviation, x, count):
    """Store mean and sum of squared deviations of each column of x (ROWS, WIDTH), of its first `count` rows."""
    layout: gl.constexpr = x.type.layout
    inside = (gl.arange(0, ROWS, gl.SliceLayout(1, layout)) < count)[:, None]
    average = gl.sum(gl.where(inside, x, 0.0), 0) / gl.minimum(count, ROWS).to(gl.float32)
    difference = gl.where(inside, x - average[None], 0.0)
    gl.store(mean, average, mask=count > 0)
    gl.store(deviation, gl.sum(difference * difference, 0), mask=count > 0)


@kernel
def load_residual(out, results, residual_full, count, tile, step, sizes, consumers: gl.constexpr, i: gl.constexpr):
    """Start to copy what the count-th results of consumer i are added to, to where they will be; not past the end."""
    tiles, across, steps = sizes
    frame, row = rows_at(tile, across, consumers, i)
    place, phase = 2 * i + count % 2, tile < tiles
    mbarrier.expect(residual_full.index(place), out.block_type.nbytes, pred=phase)
    at = [frame, row, step * WIDTH]
    tma.async_copy_global_to_shared(out, at, residual_full.index(place), results.index(place), pred=phase)


@kernel
def multiply_rows(
    weight, out, memory, barriers, sizes, tensors, numbers,
    i: gl.constexpr, consumers: gl.constexpr, parts: gl.constexpr, kind: gl.constexpr,
):  # fmt: skip
    """Computes and stores the results of the i-th 64 rows of each tile: first the operand, then step by step."""
    rows, columns, results = memory
    rows_full, rows_empty, full, empty, turns, residual_full = barriers
    tiles, across, steps = sizes
    gain, shift, add, bias, mean, deviation = tensors
    gain_row, add_row, weight_x, weight_z, eps, pixels = numbers
    stages: gl.constexpr = full.type.shape[0]
    halves: gl.constexpr = weight.block_type.shape[0]
    wide: gl.constexpr = halves * WIDTH
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    wide_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, wide, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, wide_layout, 2)
    channel = gl.arange(0, DEPTH, gl.SliceLayout(0, layout))
    count = 0
    number = 0
    if kind == "blend":
        load_residual(out, results, residual_full, 0, gl.program_id(0), 0, sizes, consumers, i)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        frame, row = rows_at(tile, across, consumers, i)
        operands = changed_rows(
            rows, barriers, tensors, numbers, frame, number, i, consumers, parts, kind, layout, operand
        )
        number += 1
        for step in range(0, steps):
            stage, phase = at_count(count, stages)
            if bias is not None:
                value_bias = gl.load(bias + step * WIDTH + channel)
            if halves == 2:
                gate_bias = gl.load(bias + (steps + step) * WIDTH + channel)
                mbarrier.wait(turns.index(i), (count & 1) ^ (1 - i))
            products = gl.zeros([ROWS, wide], gl.float32, wide_layout)
            mbarrier.wait(full.index(stage), phase)
            for k in gl.static_range(parts):
                b = columns.index(stage * parts + k).reshape([wide, DEPTH]).permute((1, 0))
                products = wgmma(operands[k], b, products, use_acc=k > 0, is_async=True)
            if halves == 2:
                mbarrier.arrive(turns.index(1 - i), count=1)
            if kind == "blend":
                tma.store_wait(0)
                last = step + 1 == steps
                following = gl.where(last, tile + gl.num_programs(0), tile)
                next_step = gl.where(last, 0, step + 1)
                load_residual(out, results, residual_full, count + 1, following, next_step, sizes, consumers, i)
            products = wait(0, deps=(products,))
            mbarrier.arrive(empty.index(stage), count=1)
            if halves == 2:
                products = gated(products, value_bias, gate_bias, layout)
            elif bias is not None:
                products += value_bias.to(gl.float32)[None]
            if kind == "blend":
                at, phase = at_count(count, 2)
                result = results.index(2 * i + at)
                mbarrier.wait(residual_full.index(2 * i + at), phase)
                products += in_float32(result, layout)
            else:
                result = results.index(i)
                tma.store_wait(0)
            rounded = products.to(out.dtype)
            result.reshape([ROWS, WIDTH]).store(rounded)
            fence()
            tma.async_copy_shared_to_global(out, [frame, row, step * WIDTH], result)
            if mean is not None:
                offsets = ((frame * gl.cdiv(pixels, ROWS) + row // ROWS) * steps + step) * WIDTH + channel
                store_moments(mean + offsets, deviation + offsets, rounded.to(gl.float32), pixels - row)
            count += 1
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["pixels", "tiles", "across", "steps"])
def short_product(
    x, z, weight, out, gain, shift, add, bias, mean, deviation, gain_row, add_row, weight_x, weight_z, eps, pixels,
    tiles, across, steps, kind: gl.constexpr, parts: gl.constexpr, chunk: gl.constexpr, places: gl.constexpr,
    stages: gl.constexpr, consumers: gl.constexpr,
):  # fmt: skip
    """Products of a weight and the rows of f(x), where f is of one of three kinds.

    "layer norm": of x + add, with the weight `gain` and the bias `shift`, (c,). "affine": x * gain + shift, (n, c).
    "blend": weight_x * x + weight_z * z + add, whose products are added to `out`; mean and deviation, unless None, are
    those of each column of the sum, for each ROWS of the `pixels` rows of a frame: (n, rows / ROWS, c') float32.
    add: (n, c). gain_row, add_row: from one frame's row to the next. bias: (c',) or None. Where the weight is in two
    halves, values and gates, and so is the bias, the result is their GEGLU.

    x, z: (n, s, c), out: (n, s, c'), weight: (1 or 2, c', c), tensor descriptors with blocks of (1, ROWS, DEPTH),
    (1, ROWS, WIDTH) and (1 or 2, WIDTH, DEPTH). tiles: of `consumers` times ROWS rows, `across` a frame. steps: of
    WIDTH columns. parts: c / DEPTH. Rows are copied in chunks of so many blocks (a layer norm needs all at once) to
    `places`, for a tile's chunks at most, and columns to `stages`. consumers: 2 or, without GEGLU, 3.
    """
    halves: gl.constexpr = weight.block_type.shape[0]
    sources: gl.constexpr = 2 if kind == "blend" else 1
    rows = gl.allocate_shared_memory(x.dtype, [places * chunk * sources, 1, ROWS, DEPTH], x.layout)
    columns = gl.allocate_shared_memory(x.dtype, [stages * parts, halves, WIDTH, DEPTH], weight.layout)
    results = gl.allocate_shared_memory(x.dtype, [consumers * sources, 1, ROWS, WIDTH], out.layout)
    # A consumer waits for every phase of its own barriers alone: another's would come in between.
    chunks: gl.constexpr = consumers * parts // chunk
    rows_full = gl.allocate_shared_memory(gl.int64, [chunks, 1], mbarrier.MBarrierLayout())
    rows_empty = gl.allocate_shared_memory(gl.int64, [places, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    residual_full = gl.allocate_shared_memory(gl.int64, [2 * consumers, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(chunks):
        mbarrier.init(rows_full.index(i), count=1)
    for i in gl.static_range(places):
        mbarrier.init(rows_empty.index(i), count=1)
    for i in gl.static_range(stages):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=consumers)
    for i in gl.static_range(2):
        mbarrier.init(turns.index(i), count=1)
    for i in gl.static_range(2 * consumers):
        mbarrier.init(residual_full.index(i), count=1)
    barriers = (rows_full, rows_empty, full, empty, turns, residual_full)
    sizes = (tiles, across, steps)
    tensors = (gain, shift, add, bias, mean, deviation)
    numbers = (gain_row, add_row, weight_x, weight_z, eps, pixels)
    memory = (rows, columns, results)
    fence()  # of the barriers, to the copying engine
    if consumers == 2:
        gl.warp_specialize(
            [
                (multiply_rows, (weight, out, memory, barriers, sizes, tensors, numbers, 0, consumers, parts, kind)),
                (multiply_rows, (weight, out, memory, barriers, sizes, tensors, numbers, 1, consumers, parts, kind)),
                (load_rows, (x, z, rows, barriers, sizes, consumers, parts)),
                (load_columns, (weight, columns, barriers, sizes, parts)),
            ],
            [4, 1, 1],
            [240, 24, 24],
        )
    else:
        gl.warp_specialize(
            [
                (multiply_rows, (weight, out, memory, barriers, sizes, tensors, numbers, 0, consumers, parts, kind)),
                (multiply_rows, (weight, out, memory, barriers, sizes, tensors, numbers, 1, consumers, parts, kind)),
                (multiply_rows, (weight, out, memory, barriers, sizes, tensors, numbers, 2, consumers, parts, kind)),
                (load_rows, (x, z, rows, barriers, sizes, consumers, parts)),
                (load_columns, (weight, columns, barriers, sizes, parts)),
            ],
            [4, 4, 1, 1],
            [160, 160, 32, 32],
        )


# GEGLU of rows with more channels than registers hold. Blocks of rows and columns stream through shared memory; each of
# two groups of warps multiplies 64 rows by 128 columns of values and as many of gates (the widest wgmma).


@kernel
def load_blocks(x, weight, memory, barriers, sizes):
    """Copies, for each tile, the blocks of its rows and columns along the channels."""
    x_memory, w_memory, out_memory = memory
    full, empty = barriers
    tiles, across, parts = sizes
    stages: gl.constexpr = full.type.shape[0]
    count = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, column = tile // across * (2 * ROWS), tile % across * weight.block_type.shape[1]
        for k in range(parts):
            stage, phase = at_count(count, stages)
            mbarrier.wait(empty.index(stage), phase ^ 1)
            mbarrier.expect(full.index(stage), 2 * x.block_type.nbytes + weight.block_type.nbytes)
            for i in gl.static_range(2):
                x_at = [row + i * ROWS, k * DEPTH]
                tma.async_copy_global_to_shared(x, x_at, full.index(stage), x_memory.index(2 * stage + i))
            tma.async_copy_global_to_shared(weight, [0, column, k * DEPTH], full.index(stage), w_memory.index(stage))
            count += 1


@kernel
def start_products(memory, stage, products, i: gl.constexpr, use_acc: gl.constexpr):
    """Start the products of the i-th 64 rows of a stage with its columns, added to `products`."""
    x_memory, w_memory, out_memory = memory
    columns = w_memory.index(stage).reshape([products.shape[1], DEPTH]).permute((1, 0))
    return wgmma(x_memory.index(2 * stage + i), columns, products, use_acc=use_acc, is_async=True)


@kernel
def multiply_blocks(bias, out, memory, barriers, sizes, i: gl.constexpr):
    """GEGLU of the i-th 64 rows of each tile."""
    x_memory, w_memory, out_memory = memory
    full, empty = barriers
    tiles, across, parts = sizes
    stages: gl.constexpr = full.type.shape[0]
    width: gl.constexpr = out.block_type.shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 16])
    wide_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * width, 16])
    channel = gl.arange(0, width, gl.SliceLayout(0, layout))
    count = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, column = tile // across * (2 * ROWS) + i * ROWS, tile % across * width
        stage, phase = at_count(count, stages)
        products = gl.zeros([ROWS, 2 * width], gl.float32, wide_layout)
        mbarrier.wait(full.index(stage), phase)
        products = wait(1, deps=(start_products(memory, stage, products, i, False),))
        count += 1
        for _ in range(1, parts):
            last = stage
            stage, phase = at_count(count, stages)
            mbarrier.wait(full.index(stage), phase)
            products = wait(1, deps=(start_products(memory, stage, products, i, True),))
            mbarrier.arrive(empty.index(last), count=1)
            count += 1
        products = wait(0, deps=(products,))
        mbarrier.arrive(empty.index(stage), count=1)
        value_bias, gate_bias = gl.load(bias + column + channel), gl.load(bias + across * width + column + channel)
        result = gated(products, value_bias, gate_bias, layout)
        tma.store_wait(0)
        out_memory.index(i).store(result.to(out.dtype))
        fence()
        tma.async_copy_shared_to_global(out, [row, column], out_memory.index(i))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["tiles", "across", "parts"])
def product_geglu(x, weight, bias, out, tiles, across, parts, stages: gl.constexpr):
    """out = the GEGLU of x times weight: (rows, c) -> (rows, c').

    x, out, weight (2, c', c): tensor descriptors with blocks of (ROWS, DEPTH), (ROWS, width) and (2, width, DEPTH).
    tiles: of 2 ROWS rows and `width` columns, `across` beside each other. parts: c / DEPTH.
    """
    x_memory = gl.allocate_shared_memory(x.dtype, [2 * stages, ROWS, DEPTH], x.layout)
    w_memory = gl.allocate_shared_memory(x.dtype, [stages, 2, weight.block_type.shape[1], DEPTH], weight.layout)
    out_memory = gl.allocate_shared_memory(x.dtype, [2, ROWS, out.block_type.shape[1]], out.layout)
    full = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(stages):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    memory, barriers, sizes = (x_memory, w_memory, out_memory), (full, empty), (tiles, across, parts)
    fence()  # of the barriers, to the copying engine
    gl.warp_specialize(
        [
            (multiply_blocks, (bias, out, memory, barriers, sizes, 0)),
            (multiply_blocks, (bias, out, memory, barriers, sizes, 1)),
            (load_blocks, (x, weight, memory, barriers, sizes)),
        ],
        [4, 1],
        [240, 24],
    )


# Attention, as FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608): three groups of warps with 64 queries each share
# blocks of keys and values. While a block's weights (the exponentials) are computed, its predecessor's are multiplied.


@kernel
def greatest(scores):
    """The greatest of each row, (ROWS, keys) -> (ROWS,), by four chains of comparisons."""
    left, right = halves_of(scores)
    left, right = halves_of(gl.maximum(left, right))
    return gl.convert_layout(gl.max(gl.maximum(left, right), 1), gl.SliceLayout(1, scores.type.layout))


@kernel
def partial_sums(weights):
    """(ROWS, keys) -> (ROWS, 4): the sums of what each thread holds of a row."""
    return gl.sum(gl.sum(gl.reshape(weights, [ROWS, weights.shape[1] // 8, 4, 2]), 3), 1)


@kernel
def by_row(x, like):
    """(ROWS,) -> (ROWS, 1), to be multiplied by `like`, (ROWS, c)."""
    return gl.expand_dims(gl.convert_layout(x, gl.SliceLayout(1, like.type.layout)), 1)


@kernel
def start_scores(q, keys, layout: gl.constexpr):
    """Start the products of queries (ROWS, DEPTH) and a block of keys (1, keys, DEPTH) -> (ROWS, keys)."""
    count: gl.constexpr = keys.shape[1]
    empty = gl.zeros([ROWS, count], gl.float32, layout)
    return wgmma(q, keys.reshape([count, DEPTH]).permute((1, 0)), empty, use_acc=False, is_async=True)


@kernel
def place(tile, groups, heads):
    """The frame, head and group of queries of a tile."""
    return tile // (groups * heads), tile // groups % heads, tile % groups


@kernel
def load_attended(queries, keys, memory, barriers, sizes):
    """Copies each tile's queries, then its blocks of keys and values, the last first, which may have to be masked."""
    q_memory, k_memory, v_memory, out_memory = memory
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    s, heads, groups, tiles = sizes
    stages: gl.constexpr = k_full.type.shape[0]
    size: gl.constexpr = k_memory.type.shape[2]
    blocks = gl.cdiv(s, size)
    count = 0
    number = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        frame, head, group = place(tile, groups, heads)
        column = head * DEPTH
        for i in gl.static_range(3):
            mbarrier.wait(q_empty.index(i), (number & 1) ^ 1)
            mbarrier.expect(q_full.index(i), queries.block_type.nbytes)
            row = (group * 3 + i) * ROWS
            tma.async_copy_global_to_shared(queries, [frame, row, column], q_full.index(i), q_memory.index(i))
        number += 1
        for block in range(blocks):
            row = (blocks - 1 - block) * size
            stage, phase = at_count(count, stages)
            mbarrier.wait(k_empty.index(stage), phase ^ 1)
            mbarrier.expect(k_full.index(stage), keys.block_type.nbytes)
            k_at = [frame, row, heads * DEPTH + column]
            tma.async_copy_global_to_shared(keys, k_at, k_full.index(stage), k_memory.index(stage))
            mbarrier.wait(v_empty.index(stage), phase ^ 1)
            mbarrier.expect(v_full.index(stage), keys.block_type.nbytes)
            v_at = [frame, row, 2 * heads * DEPTH + column]
            tma.async_copy_global_to_shared(keys, v_at, v_full.index(stage), v_memory.index(stage))
            count += 1


@kernel
def attend(out, memory, barriers, sizes, i: gl.constexpr, masked: gl.constexpr, scale: gl.constexpr):
    """Attention of the i-th 64 queries of each tile."""
    q_memory, k_memory, v_memory, out_memory = memory
    q_full, q_empty, k_full, k_empty, v_full, v_empty = barriers
    s, heads, groups, tiles = sizes
    stages: gl.constexpr = k_full.type.shape[0]
    size: gl.constexpr = k_memory.type.shape[2]
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, size, 16])
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DEPTH, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    q = q_memory.index(i).reshape([ROWS, DEPTH])
    blocks = gl.cdiv(s, size)
    count = 0
    number = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        frame, head, group = place(tile, groups, heads)
        mbarrier.wait(q_full.index(i), number & 1)
        stage, phase = at_count(count, stages)
        mbarrier.wait(k_full.index(stage), phase)
        scores = wait(0, [start_scores(q, k_memory.index(stage), scores_layout)])
        mbarrier.arrive(k_empty.index(stage))
        if masked:
            column = gl.arange(0, size, gl.SliceLayout(0, scores_layout))
            scores = gl.where(gl.expand_dims(column < s - (blocks - 1) * size, 0), scores, float("-inf"))
        top = greatest(scores)
        weights = gl.exp2(scores * scale - gl.expand_dims(top * scale, 1))
        total = partial_sums(weights)
        p = gl.convert_layout(weights.to(out.dtype), operand, assert_trivial=True)
        product = gl.zeros([ROWS, DEPTH], gl.float32, layout)
        next_stage, next_phase = at_count(count + 1, stages)
        mbarrier.wait(k_full.index(next_stage), next_phase, pred=blocks > 1)
        for block in range(1, blocks):
            last_stage, last_phase = stage, phase
            count += 1
            stage, phase = at_count(count, stages)
            scores_run = start_scores(q, k_memory.index(stage), scores_layout)
            mbarrier.wait(v_full.index(last_stage), last_phase)
            product_run = wgmma(p, v_memory.index(last_stage).reshape([size, DEPTH]), product, is_async=True)
            scores = wait(1, [scores_run])
            mbarrier.arrive(k_empty.index(stage))
            new_top = gl.maximum(top, greatest(scores))
            factor = gl.exp2((top - new_top) * scale)
            top = new_top
            weights = gl.exp2(scores * scale - gl.expand_dims(top * scale, 1))
            total = total * by_row(factor, total) + partial_sums(weights)
            # The next keys are awaited here and not where they are used, since the assembler moves nothing past the
            # loop of that wait: else it would wait for the product before it computes the weights.
            next_stage, next_phase = at_count(count + 1, stages)
            mbarrier.wait(k_full.index(next_stage), next_phase, pred=block + 1 < blocks)
            product = wait(0, [product_run])
            mbarrier.arrive(v_empty.index(last_stage))
            product = product * by_row(factor, product)
            p = gl.convert_layout(weights.to(out.dtype), operand, assert_trivial=True)
        mbarrier.arrive(q_empty.index(i))
        mbarrier.wait(v_full.index(stage), phase)
        product = wait(0, [wgmma(p, v_memory.index(stage).reshape([size, DEPTH]), product, is_async=True)])
        mbarrier.arrive(v_empty.index(stage))
        count += 1
        number += 1
        product = product * (1.0 / by_row(gl.sum(total, 1), product))
        tma.store_wait(0)
        out_memory.index(i).reshape([ROWS, DEPTH]).store(product.to(out.dtype))
        fence()
        tma.async_copy_shared_to_global(out, [frame, (group * 3 + i) * ROWS, head * DEPTH], out_memory.index(i))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["s", "heads", "groups", "tiles"])
def attention(
    queries, keys, out, s, heads, groups, tiles, stages: gl.constexpr, masked: gl.constexpr, scale: gl.constexpr
):  # fmt: skip
    """Self-attention of all heads of all frames.

    queries, keys: one tensor (n, s, 3 heads DEPTH), queries | keys | values, described by blocks of (1, ROWS, DEPTH)
    and (1, keys, DEPTH). out: (n, s, heads DEPTH), blocks of (1, ROWS, DEPTH). tiles: of 3 ROWS queries, `groups` a
    head. masked: whether s is no multiple of a block's keys. scale: of scores, times the binary logarithm of e.
    """
    q_memory = gl.allocate_shared_memory(queries.dtype, [3, 1, ROWS, DEPTH], queries.layout)
    out_memory = gl.allocate_shared_memory(queries.dtype, [3, 1, ROWS, DEPTH], queries.layout)
    k_memory = gl.allocate_shared_memory(keys.dtype, [stages, 1, keys.block_type.shape[1], DEPTH], keys.layout)
    v_memory = gl.allocate_shared_memory(keys.dtype, [stages, 1, keys.block_type.shape[1], DEPTH], keys.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [3, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [3, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(3):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
    for i in gl.static_range(stages):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=3)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=3)
    memory = (q_memory, k_memory, v_memory, out_memory)
    barriers = (q_full, q_empty, k_full, k_empty, v_full, v_empty)
    sizes = (s, heads, groups, tiles)
    fence()  # of the barriers, to the copying engine
    gl.warp_specialize(
        [
            (attend, (out, memory, barriers, sizes, 0, masked, scale)),
            (attend, (out, memory, barriers, sizes, 1, masked, scale)),
            (attend, (out, memory, barriers, sizes, 2, masked, scale)),
            (load_attended, (queries, keys, memory, barriers, sizes)),
        ],
        [4, 4, 1],
        [160, 160, 32],
    )
