"""Kernels in Triton's Gluon for Hopper cards, which `gluon_ops` launches: attention, products, convolutions.

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


# Products of a layer norm. Where their inner dimension is short (320 channels: the first level, which has the most
# pixels), loading takes as long as multiplying, and GELU as long again. So 64 rows are loaded once, normed and kept in
# registers while all columns of the weight stream past them, and two groups of warps take turns: one multiplies while
# the other finishes and stores.


@kernel
def load_rows(inputs, tile, i: gl.constexpr):
    """Copies the rows of consumer i for this tile, once the other consumer has read its own."""
    (x, weight, rows, rows_full, rows_empty, columns, full, empty, turns, tiles, across, steps) = inputs
    parts: gl.constexpr = rows.type.shape[0]
    mbarrier.wait(rows_empty.index(0), 1 - i)
    mbarrier.expect(rows_full.index(i), parts * x.block_type.nbytes)
    row = (tile % across * 2 + i) * ROWS
    for k in gl.static_range(parts):
        tma.async_copy_global_to_shared(x, [tile // across, row, k * DEPTH], rows_full.index(i), rows.index(k))


@kernel
def produce(inputs, outputs):
    """Copies all columns of the weight for each tile, and each tile's rows between its predecessor's first columns."""
    (x, weight, rows, rows_full, rows_empty, columns, full, empty, turns, tiles, across, steps) = inputs
    parts: gl.constexpr = rows.type.shape[0]
    stages: gl.constexpr = full.type.shape[0]
    count = 0
    load_rows(inputs, gl.program_id(0), 0)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        following = tile + gl.num_programs(0)
        for step in range(0, steps):
            if step == 2:  # what both consumers want first is on its way
                load_rows(inputs, tile, 1)
            if (step == 3) & (following < tiles):
                load_rows(inputs, following, 0)
            stage, phase = at_count(count, stages)
            mbarrier.wait(empty.index(stage), phase ^ 1)
            mbarrier.expect(full.index(stage), parts * weight.block_type.nbytes)
            for k in gl.static_range(parts):
                tma.async_copy_global_to_shared(
                    weight, [0, step * WIDTH, k * DEPTH], full.index(stage), columns.index(stage * parts + k)
                )
            count += 1


@kernel
def consume(inputs, outputs, i: gl.constexpr):
    """Computes and stores the norm of one half of each tile's rows, times each step's columns, and their GEGLU."""
    (x, weight, rows, rows_full, rows_empty, columns, full, empty, turns, tiles, across, steps) = inputs
    (out, results, norm_weight, norm_bias, bias, add, add_row, eps) = outputs
    parts: gl.constexpr = rows.type.shape[0]
    stages: gl.constexpr = full.type.shape[0]
    halves: gl.constexpr = weight.block_type.shape[0]
    wide: gl.constexpr = halves * WIDTH
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    wide_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, wide, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, wide_layout, 2)
    channel = gl.arange(0, DEPTH, gl.SliceLayout(0, layout))
    count = 0
    number = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        frame = tile // across
        row = (tile % across * 2 + i) * ROWS
        mbarrier.wait(rows_full.index(i), number & 1)
        number += 1
        sums = gl.zeros([ROWS, DEPTH], gl.float32, layout)
        for part in range(0, parts):
            y = rows.index(part).reshape([ROWS, DEPTH]).load(layout).to(gl.float32)
            sums += y + gl.load(add + frame * add_row + part * DEPTH + channel).to(gl.float32)[None]
        average = (gl.sum(sums, 1) / (parts * DEPTH))[:, None]
        sums = gl.zeros([ROWS, DEPTH], gl.float32, layout)
        for part in range(0, parts):
            y = rows.index(part).reshape([ROWS, DEPTH]).load(layout).to(gl.float32)
            y += gl.load(add + frame * add_row + part * DEPTH + channel).to(gl.float32)[None]
            sums += (y - average) * (y - average)
        factor = gl.rsqrt(gl.sum(sums, 1) / (parts * DEPTH) + eps)[:, None]
        normed = ()
        for k in gl.static_range(parts):
            y = rows.index(k).reshape([ROWS, DEPTH]).load(layout).to(gl.float32)
            y += gl.load(add + frame * add_row + k * DEPTH + channel).to(gl.float32)[None]
            gain = gl.load(norm_weight + k * DEPTH + channel).to(gl.float32)[None]
            y = (y - average) * factor * gain + gl.load(norm_bias + k * DEPTH + channel).to(gl.float32)[None]
            normed = normed + (gl.convert_layout(y.to(x.dtype), operand),)
        fence()
        mbarrier.arrive(rows_empty.index(0), count=1)
        for step in range(0, steps):
            stage, phase = at_count(count, stages)
            if halves == 2:
                value_bias = gl.load(bias + step * WIDTH + channel)
                gate_bias = gl.load(bias + (steps + step) * WIDTH + channel)
                mbarrier.wait(turns.index(i), (count & 1) ^ (1 - i))
            products = gl.zeros([ROWS, wide], gl.float32, wide_layout)
            mbarrier.wait(full.index(stage), phase)
            for k in gl.static_range(parts):
                b = columns.index(stage * parts + k).reshape([wide, DEPTH]).permute((1, 0))
                products = wgmma(normed[k], b, products, use_acc=k > 0, is_async=True)
            if halves == 2:
                mbarrier.arrive(turns.index(1 - i), count=1)
            products = wait(0, deps=(products,))
            mbarrier.arrive(empty.index(stage), count=1)
            count += 1
            if halves == 2:
                products = gated(products, value_bias, gate_bias, layout)
            tma.store_wait(0)
            results.index(i).reshape([ROWS, WIDTH]).store(products.to(x.dtype))
            fence()
            tma.async_copy_shared_to_global(out, [frame, row, step * WIDTH], results.index(i))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["tiles", "across", "steps"])
def normed_product(
    x, weight, out, norm_weight, norm_bias, bias, add, add_row, tiles, across, steps, eps,
    parts: gl.constexpr, stages: gl.constexpr,
):  # fmt: skip
    """out = norm(x + add) times weight; where the weight is in two halves, values and gates, their GEGLU.

    x: (n, s, c), out: (n, s, c'), weight: (1 or 2, c', c), tensor descriptors with blocks of (1, ROWS, DEPTH),
    (1, ROWS, WIDTH) and (1 or 2, WIDTH, DEPTH). add: (n, c), add_row: from one of its rows to the next. bias: (2 c',),
    for GEGLU alone. tiles: of 2 ROWS rows, `across` a frame. steps: of WIDTH columns, four at least. parts: c / DEPTH.
    """
    halves: gl.constexpr = weight.block_type.shape[0]
    rows = gl.allocate_shared_memory(x.dtype, [parts, 1, ROWS, DEPTH], x.layout)
    columns = gl.allocate_shared_memory(x.dtype, [stages * parts, halves, WIDTH, DEPTH], weight.layout)
    results = gl.allocate_shared_memory(x.dtype, [2, 1, ROWS, WIDTH], out.layout)
    rows_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    rows_empty = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    mbarrier.init(rows_empty.index(0), count=1)
    for i in gl.static_range(2):
        mbarrier.init(rows_full.index(i), count=1)
        mbarrier.init(turns.index(i), count=1)
    for i in gl.static_range(stages):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    inputs = (x, weight, rows, rows_full, rows_empty, columns, full, empty, turns, tiles, across, steps)
    outputs = (out, results, norm_weight, norm_bias, bias, add, add_row, eps)
    fence()  # of the barriers, to the copying engine
    gl.warp_specialize(
        [(consume, (inputs, outputs, 0)), (consume, (inputs, outputs, 1)), (produce, (inputs, outputs))],
        [4, 1],
        [240, 24],
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


# A convolution over frames: the products of three frames' pixels, one for each tap. As above, blocks of rows and of
# columns stream through shared memory. A tile's last two stages hold its results instead, one for each group of warps:
# what they are added to is copied there ahead, and they are measured and stored from there while the next tile begins.


@kernel
def place_in(tile, sizes, i: gl.constexpr):
    """The frame (of all clips) and the first pixel of the i-th 64 rows of a tile, and its first block of columns.

    Tiles of the same pixels follow each other, frame by frame, since their taps read the same. Where a frame has an odd
    number of blocks of rows, the last ones of two frames make a tile.
    """
    tiles, across, parts, frames, padding, n, blocks, s = sizes
    group = tile // across
    whole = group < blocks // 2 * n
    frame = gl.where(whole, group % n, 2 * (group - blocks // 2 * n) + i)
    row = gl.where(whole, group // n * 2 + i, blocks - 1) * ROWS
    return frame, row, tile % across


@kernel
def steps_of(tile, sizes):
    """The first of the 3 `parts` steps that a tile takes and the one after its last: those of frames that exist."""
    tiles, across, parts, frames, padding, n, blocks, s = sizes
    frame, row, column = place_in(tile, sizes, 0)
    other, row, column = place_in(tile, sizes, 1)
    frame, other = frame % frames, other % frames
    first = gl.maximum(padding - gl.maximum(frame, other), 0)
    last = gl.minimum(frames + 2 - padding - gl.minimum(frame, other), 3)
    return first * parts, last * parts


@kernel
def block_of(results, stage, k: gl.constexpr, wide: gl.constexpr, columns: gl.constexpr):
    """The memory of the k-th block of a stage's columns, which holds results in its tile's last stages."""
    if k < wide:
        return results[0].index(stage * wide + k)
    else:
        return results[1].index(stage * (columns - wide) + k - wide)


@kernel
def load_frames(x, weights, residual, memory, barriers, sizes, columns: gl.constexpr):
    """Copies, for each tile, the rows and columns of each tap, then what the results are added to."""
    x_memory, w_memory, results = memory
    full, empty = barriers
    tiles, across, parts, frames, padding, n, blocks, s = sizes
    stages: gl.constexpr = full.type.shape[0]
    wide: gl.constexpr = weights[0].block_type.shape[0]
    count = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        begin, end = steps_of(tile, sizes)
        for k in range(begin, end):
            stage, phase = at_count(count, stages)
            mbarrier.wait(empty.index(stage), phase ^ 1)
            mbarrier.expect(full.index(stage), (2 + columns) * x.block_type.nbytes)
            for i in gl.static_range(2):
                frame, row, column = place_in(tile, sizes, i)
                # Frames before a clip's first and after its last are outside the tensor, of which zeros are copied.
                x_at = [frame // frames, frame % frames + k // parts - padding, row, k % parts * DEPTH]
                tma.async_copy_global_to_shared(x, x_at, full.index(stage), x_memory.index(2 * stage + i))
            for j in gl.static_range(len(weights)):
                w_at = [tile % across * columns + j * wide, 0, k * DEPTH]
                tma.async_copy_global_to_shared(weights[j], w_at, full.index(stage), w_memory[j].index(stage))
            count += 1
        for i in gl.static_range(2):
            stage, phase = at_count(count, stages)
            mbarrier.wait(empty.index(stage), phase ^ 1)
            if residual is None:
                mbarrier.arrive(full.index(stage), count=1)
            else:
                frame, row, column = place_in(tile, sizes, i)
                mbarrier.expect(full.index(stage), columns * residual.block_type.nbytes)
                for k in gl.static_range(columns):
                    r_at = [frame, row, (column * columns + k) * WIDTH]
                    r_memory = block_of(results, stage, k, wide, columns)
                    tma.async_copy_global_to_shared(residual, r_at, full.index(stage), r_memory)
            count += 1


@kernel
def nothing_yet(width: gl.constexpr):
    """Zeros, (ROWS, width), to which products are added."""
    return gl.zeros([ROWS, width], gl.float32, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 16]))


@kernel
def start_tap(memory, stage, sums, i: gl.constexpr, use_acc: gl.constexpr):
    """Start the products of the i-th 64 rows of a stage with its columns, added to each of `sums`."""
    x_memory, w_memory, results = memory
    rows = x_memory.index(2 * stage + i).reshape([ROWS, DEPTH])
    started = ()
    for j in gl.static_range(len(w_memory)):
        columns = w_memory[j].index(stage).reshape([sums[j].shape[1], DEPTH]).permute((1, 0))
        started = started + (wgmma(rows, columns, sums[j], use_acc=use_acc, is_async=True),)
    return started


@kernel
def wait_for(started, pending: gl.constexpr):
    """Wait until the products of so many steps are pending, and as a tuple the results."""
    if len(started) == 1:
        return (wait(pending, deps=started),)
    else:
        return wait(pending * len(started), deps=started)


@kernel
def blocks_of(x):
    """(ROWS, c) as a tuple of (ROWS, WIDTH), without moving anything between threads."""
    if x.shape[1] == WIDTH:
        return (x,)
    else:
        left, right = halves_of(x)
        return blocks_of(left) + blocks_of(right)


@kernel
def measure_blocks(blocks, first, mean, deviation, mask, rows, layout: gl.constexpr, count: gl.constexpr):
    """Stores the moments of each column of `count` blocks, over so many rows; those below hold zeros."""
    share, absent = 1.0 / rows, (ROWS - rows).to(gl.float32)
    together: gl.constexpr = 2 if count % 2 == 0 else 1  # at a time: more would not fit into registers
    for k in range(0, count, together):
        for m in gl.static_range(together):
            y = blocks.index(first + k + m).reshape([ROWS, WIDTH]).load(layout).to(gl.float32)
            average = gl.sum(y, 0) * share
            y -= average[None]
            spread = gl.maximum(gl.sum(y * y, 0) - absent * average * average, 0.0)
            gl.store(mean + (k + m) * WIDTH, average, mask=mask)
            gl.store(deviation + (k + m) * WIDTH, spread, mask=mask)


@kernel
def measure(
    results, stage, tile, sizes, mean, deviation, exists, columns: gl.constexpr, wide: gl.constexpr, i: gl.constexpr
):  # fmt: skip
    """Stores the moments of the results that a stage holds: of each column, over the pixels of one block of rows."""
    tiles, across, parts, frames, padding, n, blocks, s = sizes
    frame, row, column = place_in(tile, sizes, i)
    # As they were computed, all warps would have to add up what they hold of a column; here each has its own columns.
    layout: gl.constexpr = gl.BlockedLayout([1, 2], [4, 8], [1, 4], [1, 0])
    channel = gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    mask, rows = (channel < WIDTH) & exists & (frame < n), gl.minimum(s - row, ROWS)
    channel += ((frame * blocks + row // ROWS) * across + column) * (columns * WIDTH)
    measure_blocks(results[0], stage * wide, mean + channel, deviation + channel, mask, rows, layout, wide)
    if columns > wide:
        channel += wide * WIDTH
        narrow: gl.constexpr = columns - wide
        measure_blocks(results[1], stage * narrow, mean + channel, deviation + channel, mask, rows, layout, narrow)


@kernel
def convolve(
    weights, residual, out, mean, deviation, factor, memory, barriers, sizes, columns: gl.constexpr, i: gl.constexpr
):  # fmt: skip
    """Computes, stores and measures the i-th 64 rows of each tile."""
    x_memory, w_memory, results = memory
    full, empty = barriers
    tiles, across, parts, frames, padding, n, blocks, s = sizes
    stages: gl.constexpr = full.type.shape[0]
    wide: gl.constexpr = weights[0].block_type.shape[0]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    count = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        begin, end = steps_of(tile, sizes)
        stage, phase = at_count(count, stages)
        sums = ()
        for j in gl.static_range(len(weights)):
            sums = sums + (nothing_yet(weights[j].block_type.shape[0] * WIDTH),)
        mbarrier.wait(full.index(stage), phase)
        sums = wait_for(start_tap(memory, stage, sums, i, False), 1)
        # Meanwhile the last tile's results are measured, and stored to the end.
        if mean is not None:
            before = tile - gl.num_programs(0)
            held = (count + stages - 2 + i) % stages
            measure(results, held, before, sizes, mean, deviation, count > 0, columns, wide, i)
        tma.store_wait(0)
        # The other group's stage is awaited, too, though not used: else a later wait could take its phase for another.
        for k in gl.static_range(2):
            last, last_phase = at_count(count + 2 * stages - 2 + k, stages)
            mbarrier.wait(full.index(last), last_phase, pred=count > 0)
            mbarrier.arrive(empty.index(last), count=1, pred=count > 0)
        count += 1
        for _ in range(begin + 1, end):
            last = stage
            stage, phase = at_count(count, stages)
            mbarrier.wait(full.index(stage), phase)
            sums = wait_for(start_tap(memory, stage, sums, i, True), 1)
            mbarrier.arrive(empty.index(last), count=1)
            count += 1
        sums = wait_for(sums, 0)
        mbarrier.arrive(empty.index(stage), count=1)
        stage, phase = at_count(count + i, stages)
        mbarrier.wait(full.index(stage), phase)
        values = ()
        for j in gl.static_range(len(weights)):
            values = values + blocks_of(sums[j])
        for k in gl.static_range(columns):
            block = block_of(results, stage, k, wide, columns).reshape([ROWS, WIDTH])
            y = gl.convert_layout(values[k], layout)
            if residual is not None:
                y = y * factor + block.load(layout).to(gl.float32)
            block.store(y.to(out.dtype))
        fence()
        frame, row, column = place_in(tile, sizes, i)
        for k in gl.static_range(columns - 1, -1, -1):  # first what was written last: for that all warps are awaited
            at = [frame, row, (column * columns + k) * WIDTH]
            tma.async_copy_shared_to_global(out, at, block_of(results, stage, k, wide, columns))
        count += 2
    if mean is not None:
        before = gl.program_id(0) + (tiles - 1 - gl.program_id(0)) // gl.num_programs(0) * gl.num_programs(0)
        measure(results, (count + stages - 2 + i) % stages, before, sizes, mean, deviation, count > 0, columns, wide, i)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["tiles", "across", "parts", "frames", "padding", "n", "blocks", "s"])
def conv_over_frames(
    x, weight, narrow, residual, out, mean, deviation, factor, tiles, across, parts, frames, padding, n, blocks, s,
    columns: gl.constexpr, stages: gl.constexpr,
):  # fmt: skip
    """out = the convolution of x over frames, a kernel of 3 taps; where there is a residual, that + factor times it.

    x: (b, t, s, c), residual and out: (n, s, c'), weight: (c' / WIDTH, WIDTH, 3 c), tensor descriptors with blocks of
    (1, 1, ROWS, DEPTH), (1, ROWS, WIDTH) and (some, WIDTH, DEPTH). narrow: None, or weight with fewer columns, which
    each tile has beside those. mean, deviation: (n, blocks, c'), of each block of ROWS results as stored, or None.
    tiles: of 2 blocks of rows and `columns` blocks of columns, `across` beside each other. parts: c / DEPTH. frames: of
    a clip of out, n in all. padding: with frames of zeros at the ends of clips, 1 or 0. stages: three at least.
    """
    weights = (weight,) if narrow is None else (weight, narrow)
    x_memory = gl.allocate_shared_memory(x.dtype, [2 * stages, 1, 1, ROWS, DEPTH], x.layout)
    w_memory, results = (), ()
    for j in gl.static_range(len(weights)):
        w_memory = w_memory + (
            gl.allocate_shared_memory(x.dtype, [stages] + weights[j].block_type.shape, weights[j].layout),
        )
        results = results + (
            w_memory[j]._reinterpret(x.dtype, [stages * weights[j].block_type.shape[0], 1, ROWS, WIDTH], out.layout),
        )
    full = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(stages):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    memory, barriers = (x_memory, w_memory, results), (full, empty)
    sizes = (tiles, across, parts, frames, padding, n, blocks, s)
    fence()  # of the barriers, to the copying engine
    gl.warp_specialize(
        [
            (convolve, (weights, residual, out, mean, deviation, factor, memory, barriers, sizes, columns, 0)),
            (convolve, (weights, residual, out, mean, deviation, factor, memory, barriers, sizes, columns, 1)),
            (load_frames, (x, weights, residual, memory, barriers, sizes, columns)),
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
