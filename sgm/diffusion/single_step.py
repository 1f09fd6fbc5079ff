"""Samplers of the probability-flow ODE whose steps look at no other step."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from sgm.diffusion.discretization import EDMDiscretization
from sgm.diffusion.guidance import Denoise
from sgm.diffusion.sampler import S_NOISE, Noise, Sampler, to_d
from sgm.fields import Field

S_CHURN = Field(
    "s_churn", float, "Churn", "Fresh noise while sampling, shared out over the steps. 0: none.", 0, 100, 0.0, step=0.1
)
S_TMIN = Field("s_tmin", float, "Churn from sigma", "Smallest sigma at which churn adds noise.", 0, 1e4, 0.0, step=0.1)
S_TMAX = Field("s_tmax", float, "Churn up to sigma", "Largest sigma at which churn adds noise.", 0, 1e4, 1e4, step=1.0)
RESTARTS = Field(
    "restarts", int, "Restarts", "How often sampling goes back to more noise. 0: not at all.", 0, 20, 2, step=1
)
RESTART_STEPS = Field("restart_steps", int, "Steps a restart", "Steps from there down again.", 1, 100, 10, step=1)
RESTART_MIN = Field(
    "restart_min",
    float,
    "Restart at sigma",
    "The level of the schedule next to it is where sampling goes back.",
    1e-3,
    1e4,
    0.1,
    step=0.01,
)
RESTART_MAX = Field(
    "restart_max", float, "Back to sigma", "The noise level that it goes back to.", 1e-3, 1e4, 2.0, step=0.1
)


class EulerEDMSampler(Sampler):
    """Karras et al. 2022, algorithm 2 without its second-order correction."""

    title = "Euler EDM"
    options: ClassVar = {"s_churn": S_CHURN, "s_tmin": S_TMIN, "s_tmax": S_TMAX, "s_noise": S_NOISE}

    def __init__(
        self,
        *args: Any,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.s_churn, self.s_tmin, self.s_tmax, self.s_noise = s_churn, s_tmin, s_tmax, s_noise

    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        # Churn: add noise, which raises sigma to sigma_hat.
        churn = self.s_churn > 0 and self.s_tmin <= float(sigma) <= self.s_tmax
        gamma = min(self.s_churn / (len(sigmas) - 1), 2**0.5 - 1) if churn else 0.0
        sigma_hat = sigma * (gamma + 1)
        if gamma > 0:
            x = x + noise(x) * self.s_noise * (sigma_hat**2 - sigma**2).sqrt()
        # Euler step.
        d = to_d(x, sigma_hat, denoise(x, sigma_hat))
        return self.correct(denoise, x, x + (sigma_next - sigma_hat) * d, d, sigma_hat, sigma_next)

    def correct(
        self, denoise: Denoise, x: Tensor, euler: Tensor, d: Tensor, sigma_hat: Tensor, sigma_next: Tensor
    ) -> Tensor:
        return euler


class HeunEDMSampler(EulerEDMSampler):
    """Karras et al. 2022, algorithm 2. Two network evaluations in each step but the last."""

    title = "Heun EDM"

    def correct(
        self, denoise: Denoise, x: Tensor, euler: Tensor, d: Tensor, sigma_hat: Tensor, sigma_next: Tensor
    ) -> Tensor:
        if sigma_next == 0:
            return euler
        # Apply the 2nd order correction.
        d_next = to_d(euler, sigma_next, denoise(euler, sigma_next))
        return x + (sigma_next - sigma_hat) * (d + d_next) / 2


class DPM2Sampler(EulerEDMSampler):
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927), by its slope half-way in ln sigma, with the churn of EDM.

    Two network evaluations in each step but the last.
    """

    title = "DPM2"

    def correct(
        self, denoise: Denoise, x: Tensor, euler: Tensor, d: Tensor, sigma_hat: Tensor, sigma_next: Tensor
    ) -> Tensor:
        if sigma_next == 0:
            return euler
        sigma_mid = (sigma_hat * sigma_next).sqrt()
        x_mid = x + (sigma_mid - sigma_hat) * d
        return x + (sigma_next - sigma_hat) * to_d(x_mid, sigma_mid, denoise(x_mid, sigma_mid))


class RestartSampler(HeunEDMSampler):
    """Restart sampling (Xu et al. 2023, arXiv:2306.14878): Heun steps that go back to more noise, and down again.

    At the level of the schedule next to `restart_min`, noise takes x up to `restart_max`, from where `restart_steps`
    steps, spaced as in EDM, lead back; `restarts` times. A schedule that ends above restart_max knows no restart.
    """

    title = "Restart"
    options: ClassVar = {
        "restarts": RESTARTS,
        "restart_steps": RESTART_STEPS,
        "restart_min": RESTART_MIN,
        "restart_max": RESTART_MAX,
        "s_noise": S_NOISE,
    }

    def __init__(
        self,
        *args: Any,
        restarts: int = 2,
        restart_steps: int = 10,
        restart_min: float = 0.1,
        restart_max: float = 2.0,
        s_noise: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, s_noise=s_noise, **kwargs)
        if restart_max <= restart_min:
            raise ValueError(f"restart_max must exceed restart_min; got {restart_max} and {restart_min}.")
        self.restarts, self.restart_steps = restarts, restart_steps
        self.restart_min, self.restart_max = restart_min, restart_max

    def path(self, sigmas: Tensor) -> Tensor:
        at = int((sigmas[:-1].log() - math.log(self.restart_min)).abs().argmin())
        low = float(sigmas[at])
        if low >= self.restart_max:
            return sigmas
        down = EDMDiscretization(low, self.restart_max)(self.restart_steps + 1, False, sigmas.device).to(sigmas)
        down[-1] = sigmas[at]
        return torch.cat([sigmas[: at + 1], *[down] * self.restarts, sigmas[at + 1 :]])

    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        if sigma_next > sigma:
            return x + noise(x) * self.s_noise * (sigma_next**2 - sigma**2).sqrt()
        return super().step(denoise, x, sigmas, i, noise)
