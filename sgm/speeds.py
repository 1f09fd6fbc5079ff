"""Speeds: what a clip may lose for time. Not exact but for the first; benchmarks/README.md says what each costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sgm.fields import Field


@dataclass(frozen=True)
class Speed:
    """A choice of the field `speed`.

    cache_interval: the whole network is evaluated every so many times, in between its shallow blocks alone (DeepCache:
    see `FastUNet.conditioned`). fp8: with float8 products. steps, schedule: defaults of these fields; steps never more than the version's own.
    """

    title: str
    cache_interval: int = 1
    fp8: bool = False
    steps: int | None = None
    schedule: str = ""
    options: Mapping[str, Field] = field(default_factory=dict)


# Align Your Steps (arXiv:2404.14507) has ten steps.
SPEEDS: dict[str, Speed] = {
    "exact": Speed("Exact"),
    "cached": Speed("Cached: the whole network at every second evaluation", cache_interval=2),
    "cached_3": Speed("Cached: the whole network at every third evaluation", cache_interval=3),
    "fp8": Speed("Products in 8 bits (fp8), on Hopper cards", fp8=True),
    "fp8_cached": Speed("Products in 8 bits, cached", cache_interval=2, fp8=True),
    "ays": Speed("Align Your Steps: ten steps", steps=10, schedule="ays"),
    "ays_cached": Speed("Align Your Steps, cached", cache_interval=2, steps=10, schedule="ays"),
    "ays_fp8": Speed("Align Your Steps, products in 8 bits", fp8=True, steps=10, schedule="ays"),
}
