"""BoundedSampler: sampling between two pictures, the clip's first frame and its last one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sgm.diffusion.guidance import Condition, Denoise, Guider, guided_pair
from sgm.diffusion.sampler import Noise, Sampler, to_d
from sgm.fields import Field, Named

Estimates = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (x, sigma) -> unconditional and guided estimate

ENDS = Field(
    "ends",
    str,
    "Ends",
    "Where a clip between two pictures ends: where it began, so that it can be played in a loop, or at a last one.",
    default="loop",
    choices=lambda: {"loop": Named("Where it began: a loop"), "last": Named("At a last picture")},
)


@dataclass(frozen=True)
class Between:
    """The estimates of a clip from each of its ends, for `BoundedSampler`; for other samplers, that from the first.

    forward: of frames in their order, given the first picture. backward: of the frames reversed, given the last one.
    """

    forward: Estimates
    backward: Estimates

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.forward(x, sigma)[1]


def one_end(
    denoiser: Callable[[Condition], Denoise], guider: Guider, c: Condition, uc: Condition, like: Tensor, other: Tensor
) -> Estimates:
    """The estimates from one end, where the picture at the other end is known. Other arguments: as for `guided`.

    other: that picture's latent, (1, c, h, w), in the space that is sampled; the guided estimate's last frame.
    """
    pair = guided_pair(denoiser, guider, c, uc, like)

    def estimates(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        x_u, x_c = pair(x, sigma)
        x_c[-1:] = other
        return x_u, x_c

    return estimates


def _unguided(denoise: Denoise) -> Estimates:
    """The estimates of a denoiser that knows no guidance: both are its own."""

    def estimates(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return (estimate := denoise(x, sigma)), estimate

    return estimates


class BoundedSampler(Sampler):
    """Between two pictures (ViBiDSampler, Yang et al. 2024, arXiv:2410.05651). Two evaluations a step.

    Each half of a step is x -> D + sigma' (x - x_u) / sigma: D, the guided estimate, has the other end's picture as its
    last frame, and the noise is that of the unconditional estimate (CFG++, Chung et al. 2024, arXiv:2406.08070). The
    first half goes forward from the first picture. Noise takes its result back up to sigma, from where the second half
    goes backward from the last picture, frames reversed.
    """

    title = "Between two pictures"
    bounded = True
    options: ClassVar = {"ends": ENDS}
    # One scale for all frames: none of them is far from both pictures.
    guiders = ("cfg", "identity")
    defaults: ClassVar = {"guider": "cfg", "max_guidance": 1.0}

    def __init__(self, *args: object, ends: str = "loop", **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # pyright: ignore[reportArgumentType]
        self.ends = ends

    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        """One step. denoise: a `Between`, or an estimate that stands for both ends, neither of which is given then."""
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        if not isinstance(denoise, Between):
            denoise = Between(*2 * (_unguided(denoise),))

        def half(estimates: Estimates, x: Tensor) -> Tensor:
            x_u, guided = estimates(x, sigma)
            return guided + sigma_next * to_d(x, sigma, x_u)

        x = half(denoise.forward, x)
        x = x + (sigma**2 - sigma_next**2).sqrt() * noise(x)
        return half(denoise.backward, x.flip(0)).flip(0)
