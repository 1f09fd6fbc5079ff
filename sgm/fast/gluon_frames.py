"""Temporal convolutions, over frames, of SiLU(x * gain + shift) in Triton's Gluon: with that as a fused prologue.

They are for so few channels that the whole weight fits into shared memory. Then reading and writing take as long as
multiplying, or longer. So a program keeps the weight in shared memory, and each of its two groups of warps goes through
the frames of its pixels in order: every frame is read once, activated where it lies while the two before it are
multiplied, and stays for three results. The place of the first of three then holds the result, and what that is added
to.
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
    kernel,
    mbarrier,
    tma,
    wait,
    wgmma,
)
from sgm.fast.gluon_convolutions import blocks_of, measure_blocks

PLACES = gl.constexpr(4)  # for the frames of a group: of a result's three, one holds it, and the next one is copied


@kernel
def share_of(sizes, i: gl.constexpr):
    """The first of group i's tiles, and the one after its last."""
    tiles, share, frames, blocks, s = sizes
    first = (gl.program_id(0) * 2 + i) * share
    return gl.minimum(first, tiles), gl.minimum(first + share, tiles)


@kernel
def place_in(tile, sizes):
    """The clip, the frame in it and the first pixel of a tile: frames of the same pixels follow each other."""
    tiles, share, frames, blocks, s = sizes
    pixels = tile // frames
    return pixels // blocks, tile % frames, pixels % blocks * ROWS


@kernel
def load_frames(x, weight, memory, barriers, sizes, i: gl.constexpr):
    """Copies the frames that group i needs, those beside its tiles, too, and for both groups the weight."""
    x_memory, w_memory, results = memory
    full, empty, residual_full, weight_full = barriers
    parts: gl.constexpr = w_memory.type.shape[0] // 3
    begin, end = share_of(sizes, i)
    if i == 0:
        mbarrier.expect(weight_full.index(0), 3 * parts * weight.block_type.nbytes)
        for k in gl.static_range(3 * parts):
            tma.async_copy_global_to_shared(weight, [0, 0, k * DEPTH], weight_full.index(0), w_memory.index(k))
    count = 0
    for tile in range(begin, end):
        clip, frame, row = place_in(tile, sizes)
        for ahead in range(gl.where((tile == begin) | (frame == 0), -1, 1), 2):
            place, phase = at_count(count, PLACES)
            place += i * PLACES
            mbarrier.wait(empty.index(place), phase ^ 1)
            mbarrier.expect(full.index(place), parts * x.block_type.nbytes)
            for k in gl.static_range(parts):
                # Frames before a clip's first and after its last are outside x, of which zeros are copied.
                at = [clip, frame + ahead, row, k * DEPTH]
                tma.async_copy_global_to_shared(x, at, full.index(place), x_memory.index(place * parts + k))
            count += 1


@kernel
def factors_of(gain, shift, gain_row, clip, frame, sizes, parts: gl.constexpr, layout: gl.constexpr):
    """Of a frame's channels, gain and shift of each block, (1, DEPTH): zeros outside the clip, where zeros stay so."""
    tiles, share, frames, blocks, s = sizes
    inside = (frame >= 0) & (frame < frames)
    channel = (clip * frames + frame) * gain_row + gl.arange(0, DEPTH, gl.SliceLayout(0, layout))
    gains, shifts = (), ()
    for k in gl.static_range(parts):
        gains = gains + (gl.load(gain + k * DEPTH + channel, mask=inside, other=0.0)[None],)
        shifts = shifts + (gl.load(shift + k * DEPTH + channel, mask=inside, other=0.0)[None],)
    return gains, shifts


@kernel
def sigmoid(y):
    """As Triton computes it, to the bit in half precision, without the steps that it takes for the smallest numbers."""
    asm: gl.constexpr = "ex2.approx.ftz.f32 $0, $1; add.f32 $0, $0, 0f3F800000; rcp.approx.ftz.f32 $0, $0;"
    return gl.inline_asm_elementwise(asm, "=f,f", [y * -1.4426950408889634], dtype=gl.float32, is_pure=True, pack=1)


@kernel
def activate(block, gain, shift, rows, masked: gl.constexpr, layout: gl.constexpr):
    """SiLU(block * gain + shift) in place, half precision; of pixels past the end zeros, for the moments' sake."""
    block = block.reshape([ROWS, DEPTH])
    y = block.load(layout).to(gl.float32) * gain + shift
    y = y * sigmoid(y)
    if masked:
        y = gl.where((gl.arange(0, ROWS, gl.SliceLayout(1, layout)) < rows)[:, None], y, 0.0)
    block.store(y.to(block.dtype))
    fence()


@kernel
def multiplied(memory, place, tap: gl.constexpr, k: gl.constexpr, parts: gl.constexpr, sums):
    """Start the products of the k-th channels of the frame in a place with the columns of a tap, added to `sums`."""
    x_memory, w_memory, results = memory
    rows = x_memory.index(place * parts + k).reshape([ROWS, DEPTH])
    columns = w_memory.index(tap * parts + k).reshape([parts * WIDTH, DEPTH]).permute((1, 0))
    return wgmma(rows, columns, sums, use_acc=tap + k > 0, is_async=True)


@kernel
def measure_tile(results, place, tile, sizes, mean, deviation, exists, parts: gl.constexpr):
    """Stores the moments of a tile's results, of each column, if it exists."""
    tiles, share, frames, blocks, s = sizes
    clip, frame, row = place_in(tile, sizes)
    layout: gl.constexpr = gl.BlockedLayout([1, 2], [4, 8], [1, 4], [1, 0])
    channel = gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    mask = (channel < WIDTH) & exists
    channel += ((clip * frames + frame) * blocks + row // ROWS) * (parts * WIDTH)
    rows = gl.minimum(s - row, ROWS)
    measure_blocks(results, place * parts, mean + channel, deviation + channel, mask, rows, layout, parts)


@kernel
def convolve_frames(given, parts: gl.constexpr, masked: gl.constexpr, i: gl.constexpr):
    """Computes, stores and measures the tiles of group i."""
    gain, shift, gain_row, residual, out, mean, deviation, factor, memory, barriers, sizes = given
    x_memory, w_memory, results = memory
    full, empty, residual_full, weight_full = barriers
    tiles, share, frames, blocks, s = sizes
    base: gl.constexpr = i * PLACES
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    sums_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, parts * WIDTH, 16])
    result_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    begin, end = share_of(sizes, i)
    count = 0  # of frames
    mbarrier.wait(weight_full.index(0), 0)
    for tile in range(begin, end):
        clip, frame, row = place_in(tile, sizes)
        fresh = (tile == begin) | (frame == 0)
        for ahead in range(gl.where(fresh, -1, 1), 1):
            gains, shifts = factors_of(gain, shift, gain_row, clip, frame + ahead, sizes, parts, layout)
            place, phase = at_count(count, PLACES)
            mbarrier.wait(full.index(base + place), phase)
            for k in gl.static_range(parts):
                block = x_memory.index((base + place) * parts + k)
                activate(block, gains[k], shifts[k], s - row, masked, layout)
            count += 1
        sums = gl.zeros([ROWS, parts * WIDTH], gl.float32, sums_layout)
        held = base + (count + 2) % PLACES  # the place of the frame before, then of the result
        for tap in gl.static_range(2):
            for k in gl.static_range(parts):
                sums = multiplied(memory, base + (count + 2 + tap) % PLACES, tap, k, parts, sums)
        # Meanwhile the last tile's results are measured, and stored to the end, and the next frame is activated.
        gains, shifts = factors_of(gain, shift, gain_row, clip, frame + 1, sizes, parts, layout)
        last = base + (count + 1) % PLACES
        if mean is not None:
            measure_tile(results, last, tile - 1, sizes, mean, deviation, fresh == 0, parts)
        tma.store_wait(0)
        mbarrier.arrive(empty.index(last), count=1, pred=fresh == 0)
        place, phase = at_count(count, PLACES)
        mbarrier.wait(full.index(base + place), phase)
        for k in gl.static_range(parts):
            block = x_memory.index((base + place) * parts + k)
            activate(block, gains[k], shifts[k], s - row, masked, layout)
            sums = multiplied(memory, base + place, 2, k, parts, sums)
            if (k == 0) and (residual is not None):
                sums = wait(parts + 1, deps=(sums,))  # for the products of the frame before, whose place is taken
                mbarrier.expect(residual_full.index(i), parts * residual.block_type.nbytes)
                for j in gl.static_range(parts):
                    at = [clip * frames + frame, row, j * WIDTH]
                    result = results.index(held * parts + j)
                    tma.async_copy_global_to_shared(residual, at, residual_full.index(i), result)
        sums = wait(0, deps=(sums,))
        count += 1
        if residual is not None:
            mbarrier.wait(residual_full.index(i), (tile - begin) & 1)
        values = blocks_of(sums)
        for k in gl.static_range(parts):
            result = results.index(held * parts + k).reshape([ROWS, WIDTH])
            y = gl.convert_layout(values[k], result_layout)
            if residual is not None:
                y = y * factor + result.load(result_layout).to(gl.float32)
            result.store(y.to(out.dtype))
        fence()
        for k in gl.static_range(parts - 1, -1, -1):
            at = [clip * frames + frame, row, k * WIDTH]
            tma.async_copy_shared_to_global(out, at, results.index(held * parts + k))
        if (tile + 1 == end) | (frame + 1 == frames):  # the next tile needs none of these frames
            if mean is not None:
                measure_tile(results, held, tile, sizes, mean, deviation, frame < frames, parts)
            tma.store_wait(0)
            for k in gl.static_range(1, 4):
                mbarrier.arrive(empty.index(base + (count + k) % PLACES), count=1)


@gluon.jit(do_not_specialize=["tiles", "share", "frames", "blocks", "s"])
def normed_convolution(
    x, weight, residual, out, gain, shift, mean, deviation, factor, gain_row, tiles, share, frames, blocks, s,
    masked: gl.constexpr,
):  # fmt: skip
    """out = the convolution over frames, 3 taps, of SiLU(x * gain + shift); or the residual + factor times that.

    x: (b, t, s, c), residual, out: (b t, s, c), weight: (c / WIDTH, WIDTH, 3 c), tensor descriptors with blocks of
    (1, 1, ROWS, DEPTH), (1, ROWS, WIDTH) and (c / WIDTH, WIDTH, DEPTH); out may be the residual, but not x. c: 64 or
    128. gain, shift: (b t, c) float32, of which `gain_row` is from one row to the next. mean, deviation: (b t, blocks,
    c), of each block of ROWS results as stored, or None. tiles: such blocks of all frames, `share` for each group of
    warps. masked: whether the last block of a frame has fewer rows.
    """
    parts: gl.constexpr = weight.block_type.shape[0]
    x_memory = gl.allocate_shared_memory(x.dtype, [2 * PLACES * parts] + x.block_type.shape, x.layout)
    results = x_memory._reinterpret(x.dtype, [2 * PLACES * parts, 1, ROWS, WIDTH], out.layout)
    w_memory = gl.allocate_shared_memory(x.dtype, [3 * parts] + weight.block_type.shape, weight.layout)
    full = gl.allocate_shared_memory(gl.int64, [2 * PLACES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2 * PLACES, 1], mbarrier.MBarrierLayout())
    residual_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    weight_full = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2 * PLACES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    for i in gl.static_range(2):
        mbarrier.init(residual_full.index(i), count=1)
    mbarrier.init(weight_full.index(0), count=1)
    memory, barriers = (x_memory, w_memory, results), (full, empty, residual_full, weight_full)
    sizes = (tiles, share, frames, blocks, s)
    fence()  # of the barriers, to the copying engine
    given = (gain, shift, gain_row, residual, out, mean, deviation, factor, memory, barriers, sizes)
    gl.warp_specialize(
        [
            (convolve_frames, (given, parts, masked, 0)),
            (convolve_frames, (given, parts, masked, 1)),
            (load_frames, (x, weight, memory, barriers, sizes, 0)),
            (load_frames, (x, weight, memory, barriers, sizes, 1)),
        ],
        [4, 1, 1],
        [240, 24, 24],
    )
