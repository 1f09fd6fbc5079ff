"""Temporal convolutions (over frames, 3 taps) and spatial ones (over pictures, 3x3) in Triton's Gluon.

Each is a sum of products, one for each tap.

Blocks of rows and of columns stream through shared memory. A tile's last two stages hold its results instead, one for
each group of warps: what they are added to is copied there ahead, and they are measured and stored from there while the
next tile begins.

Of pictures, a tile is two lines of 64 pixels, one above the other. They and the lines above and below are copied once
for the three taps of a column of the kernel, which read them a line apart: 4 lines instead of 6.

Of narrow pictures, of 16 pixels across, a line of 64 is the same line of 4 pictures, side by side. Each has its own
borders, since the engine that copies them fills in zeros for what is outside a picture.

After nearest-neighbour upsampling to twice the size, a 3x3 convolution is four 2x2 ones of the smaller picture, one for
each of the four pixels that each of its pixels becomes (`upsampled_in`). A tile's columns are those of one of the four;
it copies 3 lines for two taps, and its results are stored two lines and two pixels apart.
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
def place_in(tile, sizes, i: gl.constexpr, taps: gl.constexpr, pictures: gl.constexpr):
    """The frame (of all clips) and the first pixel of the i-th 64 rows of a tile, and its first block of columns.

    Tiles of the same pixels follow each other, over frames frame by frame, since their taps read the same. Where a
    frame has an odd number of blocks of rows, the last ones of two frames make a tile; in a picture of an odd height,
    the last line makes one with none. Of pictures side by side: the first one's frame.
    """
    tiles, across, parts, frames, padding, n, blocks, s, w = sizes
    group = tile // across
    if pictures > 1:
        pairs = (s // w + 1) // 2
        frame, row = group // pairs * pictures, (group % pairs * 2 + i) * w
    elif taps > 1:
        pairs = (s // w + 1) // 2 * (w // ROWS)
        frame, pair = group // pairs, group % pairs
        row = (pair // (w // ROWS) * 2 + i) * w + pair % (w // ROWS) * ROWS
    else:
        whole = group < blocks // 2 * n
        frame = gl.where(whole, group % n, 2 * (group - blocks // 2 * n) + i)
        row = gl.where(whole, group // n * 2 + i, blocks - 1) * ROWS
    return frame, row, tile % across


@kernel
def upsampled_in(column, across, taps: gl.constexpr):
    """Whether a tile's results are the lower and the right ones of upsampled pixels, and the first columns of those.

    column: the tile's, of `across` in all. Not upsampled, neither.
    """
    if taps == 2:
        share = across // 4
        position = column // share
        return position % 2, position // 2, column % share
    else:
        return 0, 0, column


@kernel
def steps_of(tile, sizes, taps: gl.constexpr):
    """The first of a tile's steps, `parts` for each column of taps, and the one after its last.

    Over frames, they are those of frames that exist.
    """
    tiles, across, parts, frames, padding, n, blocks, s, w = sizes
    first, last = 0, (2 if taps == 2 else 3)
    if taps == 1:
        frame, row, column = place_in(tile, sizes, 0, taps, 1)
        other, row, column = place_in(tile, sizes, 1, taps, 1)
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
def load_lines(x, memory, barrier, tile, sizes, step, k, taps: gl.constexpr):
    """Copies the block of x for a step's taps: lines of pixels, from the one above a tile's first on.

    Of upsampled pixels, the lower ones' first line is one lower, and the right ones' first column is one further right.
    """
    tiles, across, parts, frames, padding, n, blocks, s, w = sizes
    x_memory, x_lines, w_memory, results = memory
    pictures: gl.constexpr = results[0].shape[1]
    frame, row, column = place_in(tile, sizes, 0, taps, pictures)
    below, right, column = upsampled_in(column, across, taps)
    line, pixel = row // w - 1 + below, row % w + k % taps - 1 + right
    place = step % (x_lines.shape[0] // (taps + 1))
    channel = k // taps * DEPTH
    if taps == 2:  # one by one, since a block's size is a power of two
        for i in gl.static_range(taps + 1):
            at = [frame, line + i, pixel, channel]
            tma.async_copy_global_to_shared(x, at, barrier, x_memory.index(place * (taps + 1) + i))
    else:
        at = [line, frame, pixel, channel] if pictures > 1 else [frame, line, pixel, channel]
        tma.async_copy_global_to_shared(x, at, barrier, x_memory.index(place))


@kernel
def load(x, weights, residual, memory, barriers, sizes, columns: gl.constexpr, taps: gl.constexpr):
    """Copies, for each tile, the rows and columns of each tap, then what the results are added to."""
    x_memory, x_lines, w_memory, results = memory
    full, empty = barriers
    tiles, across, parts, frames, padding, n, blocks, s, w = sizes
    stages: gl.constexpr = full.type.shape[0]
    wide: gl.constexpr = weights[0].block_type.shape[0]
    pictures: gl.constexpr = results[0].shape[1]
    x_bytes: gl.constexpr = (taps + 1) * ROWS * DEPTH * 2
    w_bytes: gl.constexpr = columns * WIDTH * DEPTH * 2
    # How many stages after a step's first one the last one lies that must be empty before its block of x is replaced.
    ahead: gl.constexpr = stages - taps * (x_lines.shape[0] // (taps + 1) - 1) - 1
    count, step = 0, 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        begin, end = steps_of(tile, sizes, taps)
        for k in range(begin, end):
            for tap in gl.static_range(taps):
                stage, phase = at_count(count, stages)
                mbarrier.wait(empty.index(stage), phase ^ 1)
                mbarrier.expect(full.index(stage), (x_bytes + w_bytes) if tap == 0 else w_bytes)
                if taps > 1:
                    # All taps of the same channels follow each other, so that caches hold what several of them read.
                    part, right = k // taps, k % taps
                    if tap == 0 and ahead <= 0:  # what was here is read no more: its last stage is empty by now
                        load_lines(x, memory, full.index(stage), tile, sizes, step, k, taps)
                    w_block = (taps * tap + right) * parts + part
                else:
                    for i in gl.static_range(2):
                        frame, row, column = place_in(tile, sizes, i, taps, pictures)
                        # Frames before a clip's first and after its last are outside x, of which zeros are copied.
                        x_at = [frame // frames, frame % frames + k // parts - padding, row, k % parts * DEPTH]
                        tma.async_copy_global_to_shared(x, x_at, full.index(stage), x_memory.index(2 * stage + i))
                    w_block = k
                for j in gl.static_range(len(weights)):
                    w_at = [tile % across * columns + j * wide, 0, w_block * DEPTH]
                    tma.async_copy_global_to_shared(weights[j], w_at, full.index(stage), w_memory[j].index(stage))
                if taps > 1 and tap == 0 and ahead > 0:
                    last, last_phase = at_count(count + ahead, stages)
                    mbarrier.wait(empty.index(last), last_phase ^ 1)
                    load_lines(x, memory, full.index(stage), tile, sizes, step, k, taps)
                count += 1
            step += 1
        for i in gl.static_range(2):
            stage, phase = at_count(count, stages)
            mbarrier.wait(empty.index(stage), phase ^ 1)
            if residual is None:
                mbarrier.arrive(full.index(stage), count=1)
            else:
                frame, row, column = place_in(tile, sizes, i, taps, pictures)
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
def start_tap(
    memory, stage, step, sums, i: gl.constexpr, tap: gl.constexpr, taps: gl.constexpr, use_acc: gl.constexpr
):  # fmt: skip
    """Start the products of the i-th 64 rows of a step's tap with a stage's columns, added to each of `sums`."""
    x_memory, x_lines, w_memory, results = memory
    line = step % (x_lines.shape[0] // (taps + 1)) * (taps + 1) + i + tap if taps > 1 else 2 * stage + i
    rows = x_lines.index(line).reshape([ROWS, DEPTH])
    started = ()
    for j in gl.static_range(len(w_memory)):
        columns = w_memory[j].index(stage).reshape([sums[j].shape[1], DEPTH]).permute((1, 0))
        started = started + (wgmma(rows, columns, sums[j], use_acc=use_acc, is_async=True),)
    return started


@kernel
def next_tap(
    memory, barriers, last, count, step, sums, i: gl.constexpr, tap: gl.constexpr, taps: gl.constexpr
):  # fmt: skip
    """Start the next stage's products, then wait for the last stage's, which is empty then: the sums, and the stage."""
    full, empty = barriers
    stage, phase = at_count(count, full.type.shape[0])
    mbarrier.wait(full.index(stage), phase)
    sums = wait_for(start_tap(memory, stage, step, sums, i, tap, taps, True), 1)
    mbarrier.arrive(empty.index(last), count=1)
    return sums, stage


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
def measure_blocks(
    blocks, first, mean, deviation, mask, rows,
    layout: gl.constexpr, count: gl.constexpr, pictures: gl.constexpr = 1,
):  # fmt: skip
    """Stores the moments of each column of `count` blocks, over so many rows; those below hold zeros.

    Of pictures side by side, a block is the rows of one, and those of the same one are `pictures` apart.
    """
    height: gl.constexpr = ROWS // pictures
    share, absent = 1.0 / rows, (height - rows).to(gl.float32)
    together: gl.constexpr = 2 if count % 2 == 0 else 1  # at a time: more would not fit into registers
    for k in range(0, count, together):
        for m in gl.static_range(together):
            y = blocks.index(first + k * pictures + m * pictures).reshape([height, WIDTH]).load(layout).to(gl.float32)
            average = gl.sum(y, 0) * share
            y -= average[None]
            spread = gl.maximum(gl.sum(y * y, 0) - absent * average * average, 0.0)
            gl.store(mean + (k + m) * WIDTH, average, mask=mask)
            gl.store(deviation + (k + m) * WIDTH, spread, mask=mask)


@kernel
def by_picture(blocks, pictures: gl.constexpr):
    """The memory of blocks of results, each divided into the rows of pictures side by side."""
    if pictures == 1:
        return blocks
    else:
        rows: gl.constexpr = [1, ROWS // pictures]
        shape: gl.constexpr = [blocks.shape[0] * pictures] + ([1] + rows + [1] if len(blocks.shape) == 6 else rows)
        return blocks._reinterpret(blocks.dtype, shape + [WIDTH], blocks.layout)


@kernel
def measure(
    results, stage, tile, sizes, mean, deviation, exists,
    columns: gl.constexpr, wide: gl.constexpr, i: gl.constexpr, taps: gl.constexpr,
):  # fmt: skip
    """Stores the moments of the results that a stage holds: of each column, over a picture's pixels in ROWS rows."""
    tiles, across, parts, frames, padding, n, blocks, s, w = sizes
    pictures: gl.constexpr = results[0].shape[1]
    height: gl.constexpr = ROWS // pictures
    narrow: gl.constexpr = columns - wide
    first, row, column = place_in(tile, sizes, i, taps, pictures)
    # As they were computed, all warps would have to add up what they hold of a column; here each has its own columns.
    layout: gl.constexpr = gl.BlockedLayout([1, 2], [4, 8], [1, 4], [1, 0])
    for j in gl.static_range(pictures):
        frame, channel = first + j, gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
        # Of all channels, where there are results at all.
        mask, rows = (channel < WIDTH) & exists & (frame < n) & (row < s), gl.minimum(s - row, height)
        if taps == 2:
            rows = gl.to_tensor(height)  # blocks are whole; to know it takes fewer registers
        channel += ((frame * blocks + row // height) * across + column) * (columns * WIDTH)
        at, of_picture = stage * wide * pictures + j, by_picture(results[0], pictures)
        measure_blocks(of_picture, at, mean + channel, deviation + channel, mask, rows, layout, wide, pictures)
        if columns > wide:
            channel += wide * WIDTH
            at, of_picture = stage * narrow * pictures + j, by_picture(results[1], pictures)
            measure_blocks(of_picture, at, mean + channel, deviation + channel, mask, rows, layout, narrow, pictures)


@kernel
def convolve(given, columns: gl.constexpr, taps: gl.constexpr, i: gl.constexpr):
    """Computes, stores and measures the i-th 64 rows of each tile."""
    weights, residual, add, out, mean, deviation, factor, add_row, memory, barriers, sizes = given
    x_memory, x_lines, w_memory, results = memory
    full, empty = barriers
    tiles, across, parts, frames, padding, n, blocks, s, w = sizes
    stages: gl.constexpr = full.type.shape[0]
    wide: gl.constexpr = weights[0].block_type.shape[0]
    pictures: gl.constexpr = results[0].shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    count, step = 0, 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        begin, end = steps_of(tile, sizes, taps)
        stage, phase = at_count(count, stages)
        sums = ()
        for j in gl.static_range(len(weights)):
            sums = sums + (nothing_yet(weights[j].block_type.shape[0] * WIDTH),)
        mbarrier.wait(full.index(stage), phase)
        sums = wait_for(start_tap(memory, stage, step, sums, i, 0, taps, False), 1)
        # Meanwhile the last tile's results are measured, and stored to the end.
        if mean is not None:
            before = tile - gl.num_programs(0)
            held = (count + stages - 2 + i) % stages
            measure(results, held, before, sizes, mean, deviation, count > 0, columns, wide, i, taps)
        tma.store_wait(0)
        # The other group's stage is awaited, too, though not used: else a later wait could take its phase for another.
        for k in gl.static_range(2):
            last, last_phase = at_count(count + 2 * stages - 2 + k, stages)
            mbarrier.wait(full.index(last), last_phase, pred=count > 0)
            mbarrier.arrive(empty.index(last), count=1, pred=count > 0)
        count += 1
        for tap in gl.static_range(1, taps):
            sums, stage = next_tap(memory, barriers, stage, count, step, sums, i, tap, taps)
            count += 1
        step += 1
        for _ in range(begin + 1, end):
            for tap in gl.static_range(taps):
                sums, stage = next_tap(memory, barriers, stage, count, step, sums, i, tap, taps)
                count += 1
            step += 1
        sums = wait_for(sums, 0)
        mbarrier.arrive(empty.index(stage), count=1)
        stage, phase = at_count(count + i, stages)
        mbarrier.wait(full.index(stage), phase)
        frame, row, column = place_in(tile, sizes, i, taps, pictures)
        below, right, column = upsampled_in(column, across, taps)
        values = ()
        for j in gl.static_range(len(weights)):
            values = values + blocks_of(sums[j])
        for k in gl.static_range(columns):
            block = block_of(results, stage, k, wide, columns).reshape([ROWS, WIDTH])
            y = gl.convert_layout(values[k], layout)
            if residual is not None:
                y = y * factor + block.load(layout).to(gl.float32)
            if add is not None:
                channel = (column * columns + k) * WIDTH + gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
                if pictures > 1 and taps == 3:
                    rows = frame + gl.arange(0, ROWS, gl.SliceLayout(1, layout)) // (ROWS // pictures)
                    rows = gl.minimum(rows, n - 1) * add_row  # results of frames after the last are not stored
                    y += gl.load(add + rows[:, None] + channel[None]).to(gl.float32)
                else:
                    y += gl.load(add + frame * add_row + channel).to(gl.float32)[None]
            block.store(y.to(out.dtype))
        fence()
        for k in gl.static_range(columns - 1, -1, -1):  # first what was written last: for that all warps are awaited
            if taps == 2:
                at = [frame, row // w * 2 + below, row % w, right, (column * columns + k) * WIDTH]
            else:
                at = [frame, row, (column * columns + k) * WIDTH]
            tma.async_copy_shared_to_global(out, at, block_of(results, stage, k, wide, columns))
        count += 2
    if mean is not None:
        before = gl.program_id(0) + (tiles - 1 - gl.program_id(0)) // gl.num_programs(0) * gl.num_programs(0)
        held = (count + stages - 2 + i) % stages
        measure(results, held, before, sizes, mean, deviation, count > 0, columns, wide, i, taps)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["tiles", "across", "parts", "frames", "padding", "n", "blocks", "s", "w"])
def convolution(
    x, weight, narrow, residual, add, out, mean, deviation, factor, add_row,
    tiles, across, parts, frames, padding, n, blocks, s, w,
    columns: gl.constexpr, stages: gl.constexpr, places: gl.constexpr,
):  # fmt: skip
    """out = the convolution of x, plus add; where there is a residual, that + factor times the convolution + add.

    residual and out: (n, s, c'), tensor descriptors with blocks of (1, ROWS, WIDTH). x and weight, likewise:

    - over frames, 3 taps: (b, t, s, c), blocks of (1, 1, ROWS, DEPTH), and (c' / WIDTH, WIDTH, 3 c). frames: of a clip
      of out, n in all. padding: with frames of zeros at the ends of clips, 1 or 0. No `add`.
    - over pictures, 3x3 taps and a padding of 1: (n, s / w, w, c), blocks of (1, 4, ROWS, DEPTH), and (..., 9 c). w: a
      multiple of ROWS.
    - over narrow pictures, w a divisor of ROWS: (s / w, n, w, c), blocks of (4, ROWS / w, w, DEPTH). Those of residual
      and out: (ROWS / w, w, WIDTH).
    - over pictures, upsampled first: blocks of (1, 1, ROWS, DEPTH), and (4 c' / WIDTH, WIDTH, 4 c), of four 2x2
      convolutions for the pixels upper left, lower left, upper right and lower right. out: (n, 2 s / w, w, 2, c'),
      blocks of (1, 1, ROWS, 1, WIDTH). Of narrow pictures: blocks of (ROWS / w, 1, w, DEPTH), (ROWS / w, 1, w, 1,
      WIDTH). No `residual`. mean, deviation: (n, 4 blocks, c'), those of the four follow each other.

    weight: blocks of (some, WIDTH, DEPTH). narrow: None, or the same weight described by smaller blocks, for the
    columns that each tile has beside those. add: c' values for each frame, `add_row` after those of the last, or None.
    mean, deviation: (n, blocks, c'), of each block of ROWS results as stored, in narrow pictures of w, or None. tiles:
    of 2 blocks of rows and `columns` blocks of columns, `across` beside each other. parts: c / DEPTH. stages: three at
    least. places: for blocks of x, two at least. Over frames, each stage has 2.
    """
    weights = (weight,) if narrow is None else (weight, narrow)
    block: gl.constexpr = out.block_type.shape
    lines: gl.constexpr = x.block_type.nbytes // (2 * ROWS * DEPTH)
    taps: gl.constexpr = 2 if len(block) == 5 else 3 if lines > 1 else 1  # that read the same lines of x
    blocks_each: gl.constexpr = 3 if taps == 2 else 1
    x_memory = gl.allocate_shared_memory(x.dtype, [places * blocks_each] + x.block_type.shape, x.layout)
    x_lines = x_memory._reinterpret(x.dtype, [places * blocks_each * lines, 1, 1, ROWS, DEPTH], x.layout)
    w_memory, results = (), ()
    for j in gl.static_range(len(weights)):
        w_memory = w_memory + (
            gl.allocate_shared_memory(x.dtype, [stages] + weights[j].block_type.shape, weights[j].layout),
        )
        results = results + (
            w_memory[j]._reinterpret(x.dtype, [stages * weights[j].block_type.shape[0]] + block, out.layout),
        )
    full = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(stages):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    memory, barriers = (x_memory, x_lines, w_memory, results), (full, empty)
    sizes = (tiles, across, parts, frames, padding, n, blocks, s, w)
    fence()  # of the barriers, to the copying engine
    given = (weights, residual, add, out, mean, deviation, factor, add_row, memory, barriers, sizes)
    gl.warp_specialize(
        [
            (convolve, (given, columns, taps, 0)),
            (convolve, (given, columns, taps, 1)),
            (load, (x, weights, residual, memory, barriers, sizes, columns, taps)),
        ],
        [4, 1],
        [240, 24],
    )
