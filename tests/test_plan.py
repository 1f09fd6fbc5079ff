"""What is on the device when, and what that is predicted to take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sgm.engine import DiffusionEngine, build_engine
from sgm.plan import GIB, LADDER, choose, predict
from sgm.versions import VERSIONS
from tests import small_model


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    return small_model.made_up(small_model.write_config(tmp_path_factory.mktemp("config") / "svd.yaml"))


def test_a_smaller_plan_is_chosen_where_room_is_scarce(engine: DiffusionEngine) -> None:
    clip = 3, 64, 96, True
    fast, small = choose(engine, *clip, None), choose(engine, *clip, None, low=True)
    assert (fast.by_turns, small.by_turns, small.in_turn) == (False, True, True)
    assert 0 < small.peak < fast.peak
    assert choose(engine, *clip, 2 * fast.peak) == fast
    assert choose(engine, *clip, fast.peak - 1) == small
    assert choose(engine, *clip, 1) == small  # there is none smaller: it is tried
    # More frames take more, and so does guidance.
    assert choose(engine, 6, 64, 96, True, None).peak > fast.peak
    assert choose(engine, 3, 64, 96, False, None).peak <= fast.peak


def test_svd_xt_in_half_precision_takes_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model without weights. Measured on a GPU, see benchmarks/README.md: 8.94 and 4.48 GiB."""
    kernels = pytest.importorskip("sgm.fast.triton_kernels", reason="other systems have no Triton and take other paths")
    monkeypatch.setattr("sgm.fast.kernels.compiled", kernels)
    engine = build_engine(VERSIONS["svd_xt"].config_path)
    engine.half()
    for module in engine.modules():
        if "mix_factor" in module._parameters:
            module._parameters["mix_factor"] = torch.nn.Parameter(torch.zeros(1).half(), requires_grad=False)
        elif hasattr(module, "encoder") and hasattr(module, "n_cond_frames"):
            module.encoder.float()
    peaks = [predict(engine, (25, 4, 72, 128), plan, 2).peak / GIB for plan in LADDER]
    assert peaks == [pytest.approx(8.94, rel=0.1), pytest.approx(4.48, rel=0.1)]


def test_parts_come_and_go_unchanged(engine: DiffusionEngine) -> None:
    before = {name: value.clone() for name, value in engine.state_dict().items()}
    engine.place, meta = (
        torch.device("meta"),
        torch.device("meta"),
    )  # which forgets values, as a part's departure must not

    def places() -> dict[str, set[torch.device]]:
        return {name: {value.device for value in part.parameters()} for name, part in engine.parts.items()}

    try:
        for name in engine.parts:
            engine.bring(name)
            assert {part for part, found in places().items() if found == {meta}} == {name}
            assert engine.device == meta
    finally:
        engine.bring("")
        engine.place = None
    after = engine.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_sizes_of_the_network_s_inputs_are_read_from_it(engine: DiffusionEngine, tmp_path: Path) -> None:
    other = small_model.made_up(small_model.write_config(tmp_path / "image.yaml", "svd_image_decoder_small"))
    assert predict(other, (3, 4, 8, 12), LADDER[0], 1).peak > 0
