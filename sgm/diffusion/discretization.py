"""Noise schedules: the sigmas of a given number of steps."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from sgm.errors import UserError


class Discretization(ABC):
    """Base of schedules: `schedule(n)` gives n falling sigmas, then zero, (n + 1,) float32."""

    def __call__(
        self, n: int, do_append_zero: bool = True, device: torch.device | str = "cpu", flip: bool = False
    ) -> Tensor:
        sigmas = self.get_sigmas(n).to(device, torch.float32)
        if do_append_zero:
            sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
        return sigmas.flip(0) if flip else sigmas

    @abstractmethod
    def get_sigmas(self, n: int) -> Tensor:
        """n falling sigmas, (n,)."""


class EDMDiscretization(Discretization):
    """Karras et al. 2022 (arXiv:2206.00364), equation 5: even steps in sigma^(1 / rho)."""

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_max must exceed sigma_min, and both zero; got {sigma_min} and {sigma_max}.")
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    def get_sigmas(self, n: int) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (high + torch.linspace(0, 1, n) * (low - high)) ** self.rho


class ConsistencyDiscretization(EDMDiscretization):
    """n of the `num_timesteps` sigmas on which a consistency model was distilled, from the largest on, evenly spaced.

    The smallest is left out: a consistency model's last step goes to the clean sample from any sigma. Raises UserError
    for more steps than sigmas.
    """

    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, num_timesteps: int = 40
    ) -> None:
        super().__init__(sigma_min, sigma_max, rho)
        self.num_timesteps = num_timesteps

    def get_sigmas(self, n: int) -> Tensor:
        if n > self.num_timesteps:
            raise UserError(f"This model was distilled on {self.num_timesteps} sigmas; {n} steps were asked for.")
        return super().get_sigmas(self.num_timesteps)[:: self.num_timesteps // n][:n]


class LegacyDDPMDiscretization(Discretization):
    """Stable Diffusion's DDPM schedule, linear in sqrt(beta): n of its timesteps, about evenly spaced."""

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
