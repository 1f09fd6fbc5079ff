"""Guiders: how the conditional and the unconditional estimate become one (Ho & Salimans 2022, arXiv:2207.12598).

A guider of `num_frames` frames works on (b t, ...) with b clips of that many frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Condition = dict[str, Tensor]


class Guider:
    """Base: x_u + scale * (x_c - x_u), with a scale for each frame. Subclasses give `scales()`."""

    # What came last, so that a step need not repeat it: both conditions' tensors, taken to be unchanged while they are
    # the same objects, and them as one batch; the scales, and the same where they are needed.
    joined: tuple[list[Tensor], Condition] | None = None
    there: tuple[Tensor, Tensor] | None = None

    def scales(self) -> Tensor:
        """(t,), or (1,) for all frames alike."""
        raise NotImplementedError

    @property
    def needs_uc(self) -> bool:
        """Whether the unconditional estimate matters; where every scale is 1 it does not, and is not computed."""
        return not bool((self.scales() == 1).all())

    def prepare_inputs(self, x: Tensor, sigma: Tensor, c: Condition, uc: Condition) -> tuple[Tensor, Tensor, Condition]:
        """Double the batch, unconditional first."""
        if not self.needs_uc:
            return x, sigma, c
        parts = [*uc.values(), *c.values()]
        if self.joined is None or [*map(id, parts)] != [*map(id, self.joined[0])]:
            self.joined = parts, {key: torch.cat([uc[key], c[key]]) for key in c}
        return torch.cat([x, x]), torch.cat([sigma, sigma]), self.joined[1]

    def __call__(self, denoised: Tensor, sigma: Tensor) -> Tensor:
        if not self.needs_uc:
            return denoised
        x_u, x_c = denoised.chunk(2)
        scales, (before, there) = self.scales(), self.there or (None, None)
        if before is None or there is None or not torch.equal(before, scales) or there.device != x_u.device:
            there = scales.to(x_u.device)  # a copy to a GPU waits until that has nothing else to do
            self.there = scales, there
        scales = there.to(x_u.dtype).repeat(x_u.shape[0] // len(scales)).view(-1, *[1] * (x_u.ndim - 1))
        return x_u + scales * (x_c - x_u)


class IdentityGuider(Guider):
    """No guidance."""

    def scales(self) -> Tensor:
        return torch.ones(1)


class VanillaCFG(Guider):
    """One scale for all frames."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def scales(self) -> Tensor:
        return torch.tensor([float(self.scale)])


class LinearPredictionGuider(Guider):
    """From `min_scale` at the first frame evenly to `max_scale` at the last."""

    def __init__(self, max_scale: float, num_frames: int, min_scale: float = 1.0) -> None:
        self.max_scale, self.num_frames, self.min_scale = max_scale, num_frames, min_scale

    def scales(self) -> Tensor:
        return torch.linspace(self.min_scale, self.max_scale, self.num_frames)


def _triangle(values: Tensor, period: float = 1.0) -> Tensor:
    """0 at whole periods, 1 half-way between."""
    return 2 * (values / period - torch.floor(values / period + 0.5)).abs()


_FUSE: dict[str, Callable[..., Tensor]] = {
    "max": torch.amax,
    "min": torch.amin,
    "mean": torch.mean,
    "multiply": torch.prod,
}


class TrianglePredictionGuider(LinearPredictionGuider):
    """Up from `min_scale` and back down, once a `period` (a share of the clip); several periods fused."""

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
        self.period_fusing = period_fusing

    def scales(self) -> Tensor:
        values = torch.linspace(0, 1, self.num_frames)
        waves = torch.stack([_triangle(values, period) for period in self.periods])
        return _FUSE[self.period_fusing](waves, dim=0) * (self.max_scale - self.min_scale) + self.min_scale


class TrapezoidPredictionGuider(LinearPredictionGuider):
    """Edges, `edge_perc` of the frames, from `min_scale` to `max_scale` and back; 1 between, as in the original."""

    def __init__(self, max_scale: float, num_frames: int, min_scale: float = 1.0, edge_perc: float = 0.1) -> None:
        super().__init__(max_scale, num_frames, min_scale)
        self.edge = int(num_frames * edge_perc)

    def scales(self) -> Tensor:
        rise = torch.linspace(self.min_scale, self.max_scale, self.edge)
        return torch.cat([rise, torch.ones(self.num_frames - 2 * self.edge), rise.flip(0)])


class SpatiotemporalPredictionGuider(LinearPredictionGuider):
    """For (t v) frames of v views: half a rise over time, half a triangle over the views."""

    def __init__(self, max_scale: float, num_frames: int, num_views: int = 1, min_scale: float = 1.0) -> None:
        super().__init__(max_scale, num_frames, min_scale)
        self.num_views = num_views

    def scales(self) -> Tensor:
        times = torch.linspace(0, 1, self.num_frames // self.num_views)[:, None]
        views = _triangle(torch.linspace(0, 1, self.num_views))[None]
        return (0.5 * times + 0.5 * views).flatten() * (self.max_scale - self.min_scale) + self.min_scale


# Name -> guider of (min_scale, max_scale, num_frames); command line and page list these.
GUIDERS: dict[str, Callable[[float, float, int], Guider]] = {
    "identity": lambda low, high, frames: IdentityGuider(),
    "cfg": lambda low, high, frames: VanillaCFG(high),
    "linear": lambda low, high, frames: LinearPredictionGuider(high, frames, low),
    "triangle": lambda low, high, frames: TrianglePredictionGuider(high, frames, low),
    "trapezoid": lambda low, high, frames: TrapezoidPredictionGuider(high, frames, low),
    "spatiotemporal": lambda low, high, frames: SpatiotemporalPredictionGuider(high, frames, 1, low),
}
