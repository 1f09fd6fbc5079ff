"""Products in Triton's Gluon: of rows that are normed or blended first, and GEGLU."""

# Gluon unpacks tuples whole, and knows neither enumerations nor starred items.
# ruff: noqa: RUF005, RUF059, SIM113
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false

from triton.experimental import gluon

from sgm.fast.gluon_base import (
    DEPTH,
    ROWS,
    WIDTH,
    at_count,
    fence,
    gated,
    gl,
    halves_of,
    kernel,
    mbarrier,
    tma,
    wait,
    wgmma,
)

# Matrix products (GEMM) with a fused prologue: of rows that are normed or blended first. Where their inner dimension is
# short (320 channels: the first level, which has the most pixels), loading takes as long as multiplying, and GELU as
# long again. So 64 rows are loaded once, changed and kept in registers while all columns of the weight stream past
# them. Each group of warps has 64 rows of its own: one multiplies while the other finishes and stores.


@kernel
def rows_at(tile, across, i: gl.constexpr):
    """The frame and the first row of group i's part of a tile."""
    return tile // across, (tile % across * 2 + i) * ROWS


@kernel
def load_rows(x, z, copy, rows, barriers, sizes, parts: gl.constexpr):
    """Copies each tile's rows, of one group after the other: blocks of x, each followed by that of z if there is.

    To `copy`, too, if there is: from where they lie by then, while the group reads them.
    """
    rows_full, rows_empty, full, empty, turns, residual_full = barriers
    tiles, across, steps = sizes
    places: gl.constexpr = rows_empty.type.shape[0]
    sources: gl.constexpr = 1 if z is None else 2
    chunk: gl.constexpr = rows.type.shape[0] // (places * sources)
    count = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        for i in gl.static_range(2):
            frame, row = rows_at(tile, across, i)
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
                if copy is not None:
                    mbarrier.wait(here, at_count(count, rows_full.type.shape[0])[1])
                    for j in gl.static_range(chunk):
                        block, at = (place * chunk + j) * sources, [frame, row, (k + j) * DEPTH]
                        tma.async_copy_shared_to_global(copy, at, rows.index(block))
                    tma.store_wait(0)  # which has read them: the place may be filled again
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
def normed_rows(rows, barriers, tensors, numbers, frame, number, i: gl.constexpr, layout: gl.constexpr):
    """The number-th rows of group i, layer-normed: (ROWS, DEPTH) each, half precision."""
    rows_full, rows_empty, full, empty, turns, residual_full = barriers
    gain, shift, add, bias = tensors
    gain_row, add_row, weight_x, weight_z, eps = numbers
    parts: gl.constexpr = rows.type.shape[0]
    channel = gl.arange(0, DEPTH, gl.SliceLayout(0, layout))
    mbarrier.wait(rows_full.index(i), number & 1)
    add += frame * add_row
    raw = ()
    sums = gl.zeros([ROWS, DEPTH], gl.float32, layout)
    for k in gl.static_range(parts):
        raw = raw + (rows.index(k).reshape([ROWS, DEPTH]).load(layout),)
        sums += raw[k].to(gl.float32) + by_channel(add, k, channel)
    fence()
    mbarrier.arrive(rows_empty.index(0), count=1)
    average = (gl.sum(sums, 1) / (parts * DEPTH))[:, None]
    sums = gl.zeros([ROWS, DEPTH], gl.float32, layout)
    for k in gl.static_range(parts):
        difference = raw[k].to(gl.float32) + by_channel(add, k, channel) - average
        sums += difference * difference
    factor = gl.rsqrt(gl.sum(sums, 1) / (parts * DEPTH) + eps)[:, None]
    normed = ()
    for k in gl.static_range(parts):
        y = (raw[k].to(gl.float32) + by_channel(add, k, channel) - average) * factor
        normed = normed + ((y * by_channel(gain, k, channel) + by_channel(shift, k, channel)).to(rows.dtype),)
    return normed


@kernel
def changed_rows(
    rows, barriers, tensors, numbers, frame, number,
    i: gl.constexpr, parts: gl.constexpr, kind: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """The number-th rows of group i, scaled or blended as `short_product` says: as `normed_rows`."""
    rows_full, rows_empty, full, empty, turns, residual_full = barriers
    gain, shift, add, bias = tensors
    gain_row, add_row, weight_x, weight_z, eps = numbers
    places: gl.constexpr = rows_empty.type.shape[0]
    sources: gl.constexpr = 2 if kind == "blend" else 1
    chunk: gl.constexpr = rows.type.shape[0] // (places * sources)
    channel = gl.arange(0, DEPTH, gl.SliceLayout(0, layout))
    changed = ()
    for k in gl.static_range(parts):
        place = ((number * 2 + i) * (parts // chunk) + k // chunk) % places
        block = (place * chunk + k % chunk) * sources
        if k % chunk == 0:
            mbarrier.wait(rows_full.index((i * parts + k) // chunk), number & 1)
        y = in_float32(rows.index(block), layout)
        if kind == "blend":
            y = y * weight_x + in_float32(rows.index(block + 1), layout) * weight_z
            y += by_channel(add + frame * add_row, k, channel)
        else:
            y = y * by_channel(gain + frame * gain_row, k, channel)
            y += by_channel(shift + frame * gain_row, k, channel)
        changed = changed + (computed(y.to(rows.dtype)),)
        if k % chunk == chunk - 1:
            fence()
            mbarrier.arrive(rows_empty.index(place), count=1)
    return changed


@kernel
def load_residual(out, results, residual_full, count, tile, step, sizes, i: gl.constexpr):
    """Start to copy what the count-th results of group i are added to, to where they will be; not past the end."""
    tiles, across, steps = sizes
    frame, row = rows_at(tile, across, i)
    place, exists = 2 * i + count % 2, tile < tiles
    mbarrier.expect(residual_full.index(place), out.block_type.nbytes, pred=exists)
    at = [frame, row, step * WIDTH]
    tma.async_copy_global_to_shared(out, at, residual_full.index(place), results.index(place), pred=exists)


@kernel
def multiply_rows(
    weight, out, memory, barriers, sizes, tensors, numbers,
    i: gl.constexpr, parts: gl.constexpr, kind: gl.constexpr,
):  # fmt: skip
    """Computes and stores the results of the i-th 64 rows of each tile: first the operand, then step by step."""
    rows, columns, results = memory
    rows_full, rows_empty, full, empty, turns, residual_full = barriers
    tiles, across, steps = sizes
    gain, shift, add, bias = tensors
    gain_row, add_row, weight_x, weight_z, eps = numbers
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
        load_residual(out, results, residual_full, 0, gl.program_id(0), 0, sizes, i)
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        frame, row = rows_at(tile, across, i)
        if kind == "layer norm":
            changed = normed_rows(rows, barriers, tensors, numbers, frame, number, i, layout)
        else:
            changed = changed_rows(rows, barriers, tensors, numbers, frame, number, i, parts, kind, layout)
        operands = ()
        for k in gl.static_range(parts):
            operands = operands + (gl.convert_layout(changed[k], operand),)
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
                load_residual(out, results, residual_full, count + 1, following, next_step, sizes, i)
            products = wait(0, deps=(products,))
            mbarrier.arrive(empty.index(stage), count=1)
            if halves == 2:
                value, gate = halves_of(products)
                products = gated(value, gate, value_bias, gate_bias, layout)
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
            result.reshape([ROWS, WIDTH]).store(products.to(out.dtype))
            fence()
            tma.async_copy_shared_to_global(out, [frame, row, step * WIDTH], result)
            count += 1
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["tiles", "across", "steps"])
def short_product(
    x, z, copy, weight, out, gain, shift, add, bias, gain_row, add_row, weight_x, weight_z, eps, tiles, across, steps,
    kind: gl.constexpr, parts: gl.constexpr, chunk: gl.constexpr, places: gl.constexpr, stages: gl.constexpr,
):  # fmt: skip
    """A matrix product (GEMM) of rows f(x) and a weight; f, the fused prologue, is of one of three kinds.

    "layer norm": of x + add, with the weight `gain` and the bias `shift`, (c,). "affine": x * gain + shift, (n, c)
    float32. "blend": weight_x * x + weight_z * z + add, whose products are added to `out`. add: (n, c). gain_row,
    add_row: from one frame's row to the next. bias: (c',) or None. Where the weight is in two halves, values and gates,
    and so is the bias, the result is their GEGLU.

    x, z: (n, s, c), out: (n, s, c'), weight: (1 or 2, c', c), tensor descriptors with blocks of (1, ROWS, DEPTH),
    (1, ROWS, WIDTH) and (1 or 2, WIDTH, DEPTH). copy: as x, which is copied there as it is; or None. tiles: of 2 ROWS
    rows, `across` a frame. steps: of WIDTH columns. parts: c / DEPTH. Rows are copied in chunks of so many blocks (a
    layer norm needs all at once) to `places`, for a tile's chunks at most, and columns to `stages`.
    """
    halves: gl.constexpr = weight.block_type.shape[0]
    sources: gl.constexpr = 2 if kind == "blend" else 1
    rows = gl.allocate_shared_memory(x.dtype, [places * chunk * sources, 1, ROWS, DEPTH], x.layout)
    columns = gl.allocate_shared_memory(x.dtype, [stages * parts, halves, WIDTH, DEPTH], weight.layout)
    results = gl.allocate_shared_memory(x.dtype, [2 * sources, 1, ROWS, WIDTH], out.layout)
    # A group waits for every phase of its own barriers alone: another's would come in between.
    chunks: gl.constexpr = 2 * parts // chunk
    rows_full = gl.allocate_shared_memory(gl.int64, [chunks, 1], mbarrier.MBarrierLayout())
    rows_empty = gl.allocate_shared_memory(gl.int64, [places, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    residual_full = gl.allocate_shared_memory(gl.int64, [4, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(chunks):
        mbarrier.init(rows_full.index(i), count=1)
    for i in gl.static_range(places):
        mbarrier.init(rows_empty.index(i), count=1)
    for i in gl.static_range(stages):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    for i in gl.static_range(2):
        mbarrier.init(turns.index(i), count=1)
    for i in gl.static_range(4):
        mbarrier.init(residual_full.index(i), count=1)
    barriers = (rows_full, rows_empty, full, empty, turns, residual_full)
    sizes = (tiles, across, steps)
    tensors = (gain, shift, add, bias)
    numbers = (gain_row, add_row, weight_x, weight_z, eps)
    memory = (rows, columns, results)
    fence()  # of the barriers, to the copying engine
    gl.warp_specialize(
        [
            (multiply_rows, (weight, out, memory, barriers, sizes, tensors, numbers, 0, parts, kind)),
            (multiply_rows, (weight, out, memory, barriers, sizes, tensors, numbers, 1, parts, kind)),
            (load_rows, (x, z, copy, rows, barriers, sizes, parts)),
            (load_columns, (weight, columns, barriers, sizes, parts)),
        ],
        [4, 1, 1],
        [240, 24, 24],
    )


# GEGLU of rows with more channels than registers hold. Blocks of rows and columns stream through shared memory; each of
# three groups of warps multiplies 64 rows by 128 columns of values and as many of gates. Two groups, for which the same
# columns are copied half as often again, took 2 to 3 % longer.

GROUPS = gl.constexpr(3)


@kernel
def load_blocks(x, weight, memory, barriers, sizes):
    """Copies, for each tile, the blocks of its rows and columns along the channels."""
    x_memory, w_memory, out_memory = memory
    full, empty = barriers
    tiles, across, parts = sizes
    stages: gl.constexpr = full.type.shape[0]
    count = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, column = tile // across * (GROUPS * ROWS), tile % across * weight.block_type.shape[1]
        for k in range(parts):
            stage, phase = at_count(count, stages)
            mbarrier.wait(empty.index(stage), phase ^ 1)
            mbarrier.expect(full.index(stage), GROUPS * x.block_type.nbytes + 2 * weight.block_type.nbytes)
            for i in gl.static_range(GROUPS):
                x_at = [row + i * ROWS, k * DEPTH]
                tma.async_copy_global_to_shared(x, x_at, full.index(stage), x_memory.index(GROUPS * stage + i))
            for j in gl.static_range(2):
                w_at = [j, column, k * DEPTH]
                tma.async_copy_global_to_shared(weight, w_at, full.index(stage), w_memory.index(2 * stage + j))
            count += 1


@kernel
def start_products(memory, stage, products, i: gl.constexpr, use_acc: gl.constexpr):
    """Start the products of the i-th 64 rows of a stage with its columns, added to the values and the gates."""
    x_memory, w_memory, out_memory = memory
    rows = x_memory.index(GROUPS * stage + i)
    # One by one, since of the widest wgmma the sums do not fit into what registers so many threads have.
    started = ()
    for j in gl.static_range(2):
        columns = w_memory.index(2 * stage + j).reshape([products[j].shape[1], DEPTH]).permute((1, 0))
        started = started + (wgmma(rows, columns, products[j], use_acc=use_acc, is_async=True),)
    return started


@kernel
def multiply_blocks(bias, out, memory, barriers, sizes, i: gl.constexpr):
    """GEGLU of the i-th 64 rows of each tile."""
    x_memory, w_memory, out_memory = memory
    full, empty = barriers
    tiles, across, parts = sizes
    stages: gl.constexpr = full.type.shape[0]
    width: gl.constexpr = w_memory.type.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    wide_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 16])
    channel = gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    nothing = gl.zeros([ROWS, width], gl.float32, wide_layout)
    count = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, column = tile // across * (GROUPS * ROWS) + i * ROWS, tile % across * width
        stage, phase = at_count(count, stages)
        mbarrier.wait(full.index(stage), phase)
        products = wait(2, deps=start_products(memory, stage, (nothing, nothing), i, False))
        count += 1
        for _ in range(1, parts):
            last = stage
            stage, phase = at_count(count, stages)
            mbarrier.wait(full.index(stage), phase)
            products = wait(2, deps=start_products(memory, stage, products, i, True))
            mbarrier.arrive(empty.index(last), count=1)
            count += 1
        value, gate = wait(0, deps=products)
        mbarrier.arrive(empty.index(stage), count=1)
        values, gates = halves_of(value), halves_of(gate)
        for k in gl.static_range(2):  # half at a time, while the other half is stored
            at = bias + column + k * WIDTH + channel
            result = gated(values[k], gates[k], gl.load(at), gl.load(at + across * width), layout)
            place = out_memory.index(2 * i + k)
            tma.store_wait(1)
            place.store(result.to(out.dtype))
            fence()
            tma.async_copy_shared_to_global(out, [row, column + k * WIDTH], place)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["tiles", "across", "parts"])
def product_geglu(x, weight, bias, out, tiles, across, parts, stages: gl.constexpr):
    """out = the GEGLU of x times weight: (rows, c) -> (rows, c').

    x, out, weight (2, c', c): tensor descriptors with blocks of (ROWS, DEPTH), (ROWS, WIDTH) and (1, 2 WIDTH, DEPTH).
    tiles: of GROUPS times ROWS rows and 2 WIDTH columns, `across` beside each other. parts: c / DEPTH.
    """
    x_memory = gl.allocate_shared_memory(x.dtype, [GROUPS * stages, ROWS, DEPTH], x.layout)
    w_memory = gl.allocate_shared_memory(x.dtype, [2 * stages] + weight.block_type.shape, weight.layout)
    out_memory = gl.allocate_shared_memory(x.dtype, [2 * GROUPS, ROWS, WIDTH], out.layout)
    full = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(stages):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=GROUPS)
    memory, barriers, sizes = (x_memory, w_memory, out_memory), (full, empty), (tiles, across, parts)
    fence()  # of the barriers, to the copying engine
    gl.warp_specialize(
        [
            (multiply_blocks, (bias, out, memory, barriers, sizes, 0)),
            (multiply_blocks, (bias, out, memory, barriers, sizes, 1)),
            (multiply_blocks, (bias, out, memory, barriers, sizes, 2)),
            (load_blocks, (x, weight, memory, barriers, sizes)),
        ],
        [4, 4, 1],
        [160, 160, 32],
    )
