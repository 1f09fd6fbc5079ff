"""Guiders: classifier-free guidance's scale for each frame (Ho & Salimans 2022, arXiv:2207.12598).

The guided estimate is x_u + scale * (x_c - x_u), of the unconditional and the conditional one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sgm.fields import Field, Named

Condition = dict[str, Tensor]
Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma), sigma 0-dim or (n,) -> estimate of the clean x

MIN_GUIDANCE = Field(
    "min_guidance", float, "Lowest scale", "Guidance scale of the first frame.", 0, 100, usual=(0, 20), step=0.1
)
MAX_GUIDANCE = Field("max_guidance", float, "Highest scale", "Largest guidance scale.", 0, 100, usual=(0, 20), step=0.1)
_RISE = {"min_scale": MIN_GUIDANCE, "max_scale": MAX_GUIDANCE}


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

    @property
    def needs_uc(self) -> bool:
        """Whether the unconditional estimate is needed: not where every scale is 1."""
        return not bool((self.scales() == 1).all())


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
    """Linear over the frames, from `min_scale` at the first to `max_scale` at the last."""

    title = "Rising"
    options: ClassVar = _RISE

    def __init__(self, max_scale: float, num_frames: int, min_scale: float = 1.0) -> None:
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
        **_RISE,
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
        **_RISE,
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
        **_RISE,
        "num_views": Field(
            "num_views", int, "Views", "Views a moment; the frames are a multiple of it.", 1, 200, default=1, step=1
        ),
    }

    def __init__(self, max_scale: float, num_frames: int, num_views: int = 1, min_scale: float = 1.0) -> None:
        super().__init__(max_scale, num_frames, min_scale)
        if num_frames % num_views:
            raise ValueError(f"num_views must divide the number of frames, {num_frames}; got {num_views}.")
        self.num_views = num_views

    def scales(self) -> Tensor:
        times = torch.linspace(0, 1, self.num_frames // self.num_views)[:, None]
        views = _triangle(torch.linspace(0, 1, self.num_views))[None]
        return (0.5 * times + 0.5 * views).flatten() * (self.max_scale - self.min_scale) + self.min_scale


# Name -> class; the request, the command line and the page list these.
GUIDERS: dict[str, type[Guider]] = {
    "identity": IdentityGuider,
    "cfg": VanillaCFG,
    "linear": LinearPredictionGuider,
    "triangle": TrianglePredictionGuider,
    "trapezoid": TrapezoidPredictionGuider,
    "spatiotemporal": SpatiotemporalPredictionGuider,
}


def guided(
    denoiser: Callable[[Condition], Denoise], guider: Guider, c: Condition, uc: Condition, like: Tensor
) -> Denoise:
    """Classifier-free guidance around a denoiser: (x, sigma) -> guided estimate, for samplers.

    denoiser: a condition of n frames -> (x, sigma (n,)) -> estimate. c, uc: conditions of (b t) frames. like: a tensor
    of x's shape, dtype and device. Both conditions are joined into one batch once, unconditional first; where every
    scale is 1, only the conditional estimate is computed.
    """
    n, ones = len(like), like.new_ones(len(like))
    if not guider.needs_uc:
        conditional = denoiser(c)
        return lambda x, sigma: conditional(x, sigma * ones)
    both = denoiser({key: torch.cat([uc[key], c[key]]) for key in c})
    scales = guider.scales()
    scales = scales.to(like).repeat(n // len(scales)).view(-1, *[1] * (like.ndim - 1))  # (b t, 1, ...)
    ones = torch.cat([ones, ones])

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        x_u, x_c = both(torch.cat([x, x]), sigma * ones).chunk(2)
        return x_u + scales * (x_c - x_u)

    return denoise
