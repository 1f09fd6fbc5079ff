"""All guiders, by name, and guidance around a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from sgm.devices import to_device
from sgm.diffusion.adaptive_guiders import APGGuider, IntervalGuider
from sgm.diffusion.frame_guiders import (
    IdentityGuider,
    LinearPredictionGuider,
    SpatiotemporalPredictionGuider,
    TrapezoidPredictionGuider,
    TrianglePredictionGuider,
    VanillaCFG,
)
from sgm.diffusion.guider import MAX_GUIDANCE as MAX_GUIDANCE
from sgm.diffusion.guider import MIN_GUIDANCE as MIN_GUIDANCE
from sgm.diffusion.guider import Guider as Guider

Condition = dict[str, Tensor]
Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma), sigma 0-dim or (n,) -> estimate of the clean x

# Name -> class; the request, the command line and the page list these.
GUIDERS: dict[str, type[Guider]] = {
    "identity": IdentityGuider,
    "cfg": VanillaCFG,
    "linear": LinearPredictionGuider,
    "triangle": TrianglePredictionGuider,
    "trapezoid": TrapezoidPredictionGuider,
    "spatiotemporal": SpatiotemporalPredictionGuider,
    "interval": IntervalGuider,
    "apg": APGGuider,
}


def guided(
    denoiser: Callable[[Condition], Denoise], guider: Guider, c: Condition, uc: Condition, like: Tensor
) -> Denoise:
    """Classifier-free guidance around a denoiser: (x, sigma) -> guided estimate, for samplers.

    denoiser: a condition of n frames -> (x, sigma (n,)) -> estimate. c, uc: conditions of (b t) frames. like: a tensor
    of x's shape, dtype and device. Both conditions are joined into one batch once, unconditional first. Where every
    scale is 1, and at noise levels at which the guider does not guide, only the conditional estimate is computed.
    """
    alone = cache(lambda: denoiser(c))
    guides = guider.guides if guider.needs_uc else lambda sigma: False
    pair = guided_pair(denoiser, guider, c, uc, like)
    return lambda x, sigma: pair(x, sigma)[1] if guides(sigma) else alone()(x, sigma * like.new_ones(len(like)))


def guided_pair(
    denoiser: Callable[[Condition], Denoise], guider: Guider, c: Condition, uc: Condition, like: Tensor
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """As `guided`, but (x, sigma) -> unconditional and guided estimate, of which both halves are always computed."""
    n, scales = len(like), guider.scales()
    rows = to_device(scales.to(like.dtype), like.device).repeat(n // len(scales))
    combine = guider.combination(rows.view(-1, *[1] * (like.ndim - 1)))
    both = cache(lambda: denoiser({key: torch.cat([uc[key], c[key]]) for key in c}))

    def estimates(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        x_u, x_c = both()(torch.cat([x, x]), sigma * like.new_ones(2 * n)).chunk(2)
        return x_u, combine(x_u, x_c)

    return estimates
