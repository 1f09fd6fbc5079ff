"""Sampler: the base of all samplers, and the options that several have.

All samplers share one signature and know no guidance: `denoise` is `(x, sigma) -> estimate of the clean x`, x (n, c, h,
w). Their files: `single_step`, `ancestral`, `multistep`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sgm.config import instantiate_from_config
from sgm.diffusion.discretization import Discretization
from sgm.diffusion.guidance import Denoise, Guider, IdentityGuider
from sgm.fields import Field

Noise = Callable[[Tensor], Tensor]  # a tensor -> fresh standard normal noise of its shape


def to_d(x: Tensor, sigma: Tensor, denoised: Tensor) -> Tensor:
    """dx / dsigma of the probability-flow ODE (Karras et al. 2022, equation 3)."""
    return (x - denoised) / sigma


S_NOISE = Field("s_noise", float, "Noise scale", "Factor of the fresh noise; 1 is exact.", 0, 2, 1.0, step=0.001)


class Sampler(ABC):
    """Base of samplers: `sampler(denoise, x, sigmas)` turns standard normal x into a sample.

    denoise: a denoiser, or several that take turns, a step each. sigmas: falling, the last one 0. noise: draws the
    noise of stochastic samplers (default: torch's global generator). on_step(i, n): called after step i of n; it may
    raise. title: for people. options: the constructor's parameters that a request may set -> fields.
    defaults: of fields beside these, by name, in place of the version's. bounded: whether it samples between two
    pictures, each of which has a condition of its own. guiders: the only ones that such a sampler works with.

    Official YAMLs give schedule, guider and number of steps with the sampler: they become `discretization`, `guider`
    and `num_steps`, for the caller to use (see `guided`); sampling itself does not use them.
    """

    title: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Field]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    bounded: ClassVar[bool] = False
    guiders: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        discretization_config: Mapping[str, Any] | None = None,
        num_steps: int | None = None,
        guider_config: Mapping[str, Any] | None = None,
        verbose: bool = False,
        device: str | None = None,
    ) -> None:
        self.discretization: Discretization | None = (
            None if discretization_config is None else instantiate_from_config(discretization_config)
        )
        self.guider: Guider = IdentityGuider() if guider_config is None else instantiate_from_config(guider_config)
        self.num_steps = num_steps

    def __call__(
        self,
        denoise: Denoise | Sequence[Denoise],
        x: Tensor,
        sigmas: Tensor,
        noise: Noise = torch.randn_like,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        if len(sigmas) < 2:
            raise ValueError(f"sigmas must be two or more, the last one 0; got {len(sigmas)}.")
        x = x * (1 + sigmas[0] ** 2).sqrt()
        sigmas = self.path(sigmas)
        num_steps = len(sigmas) - 1
        turns = denoise if isinstance(denoise, Sequence) else [denoise]
        self.begin(sigmas)
        for i in range(num_steps):
            x = self.step(turns[i % len(turns)], x, sigmas, i, noise)
            if on_step is not None:
                on_step(i + 1, num_steps)
        return x

    def levels(self, sigmas: Tensor) -> list[float]:
        """The sigma of each evaluation of the network along a schedule: that of a single number is sampled."""
        levels: list[float] = []

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            levels.append(float(sigma))
            return x

        self(denoise, torch.zeros(1), sigmas.cpu(), noise=torch.zeros_like)
        return levels

    def path(self, sigmas: Tensor) -> Tensor:
        """The sigmas that are gone along: the schedule, with the ways back of samplers that restart."""
        return sigmas

    def begin(self, sigmas: Tensor) -> None:  # noqa: B027
        """Called before the first step: multistep samplers clear their history here."""

    @abstractmethod
    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        """One step: x at sigmas[i] -> x at sigmas[i + 1]."""
