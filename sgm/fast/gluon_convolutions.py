"""A temporal convolution, over frames, in Triton's Gluon: the products of three frames' pixels, one for each tap.

Blocks of rows and of columns stream through shared memory. A tile's last two stages hold its results instead, one for
each group of warps: what they are added to is copied there ahead, and they are measured and stored from there while the
next tile begins.
"""

# Gluon unpacks tuples whole, and knows neither enumerations nor starred items.
# ruff: noqa: RUF005, RUF059
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportGeneralTypeIssues=false

from triton.experimental import gluon

from sgm.fast.gluon_base import (
    DEPTH,
    ROWS,
    WIDTH,
    at_count,
    fence,
    gl,
    halves_of,
    kernel,
    mbarrier,
    tma,
    wait,
    wgmma,
)


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
    # Of all channels, where there are results at all.
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
    (1, 1, ROWS, DEPTH), (1, ROWS, WIDTH) and (some, WIDTH, DEPTH). narrow: None, or the same weight described by
    smaller blocks, for the columns that each tile has beside those. mean, deviation: (n, blocks, c'), of each block of
    ROWS results as stored, or None. tiles: of 2 blocks of rows and `columns` blocks of columns, `across` beside each
    other. parts: c / DEPTH. frames: of a clip of out, n in all. padding: with frames of zeros at the ends of clips, 1
    or 0. stages: three at least.
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
