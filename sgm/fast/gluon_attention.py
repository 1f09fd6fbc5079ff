"""Attention in Triton's Gluon, as FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608).

Three groups of warps with 64 queries each share blocks of keys and values. While a block's weights (the exponentials)
are computed, its predecessor's are multiplied.
"""

# Gluon unpacks tuples whole, and knows neither enumerations nor starred items.
# ruff: noqa: RUF059, SIM113
# pyright: reportMissingImports=false, reportInvalidTypeForm=false, reportGeneralTypeIssues=false

from triton.experimental import gluon

from sgm.fast.gluon_base import (
    DEPTH,
    ROWS,
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
