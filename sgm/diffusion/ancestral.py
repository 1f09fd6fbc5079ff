"""Samplers that go below the next sigma and add fresh noise, and others that draw noise in each step."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from sgm.diffusion.guidance import Denoise
from sgm.diffusion.sampler import S_NOISE, Noise, Sampler, to_d
from sgm.fields import Field

ETA = Field("eta", float, "Eta", "How much fresh noise each step puts back. 0: none, 1: all.", 0, 1, 1.0, step=0.1)


def get_ancestral_step(sigma_from: Tensor, sigma_to: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Split a step into one down to sigma_down and noise of sigma_up on top: (sigma_down, sigma_up)."""
    if not eta:
        return sigma_to, torch.zeros_like(sigma_to)
    up = eta * (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2).sqrt()
    up = torch.minimum(sigma_to, up)
    return (sigma_to**2 - up**2).sqrt(), up


class StochasticSampler(Sampler):
    """Base of samplers that draw part of the noise anew. eta: its share, 0 for none, 1 for all."""

    options: ClassVar = {"eta": ETA, "s_noise": S_NOISE}

    def __init__(self, *args: Any, eta: float = 1.0, s_noise: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.eta, self.s_noise = eta, s_noise


class AncestralSampler(StochasticSampler):
    """Base of samplers that step below the next sigma and add fresh noise."""

    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        sigma_down, sigma_up = get_ancestral_step(sigmas[i], sigmas[i + 1], self.eta)
        x = self.down(denoise, x, sigmas[i], sigma_down)
        return x + noise(x) * self.s_noise * sigma_up if sigmas[i + 1] > 0 else x

    @abstractmethod
    def down(self, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_down: Tensor) -> Tensor:
        """The deterministic part of a step: x at sigma -> x at sigma_down."""


class EulerAncestralSampler(AncestralSampler):
    """Ancestral sampling by Euler steps."""

    title = "Euler ancestral"

    def down(self, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_down: Tensor) -> Tensor:
        return x + (sigma_down - sigma) * to_d(x, sigma, denoise(x, sigma))


class DPM2AncestralSampler(AncestralSampler):
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927), ancestral. Two evaluations in each step but the last."""

    title = "DPM2 ancestral"

    def down(self, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_down: Tensor) -> Tensor:
        d = to_d(x, sigma, denoise(x, sigma))
        if sigma_down == 0:
            return x + (sigma_down - sigma) * d
        sigma_mid = (sigma * sigma_down).sqrt()
        x_mid = x + (sigma_mid - sigma) * d
        return x + (sigma_down - sigma) * to_d(x_mid, sigma_mid, denoise(x_mid, sigma_mid))


class DPMPP2SAncestralSampler(AncestralSampler):
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095), ancestral. Two evaluations in each step but the last."""

    title = "DPM++ 2S ancestral"

    def down(self, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_down: Tensor) -> Tensor:
        denoised = denoise(x, sigma)
        if sigma_down == 0:
            return x + (sigma_down - sigma) * to_d(x, sigma, denoised)
        h = sigma.log() - sigma_down.log()  # a step in lambda = -log sigma
        sigma_mid = (sigma * sigma_down).sqrt()
        x_mid = sigma_mid / sigma * x - torch.expm1(-0.5 * h) * denoised
        return sigma_down / sigma * x - torch.expm1(-h) * denoise(x_mid, sigma_mid)


class DPMPPSDESampler(StochasticSampler):
    """DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095) for the SDE: a step by the estimate half-way in ln sigma.

    Half step and whole step see one Brownian motion in sigma, so the noise of the first is part of the other's. Two
    evaluations in each step but the last.
    """

    title = "DPM++ SDE"

    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            return denoised
        sigma_mid = (sigma * sigma_next).sqrt()
        share = (sigma - sigma_mid) / (sigma - sigma_next)  # of the motion up to the middle
        first = noise(x)
        whole = share.sqrt() * first + (1 - share).sqrt() * noise(x)
        x_mid = self.noised(x, denoised, sigma, sigma_mid, first)
        return self.noised(x, denoise(x_mid, sigma_mid), sigma, sigma_next, whole)

    def noised(self, x: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Tensor) -> Tensor:
        """x at sigma -> x at sigma_next, by an estimate of the clean x that is the same on the way."""
        sigma_down, sigma_up = get_ancestral_step(sigma, sigma_next, self.eta)
        return denoised + sigma_down / sigma * (x - denoised) + noise * self.s_noise * sigma_up


class LCMSampler(Sampler):
    """Multistep consistency sampling (Song et al. 2023, arXiv:2303.01469, algorithm 1), for networks distilled to it.

    Each step adds noise of the next sigma to the estimate of the clean x.
    """

    title = "LCM"
    options: ClassVar = {"s_noise": S_NOISE}

    def __init__(self, *args: Any, s_noise: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.s_noise = s_noise

    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        clean = denoise(x, sigmas[i])
        return clean + noise(x) * self.s_noise * sigmas[i + 1] if sigmas[i + 1] > 0 else clean
