"""Noise schedules: the sigmas of a given number of steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sgm.devices import to_device
from sgm.errors import UserError
from sgm.fields import Field

# Without a default, they are those of each version's own schedule.
SIGMA_MIN = Field("sigma_min", float, "Sigma min", "Noise level of the last step.", 1e-4, 1e4, usual=(1e-4, 10))
SIGMA_MAX = Field("sigma_max", float, "Sigma max", "Noise level of the first step.", 1e-4, 1e4, usual=(0.1, 2000))
RHO = Field("rho", float, "Rho", "How steeply the noise levels fall: higher spends more steps on low ones.", 1, 100)
SIGMAS = Field("sigmas", tuple, "Sigmas", "The noise level of each step, falling. As many as there are steps.", 0, 1e4)


class Discretization(ABC):
    """Base of schedules: `schedule(n)` gives n falling sigmas, then zero, (n + 1,) float32.

    title: for people. options: the constructor's parameters that a request may set -> fields.
    """

    title: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Field]] = {}

    def __call__(
        self, n: int, do_append_zero: bool = True, device: torch.device | str = "cpu", flip: bool = False
    ) -> Tensor:
        sigmas = to_device(self.get_sigmas(n).float(), torch.device(device))
        if do_append_zero:
            sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
        return sigmas.flip(0) if flip else sigmas

    @abstractmethod
    def get_sigmas(self, n: int) -> Tensor:
        """n falling sigmas, (n,)."""


class EDMDiscretization(Discretization):
    """Karras et al. 2022 (arXiv:2206.00364), equation 5: even steps in sigma^(1 / rho)."""

    title = "EDM"
    options: ClassVar = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "rho": RHO}

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        if sigma_min <= 0:
            raise ValueError(f"sigma_min must exceed 0; got {sigma_min}.")
        if sigma_max <= sigma_min:
            raise ValueError(f"sigma_max must exceed sigma_min; got {sigma_max} and {sigma_min}.")
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    def get_sigmas(self, n: int) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (high + torch.linspace(0, 1, n) * (low - high)) ** self.rho


class ConsistencyDiscretization(EDMDiscretization):
    """n of the `num_timesteps` sigmas on which a consistency model was distilled, from the largest on, evenly spaced.

    The smallest is left out: a consistency model's last step goes to the clean sample from any sigma. Raises UserError
    for more steps than sigmas.
    """

    title = "Consistency"

    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, num_timesteps: int = 40
    ) -> None:
        super().__init__(sigma_min, sigma_max, rho)
        self.num_timesteps = num_timesteps

    def get_sigmas(self, n: int) -> Tensor:
        if n > self.num_timesteps:
            raise UserError(
                f"This schedule is of a model distilled on {self.num_timesteps} sigmas; {n} steps were asked for."
            )
        return super().get_sigmas(self.num_timesteps)[:: self.num_timesteps // n][:n]


class LegacyDDPMDiscretization(Discretization):
    """Stable Diffusion's DDPM schedule, linear in sqrt(beta): n of its timesteps, about evenly spaced."""

    title = "DDPM"

    def __init__(self, linear_start: float = 0.00085, linear_end: float = 0.0120, num_timesteps: int = 1000) -> None:
        self.num_timesteps = num_timesteps
        betas = np.linspace(linear_start**0.5, linear_end**0.5, num_timesteps, dtype=np.float64) ** 2
        self.alphas_cumprod = np.cumprod(1.0 - betas)

    def get_sigmas(self, n: int) -> Tensor:
        if n > self.num_timesteps:
            raise ValueError(f"This schedule has {self.num_timesteps} timesteps; {n} steps were asked for.")
        timesteps = np.linspace(self.num_timesteps - 1, 0, n, endpoint=False).astype(int)  # falling
        alphas = self.alphas_cumprod[timesteps]
        return torch.from_numpy(((1 - alphas) / alphas) ** 0.5)


class AlignYourStepsDiscretization(Discretization):
    """Align Your Steps (Sabour et al. 2024, arXiv:2404.14507): levels optimized for Stable Video Diffusion.

    Published for 10 steps; other numbers of steps interpolate ln sigma over the index, the authors' way.
    """

    title = "Align Your Steps"
    PUBLISHED: ClassVar = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)

    def get_sigmas(self, n: int) -> Tensor:
        index = np.linspace(0, 1, len(self.PUBLISHED))
        # The last of n + 1 levels becomes zero.
        return torch.from_numpy(np.exp(np.interp(np.linspace(0, 1, n + 1), index, np.log(self.PUBLISHED))))[:-1]


class CustomDiscretization(Discretization):
    """A list of sigmas, falling, without the zero at the end: as many as there are steps.

    Raises ValueError for a list that does not fall or is not positive, UserError for another number of steps.
    """

    title = "List of your own"
    options: ClassVar = {"sigmas": SIGMAS}

    def __init__(self, sigmas: Sequence[float]) -> None:
        if not 1 <= len(sigmas) <= 1000:
            raise ValueError(f"sigmas must be 1 to 1000 numbers, as in 80, 12.5, 0.3; got {len(sigmas)}.")
        for i, (sigma, after) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True), start=1):
            if sigma <= after:
                what = f"number {i + 1}, {after:g}, follows {sigma:g}" if after else f"number {i} is {sigma:g}"
                raise ValueError(f"sigmas must fall from one to the next and stay above 0; {what}.")
        self.sigmas = tuple(sigmas)

    def get_sigmas(self, n: int) -> Tensor:
        if n != len(self.sigmas):
            levels = len(self.sigmas)
            raise UserError(f"steps must be {levels}, since sigmas has as many numbers; got {n}. Leave steps out.")
        return torch.tensor(self.sigmas, dtype=torch.float64)


# Name -> class; the request, the command line and the page list these.
SCHEDULES: dict[str, type[Discretization]] = {
    "edm": EDMDiscretization,
    "ays": AlignYourStepsDiscretization,
    "legacy_ddpm": LegacyDDPMDiscretization,
    "consistency": ConsistencyDiscretization,
    "custom": CustomDiscretization,
}
