"""Guiders that differ in the scale of each frame alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sgm.diffusion.guider import MAX_GUIDANCE, RISE, Guider
from sgm.fields import Field, Named


class IdentityGuider(Guider):
    """No guidance."""

    title = "Off"

    def scales(self) -> Tensor:
        return torch.ones(1)


class VanillaCFG(Guider):
    """One scale for all frames."""

    title = "Constant"
    options: ClassVar = {"scale": MAX_GUIDANCE}

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def scales(self) -> Tensor:
        return torch.tensor([float(self.scale)])


class LinearPredictionGuider(Guider):
    """Linear over the frames, from `min_scale` at the first to `max_scale` at the last.

    additional_cond_keys: accepted as official YAMLs have it; `guided` joins all that a condition holds.
    """

    title = "Rising"
    options: ClassVar = RISE

    def __init__(
        self, max_scale: float, num_frames: int, min_scale: float = 1.0, additional_cond_keys: Sequence[str] = ()
    ) -> None:
        self.max_scale, self.num_frames, self.min_scale = max_scale, num_frames, min_scale

    @classmethod
    def of(cls, num_frames: int, **options: Any) -> Guider:
        return cls(num_frames=num_frames, **options)

    def scales(self) -> Tensor:
        return torch.linspace(self.min_scale, self.max_scale, self.num_frames)


def _triangle(values: Tensor, period: float = 1.0) -> Tensor:
    """Triangle wave: 0 at whole periods, 1 half-way between."""
    return 2 * (values / period - torch.floor(values / period + 0.5)).abs()


_FUSE: dict[str, Callable[..., Tensor]] = {
    "max": torch.amax,
    "min": torch.amin,
    "mean": torch.mean,
    "multiply": torch.prod,
}


class TrianglePredictionGuider(LinearPredictionGuider):
    """Triangle waves between `min_scale` and `max_scale`, of one or more periods (shares of the clip), fused."""

    title = "Triangle"
    options: ClassVar = {
        **RISE,
        "period": Field(
            "period",
            tuple,
            "Periods",
            "Share of the clip in which the scale rises and falls once; several are fused.",
            0.01,
            100,
            default=(1.0,),
        ),
        "period_fusing": Field(
            "period_fusing",
            str,
            "Fusing of periods",
            "How the waves of several periods become one scale.",
            default="max",
            choices=lambda: {name: Named(name.capitalize()) for name in _FUSE},
        ),
    }

    def __init__(
        self,
        max_scale: float,
        num_frames: int,
        min_scale: float = 1.0,
        period: float | Sequence[float] = 1.0,
        period_fusing: str = "max",
    ) -> None:
        super().__init__(max_scale, num_frames, min_scale)
        if period_fusing not in _FUSE:
            raise ValueError(f"period_fusing must be one of {', '.join(_FUSE)}; got {period_fusing!r}.")
        self.periods = [period] if isinstance(period, (int, float)) else list(period)
        if not self.periods:
            raise ValueError("period must be one number or more; got none.")
        self.period_fusing = period_fusing

    def scales(self) -> Tensor:
        values = torch.linspace(0, 1, self.num_frames)
        waves = torch.stack([_triangle(values, period) for period in self.periods])
        return _FUSE[self.period_fusing](waves, dim=0) * (self.max_scale - self.min_scale) + self.min_scale


class TrapezoidPredictionGuider(LinearPredictionGuider):
    """`min_scale` to `max_scale` over `edge_perc` of the frames, and back at the end; 1 between, as in the original."""

    title = "Trapezoid"
    options: ClassVar = {
        **RISE,
        "edge_perc": Field(
            "edge_perc",
            float,
            "Edges",
            "Share of the frames over which the scale rises at the start, and again falls at the end.",
            0,
            0.5,
            default=0.1,
            step=0.05,
        ),
    }

    def __init__(self, max_scale: float, num_frames: int, min_scale: float = 1.0, edge_perc: float = 0.1) -> None:
        super().__init__(max_scale, num_frames, min_scale)
        self.edge = int(num_frames * edge_perc)

    def scales(self) -> Tensor:
        rise = torch.linspace(self.min_scale, self.max_scale, self.edge)
        return torch.cat([rise, torch.ones(self.num_frames - 2 * self.edge), rise.flip(0)])


class SpatiotemporalPredictionGuider(LinearPredictionGuider):
    """For (t v) frames, v views at each time: the mean of a linear rise over time and a triangle over the views."""

    title = "Per view and frame"
    options: ClassVar = {
        **RISE,
        "num_views": Field(
            "num_views", int, "Views", "Views a moment; the frames are a multiple of it.", 1, 200, default=1, step=1
        ),
    }

    def __init__(
        self,
        max_scale: float,
        num_frames: int,
        num_views: int = 1,
        min_scale: float = 1.0,
        additional_cond_keys: Sequence[str] = (),
    ) -> None:
        super().__init__(max_scale, num_frames, min_scale)
        if num_frames % num_views:
            raise ValueError(f"num_views must divide the number of frames, {num_frames}; got {num_views}.")
        self.num_views = num_views

    def scales(self) -> Tensor:
        times = torch.linspace(0, 1, self.num_frames // self.num_views)[:, None]
        views = _triangle(torch.linspace(0, 1, self.num_views))[None]
        return (0.5 * times + 0.5 * views).flatten() * (self.max_scale - self.min_scale) + self.min_scale
