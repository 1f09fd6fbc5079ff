"""What is on the device when, and what that is predicted to take."""

from __future__ import annotations

import pytest
import torch

from sgm.devices import GIB
from sgm.engine import DiffusionEngine, build_engine
from sgm.memory import FASTEST, OFFLOAD, Plan, choose, predict
from sgm.versions import VERSIONS


@pytest.fixture(scope="module")
def engine() -> DiffusionEngine:
    """SVD-XT in half precision, without its weights."""
    engine = build_engine(VERSIONS["svd_xt"].config_path).half()
    for module in engine.modules():
        if hasattr(module, "encoder") and hasattr(module, "n_cond_frames"):
            module.encoder.float()  # pyright: ignore[reportCallIssue]
    engine.version = "svd_xt"
    return engine


def test_a_smaller_plan_is_chosen_where_memory_is_scarce(engine: DiffusionEngine) -> None:
    clip = 25, 576, 1024, True
    fast, small = choose(engine, *clip, None), choose(engine, *clip, None, low=True)
    assert (fast.offload, small.offload, small.clip_by_clip) == (False, True, True)
    assert 0 < small.peak < fast.peak
    assert choose(engine, *clip, 2 * fast.peak) == fast
    assert choose(engine, *clip, fast.peak - 1) == small
    # What is offloaded is tried where it may fit, and the smallest where nothing fits.
    assert choose(engine, *clip, small.peak) == choose(engine, *clip, 2 * fast.peak, low=True) == small
    streamed = choose(engine, *clip, small.peak - 1)
    assert (streamed.streamed, streamed) == (True, choose(engine, *clip, 1))
    assert streamed.peak < 3.5 * GIB < small.peak
    assert choose(engine, *clip, 2 * fast.peak, added=2 * fast.peak) == small  # LoRAs' weights are there beside
    # Products in float8 take most of the network's weights once more, but not where these are streamed.
    eight_bits = [choose(engine, *clip, free, fp8=True) for free in (None, fast.peak, small.peak)]
    assert [(plan.offload, plan.streamed) for plan in eight_bits] == [(False, False), (True, False), (True, True)]
    assert eight_bits[1].peak - small.peak == pytest.approx(1.4 * GIB, rel=0.05)
    assert eight_bits[2] == streamed
    # More frames take more, and so does guidance.
    assert choose(engine, 50, 576, 1024, True, None).peak > fast.peak
    assert choose(engine, *clip[:3], False, None).peak <= fast.peak
    assert str(fast) == f"everything on the device, about {fast.peak / GIB:.1f} GiB"


# Of one H100, torch 2.11: see benchmarks/README.md.
MEASURED = {
    (25, 576, 1024): (8.91, 4.45),
    (14, 576, 1024): (7.37, 3.74),
    (14, 320, 576): (5.78, 3.27),
    (25, 320, 576): (6.30, 3.46),
    (21, 576, 576): (6.84, 3.69),
    (8, 1024, 1024): (7.95, 3.75),
}


@pytest.mark.parametrize("size", MEASURED, ids=str)
@pytest.mark.parametrize("plan", [FASTEST, OFFLOAD], ids=["fastest", "smallest"])
def test_svd_xt_takes_what_was_measured(engine: DiffusionEngine, size: tuple[int, int, int], plan: Plan) -> None:
    measured = MEASURED[size][plan is OFFLOAD]
    assert predict(engine, *size, True, plan).peak / GIB == pytest.approx(measured, rel=0.1)


def test_float32_takes_twice_the_memory_of_half_precision(engine: DiffusionEngine) -> None:
    half = predict(engine, 25, 576, 1024, True, OFFLOAD).peak
    whole = build_engine(VERSIONS["svd_xt"].config_path)
    whole.version = "svd_xt"
    assert whole.dtype == torch.float32
    assert predict(whole, 25, 576, 1024, True, OFFLOAD).peak == pytest.approx(2 * half, rel=0.02)
