"""Our YAMLs say what the official ones say; only the attention backends and the training leftovers differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sgm import VERSIONS

OFFICIAL = Path(__file__).parent / "data" / "official_configs"
OURS = VERSIONS["svd"].config_path.parent
SAME = {"vanilla-xformers": "vanilla", "softmax-xformers": "softmax"}


def plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items() if key not in ("ckpt_path", "monitor")}
    if isinstance(node, list):
        return [plain(value) for value in node]
    return SAME.get(node, node) if isinstance(node, str) else node


@pytest.mark.parametrize("name", sorted(p.stem for p in OURS.glob("*.yaml") if (OFFICIAL / p.name).exists()))
def test_says_what_the_official_config_says(name: str) -> None:
    ours, official = (
        plain(OmegaConf.to_container(OmegaConf.load(path), resolve=True))
        for path in (OURS / f"{name}.yaml", OFFICIAL / f"{name}.yaml")
    )
    assert ours == official
