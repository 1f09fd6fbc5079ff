"""Guiders that also look at the noise level or at the estimates; their scale rises over the frames, as SVD's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sgm.diffusion.frame_guiders import LinearPredictionGuider
from sgm.diffusion.guider import RISE, Combine
from sgm.fields import Field


class IntervalGuider(LinearPredictionGuider):
    """Guidance at sigmas above `sigma_min` up to `sigma_max` only (Kynkaanniemi et al. 2024, arXiv:2404.07724).

    Elsewhere the conditional estimate alone is computed. Default: the paper's interval for Stable Diffusion XL.
    """

    title = "Rising, in an interval"
    options: ClassVar = {
        **RISE,
        "sigma_min": Field(
            "guidance_sigma_min",
            float,
            "Guidance above sigma",
            "Noise level down to which there is guidance.",
            0,
            1e4,
            0.28,
            step=0.01,
        ),
        "sigma_max": Field(
            "guidance_sigma_max",
            float,
            "Guidance up to sigma",
            "Noise level from which on there is guidance.",
            0,
            1e4,
            5.42,
            step=0.01,
        ),
    }

    def __init__(self, *args: Any, sigma_min: float = 0.28, sigma_max: float = 5.42, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if sigma_max <= sigma_min:
            raise ValueError(f"guidance_sigma_max must exceed guidance_sigma_min; got {sigma_max} and {sigma_min}.")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def guides(self, sigma: float | Tensor) -> bool:
        return self.sigma_min < float(torch.as_tensor(sigma).max()) <= self.sigma_max


class APGGuider(LinearPredictionGuider):
    """Adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416, algorithm 1), of each frame by itself.

    The update x_c - x_u gets `momentum` times the sum of those before, is shortened to `norm_threshold` (0: it is not),
    and its part along x_c, which saturates, counts `eta`. eta 1, no threshold and no momentum: plain guidance.
    """

    title = "Rising, projected (APG)"
    options: ClassVar = {
        **RISE,
        "eta": Field(
            "apg_eta",
            float,
            "Parallel part",
            "How much counts what only makes the estimate stronger, and saturates. 1: all, as without APG.",
            0,
            1,
            0.0,
            step=0.1,
        ),
        "norm_threshold": Field(
            "apg_norm",
            float,
            "Longest update",
            "What guidance changes in a frame's latent at most, as a norm, at scale 2. 0: no limit.",
            0,
            1e4,
            15.0,
            step=0.5,
        ),
        "momentum": Field(
            "apg_momentum",
            float,
            "Momentum",
            "How earlier updates count. Below 0 they are held against the new one.",
            -0.99,
            0.99,
            -0.5,
            step=0.05,
        ),
    }

    def __init__(
        self, *args: Any, eta: float = 0.0, norm_threshold: float = 15.0, momentum: float = -0.5, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.eta, self.norm_threshold, self.momentum = eta, norm_threshold, momentum

    def combination(self, scales: Tensor) -> Combine:
        sum_of_updates: Tensor | float = 0.0

        def combine(x_u: Tensor, x_c: Tensor) -> Tensor:
            nonlocal sum_of_updates
            sum_of_updates = update = x_c - x_u + self.momentum * sum_of_updates
            if self.norm_threshold:
                update = update * (self.norm_threshold / _norm(update)).clamp(max=1)
            direction = x_c / _norm(x_c)
            parallel = (update * direction).sum(tuple(range(1, x_c.ndim)), keepdim=True) * direction
            return x_c + (scales - 1) * (update + (self.eta - 1) * parallel)

        return combine


def _norm(x: Tensor) -> Tensor:
    """The length of each frame, (n, 1, ...), above 0."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True).clamp(min=1e-12)
