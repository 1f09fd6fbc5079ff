"""Speeds: what a clip may lose for time. Not exact but for the first; benchmarks/README.md says what each costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sgm.fields import Field


@dataclass(frozen=True)
class Speed:
    """A choice of the field `speed`.

    way: what is done, in words. cache_interval: the whole network is evaluated every so many times, in between its
    shallow blocks alone (DeepCache: see `FastUNet.conditioned`). fp8: with float8 products. steps, schedule: defaults
    of these fields; steps never more than the version's own. share: of the exact clip's time, and psnr: to it, in dB,
    both as measured at svd_xt's size with made-up weights on an H200 (`benchmarks/gpu.py`).
    """

    way: str
    cache_interval: int = 1
    fp8: bool = False
    steps: int | None = None
    schedule: str = ""
    share: float = 1.0
    psnr: float = float("inf")
    options: Mapping[str, Field] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.way if self.share == 1 else f"{self.way} ({self.share:.2g} of the time)"

    @property
    def without_fp8(self) -> Speed:
        """The same with exact products, as where a device has no others."""
        mine = self.cache_interval, self.steps
        return next(one for one in SPEEDS.values() if not one.fp8 and (one.cache_interval, one.steps) == mine)

    @property
    def cost(self) -> str:
        """What is lost for what, in words; "" for nothing."""
        if self.share == 1:
            return ""
        return f"{self.share:.2g} of the exact time, {self.psnr:.0f} dB from it: svd_xt, made-up weights, an H200"


_AYS: dict[str, Any] = {"steps": 10, "schedule": "ays"}  # Align Your Steps (arXiv:2404.14507) has ten steps
SPEEDS: dict[str, Speed] = {
    "exact": Speed("Exact"),
    "cached": Speed("Cached, whole at every second evaluation", 2, share=0.55, psnr=54.9),
    "cached_3": Speed("Cached, whole at every third evaluation", 3, share=0.42, psnr=52.2),
    "fp8": Speed("Products in 8 bits", fp8=True, share=0.84, psnr=51.5),
    "fp8_cached": Speed("Products in 8 bits, cached", 2, fp8=True, share=0.48, psnr=50.6),
    "ays": Speed("Align Your Steps, ten", **_AYS, share=0.44, psnr=46.7),
    "ays_cached": Speed("Align Your Steps, cached", 2, **_AYS, share=0.27, psnr=46.8),
    "ays_fp8": Speed("Align Your Steps, products in 8 bits", fp8=True, **_AYS, share=0.37, psnr=45.7),
}
SHARES = ", ".join(f"{name} {speed.share:.2g}" for name, speed in SPEEDS.items() if speed.cost)  # in words
