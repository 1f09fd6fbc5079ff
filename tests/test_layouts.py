"""Every official config builds, without memory or weights, exactly the tensors that official checkpoints hold."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sgm.engine import build_engine
from sgm.versions import VERSIONS

DATA = Path(__file__).parent / "data"
LAYOUTS = DATA / "goldens" / "layouts"
INFERENCE = VERSIONS["svd"].config_path.parent
OURS = {f"ours-{path.stem}": path for path in sorted(INFERENCE.glob("*.yaml")) if path.stem != "svd_tiny"}
OFFICIAL = {f"official-{path.stem}": path for path in sorted((DATA / "official_configs").glob("*.yaml"))}
CONFIGS = OURS | OFFICIAL


def layout_of(config: Path) -> Path:
    name = config.stem.removeprefix("inference_")
    if name.startswith("svd"):
        name = "svd_image_decoder" if name.endswith("image_decoder") else "svd"
    return LAYOUTS / f"{name.removesuffix('_8views')}.txt"


def read_layout(path: Path) -> dict[str, tuple[int, ...]]:
    pairs = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {name: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for name, shape in pairs}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_builds_the_official_layout_without_memory(config: Path) -> None:
    start = time.process_time()
    engine = build_engine(config)
    seconds = time.process_time() - start
    state = engine.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == read_layout(layout_of(config))
    assert all(value.is_meta for value in state.values())
    assert seconds < 20  # some two on an idle machine; seven gigabytes of weights would take minutes


def test_all_configs_and_layouts_are_here() -> None:
    assert len(OURS) == 11
    assert len(OFFICIAL) == 14
    assert {layout_of(path) for path in CONFIGS.values()} == set(LAYOUTS.glob("*.txt"))
