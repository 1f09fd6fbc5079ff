"""What the kernels in Triton's Gluon have in common: `gluon_attention`, `_products`, `_convolutions` and `_frames`.

They are for Hopper cards; `gluon_ops` launches them. Each has groups of four warps that compute, and warps that copy
(TMA) what they need next. Barriers in shared memory (mbarrier) tell one that a place is full, the other that it is
empty again; a wait names the parity of a phase. At most as many programs are started as the card has multiprocessors;
each goes through its share of the tiles.
"""

# Gluon unpacks tuples whole, and knows neither enumerations nor starred items.
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
def gated(value, gate, value_bias, gate_bias, layout: gl.constexpr):
    """GEGLU of values and gates (ROWS, c), in this layout."""
    value = gl.convert_layout(value, layout) + value_bias.to(gl.float32)[None]
    gate = gl.convert_layout(gate, layout) + gate_bias.to(gl.float32)[None]
    return value * (gate * normal_cdf(gate))
