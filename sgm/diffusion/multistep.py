"""Samplers that look back at the estimates of earlier steps."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sgm.diffusion.ancestral import StochasticSampler
from sgm.diffusion.guidance import Denoise
from sgm.diffusion.sampler import Noise, Sampler, to_d
from sgm.fields import Field, Named

ORDER = Field("order", int, "Order", "How many earlier steps count.", 1, 8, 4, step=1)
SOLVER_ORDER = Field(
    "solver_order", int, "Solver order", "Order of the prediction; its correction adds one.", 1, 3, 2, step=1
)
SOLVER_TYPE = Field(
    "solver_type",
    str,
    "Extrapolation",
    "How the step before counts.",
    default="midpoint",
    choices=lambda: {"midpoint": Named("Midpoint"), "heun": Named("Heun")},
)


class DPMPP2MSampler(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095): second order, with the previous step's estimate."""

    title = "DPM++ 2M"

    def begin(self, sigmas: Tensor) -> None:
        self.previous: Tensor | None = None

    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        denoised = denoise(x, sigma)
        estimate = denoised
        if self.previous is not None and sigma_next > 0:
            r = (sigmas[i - 1].log() - sigma.log()) / (sigma.log() - sigma_next.log())
            estimate = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * self.previous
        self.previous = denoised
        ratio = sigma_next / sigma  # exp(-h)
        return ratio * x - (ratio - 1) * estimate


class LinearMultistepSampler(Sampler):
    """Linear multistep method (Adams-Bashforth) in sigma, with up to `order` derivatives."""

    title = "Linear multistep"
    options: ClassVar = {"order": ORDER}

    def __init__(self, *args: Any, order: int = 4, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.order = order

    def begin(self, sigmas: Tensor) -> None:
        self.history: list[Tensor] = []
        self.nodes = sigmas.double().cpu().numpy()

    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        self.history = [to_d(x, sigmas[i], denoise(x, sigmas[i])), *self.history][: self.order]
        weights = [self.weight(len(self.history), i, j) for j in range(len(self.history))]
        return x + sum(weight * d for weight, d in zip(weights, self.history, strict=True))

    def weight(self, order: int, i: int, j: int) -> float:
        """Integral over step i of the Lagrange polynomial that is 1 at node i - j and 0 at the other `order` - 1."""
        others = [self.nodes[i - k] for k in range(order) if k != j]
        node = self.nodes[i - j]
        integral = np.poly1d(np.poly(others) if others else [1.0]).integ()
        scale = np.prod([node - other for other in others]) if others else 1.0
        return float((integral(self.nodes[i + 1]) - integral(self.nodes[i])) / scale)


class UniPCSampler(Sampler):
    """UniPC (Zhao et al. 2023, arXiv:2302.04867) of estimates of the clean x, B(h) = e^h - 1.

    The evaluation after a step first corrects this step (UniC), then predicts the next (UniP).
    """

    title = "UniPC"
    options: ClassVar = {"solver_order": SOLVER_ORDER}

    def __init__(self, *args: Any, solver_order: int = 2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.solver_order = solver_order

    def begin(self, sigmas: Tensor) -> None:
        self.history: list[Tensor] = []
        self.lambdas: list[float] = (-sigmas.double().log()).tolist()

    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        denoised = denoise(x, sigmas[i])
        if i > 0:
            x = self.solve(self.start, i - 1, ahead=denoised)
        self.history, self.start = [denoised, *self.history][: self.solver_order], x
        del self.history[max(1, len(sigmas) - 1 - i) :]  # the last steps are of lower order, since there is no other
        return self.solve(x, i)

    def solve(self, x: Tensor, i: int, ahead: Tensor | None = None) -> Tensor:
        """x at step i's start -> x at its end. ahead: the estimate there, to correct it."""
        h, now = self.lambdas[i + 1] - self.lambdas[i], self.history[0]
        at = [(self.lambdas[i - k] - self.lambdas[i]) / h for k in range(1, len(self.history))]
        differences = [(before - now) / r for r, before in zip(at, self.history[1:], strict=True)]
        if ahead is not None:
            at, differences = [*at, 1.0], [*differences, ahead - now]
        weighted = sum(weight * d for weight, d in zip(self.weights(at, h), differences, strict=True))
        return math.exp(-h) * x - math.expm1(-h) * (now + weighted)

    @staticmethod
    def weights(at: list[float], h: float) -> list[float]:
        """The weights with which polynomials are integrated exactly; 1/2 for a single difference, as the paper has."""
        if len(at) < 2:
            return [0.5] * len(at)
        phi, exact = math.expm1(-h), []
        value = phi
        for k in range(1, len(at) + 1):
            value = value / -h - 1 / math.factorial(k)
            exact.append(value * math.factorial(k) / phi)
        return np.linalg.solve(np.vander(at, increasing=True).T, exact).tolist()


class DPMPP2MSDESampler(StochasticSampler):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095) for the SDE."""

    title = "DPM++ 2M SDE"
    options: ClassVar = {**StochasticSampler.options, "solver_type": SOLVER_TYPE}

    def __init__(self, *args: Any, solver_type: str = "midpoint", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.solver_type = solver_type

    def begin(self, sigmas: Tensor) -> None:
        self.history: list[Tensor] = []

    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            return denoised
        h = (sigma / sigma_next).log()  # the step in lambda = -ln sigma
        drift = (1 + self.eta) * h  # below the next sigma, where noise is added
        x = (-drift).exp() * x - torch.expm1(-drift) * denoised
        if self.history:
            r = [(sigmas[i - k - 1] / sigmas[i - k]).log() / h for k in range(len(self.history))]
            x = x + self.correction(denoised, r, drift)
        self.history = [denoised, *self.history][:2]
        return x + noise(x) * self.s_noise * sigma_next * (-torch.expm1(-2 * self.eta * h)).sqrt() if self.eta else x

    def correction(self, denoised: Tensor, r: list[Tensor], drift: Tensor) -> Tensor:
        """What the change of the estimate adds to a step. r: lengths of the steps before, latest first, by its own."""
        weight = -torch.expm1(-drift) / 2 if self.solver_type == "midpoint" else _phi_2(drift)
        return weight * (denoised - self.history[0]) / r[0]


class DPMPP3MSDESampler(DPMPP2MSDESampler):
    """DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095) for the SDE, third order, by two earlier estimates."""

    title = "DPM++ 3M SDE"
    options: ClassVar = StochasticSampler.options

    def correction(self, denoised: Tensor, r: list[Tensor], drift: Tensor) -> Tensor:
        first = (denoised - self.history[0]) / r[0]  # divided differences
        if len(self.history) < 2:
            return _phi_2(drift) * first
        second = (first - (self.history[0] - self.history[1]) / r[1]) / (r[0] + r[1])
        return _phi_2(drift) * (first + r[0] * second) - (_phi_2(drift) / drift - 0.5) * second


def _phi_2(h: Tensor) -> Tensor:
    """Integral of a linear function against the exponential of a step h: 1 - (1 - e^-h) / h."""
    return 1 + torch.expm1(-h) / h
