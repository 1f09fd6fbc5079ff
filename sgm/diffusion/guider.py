"""Guider: the base of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598), a scale for each frame.

The guided estimate is x_u + scale * (x_c - x_u), of the unconditional and the conditional one, unless a guider says
otherwise. Their files: `frame_guiders`, `adaptive_guiders`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from sgm.fields import Field

Combine = Callable[[Tensor, Tensor], Tensor]  # unconditional, conditional estimate -> guided estimate

MIN_GUIDANCE = Field(
    "min_guidance", float, "Lowest scale", "Guidance scale of the first frame.", 0, 100, usual=(0, 20), step=0.1
)
MAX_GUIDANCE = Field("max_guidance", float, "Highest scale", "Largest guidance scale.", 0, 100, usual=(0, 20), step=0.1)
RISE = {"min_scale": MIN_GUIDANCE, "max_scale": MAX_GUIDANCE}


class Guider:
    """Base of guiders. title: for people. options: the constructor's parameters that a request may set -> fields."""

    title: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Field]] = {}

    @classmethod
    def of(cls, num_frames: int, **options: Any) -> Guider:
        """The guider for a clip of that many frames."""
        return cls(**options)

    def scales(self) -> Tensor:
        """Guidance scale of each frame, (t,), or (1,) where all frames have the same."""
        raise NotImplementedError

    def guides(self, sigma: float | Tensor) -> bool:
        """Whether there is guidance at a noise level; elsewhere the conditional estimate is taken as it is."""
        return True

    def combination(self, scales: Tensor) -> Combine:
        """(x_u, x_c) -> guided estimate. A new one for each run: what it remembers between evaluations is its own.

        scales: of each frame of x, (n, 1, ...).
        """
        return lambda x_u, x_c: x_u + scales * (x_c - x_u)

    @property
    def needs_uc(self) -> bool:
        """Whether the unconditional estimate is needed: not where every scale is 1."""
        return not bool((self.scales() == 1).all())
