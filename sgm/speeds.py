"""Speeds: what a clip may lose for time. Not exact but for the first; benchmarks/README.md says what each costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sgm.fields import Field


@dataclass(frozen=True)
class Speed:
    """A choice of the field `speed`.

    cache_interval: the whole network is evaluated every so many times, in between its shallow blocks alone (DeepCache:
    see `FastUNet.conditioned`). steps, schedule: defaults of these fields; steps never more than the version's own.
    """

    title: str
    cache_interval: int = 1
    steps: int | None = None
    schedule: str = ""
    options: Mapping[str, Field] = field(default_factory=dict)


# Align Your Steps (arXiv:2404.14507) has ten steps.
SPEEDS: dict[str, Speed] = {
    "exact": Speed("Exact"),
    "cached": Speed("Cached: the whole network at every second evaluation", cache_interval=2),
    "cached_3": Speed("Cached: the whole network at every third evaluation", cache_interval=3),
    "ays": Speed("Align Your Steps: ten steps", steps=10, schedule="ays"),
    "ays_cached": Speed("Align Your Steps, cached", cache_interval=2, steps=10, schedule="ays"),
}
