"""Samplers of the probability-flow ODE and of its ancestral variants.

All share one signature and know no guidance: `denoise` is `(x, sigma) -> estimate of the clean x`, x (n, c, h, w).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
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


def get_ancestral_step(sigma_from: Tensor, sigma_to: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Split a step into one down to sigma_down and noise of sigma_up on top: (sigma_down, sigma_up)."""
    if not eta:
        return sigma_to, torch.zeros_like(sigma_to)
    up = eta * (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2).sqrt()
    up = torch.minimum(sigma_to, up)
    return (sigma_to**2 - up**2).sqrt(), up


S_CHURN = Field(
    "s_churn", float, "Churn", "Fresh noise while sampling, shared out over the steps. 0: none.", 0, 100, 0.0, step=0.1
)
S_TMIN = Field("s_tmin", float, "Churn from sigma", "Smallest sigma at which churn adds noise.", 0, 1e4, 0.0, step=0.1)
S_TMAX = Field("s_tmax", float, "Churn up to sigma", "Largest sigma at which churn adds noise.", 0, 1e4, 1e4, step=1.0)
S_NOISE = Field("s_noise", float, "Noise scale", "Factor of the fresh noise; 1 is exact.", 0, 2, 1.0, step=0.001)
ETA = Field("eta", float, "Eta", "How much fresh noise each step puts back. 0: none, 1: all.", 0, 1, 1.0, step=0.1)
ORDER = Field("order", int, "Order", "How many earlier steps count.", 1, 8, 4, step=1)


class Sampler(ABC):
    """Base of samplers: `sampler(denoise, x, sigmas)` turns standard normal x into a sample.

    sigmas: falling, the last one 0. noise: draws the noise of stochastic samplers (default: torch's global generator).
    on_step(i, n): called after step i of n; it may raise. title: for people. options: the constructor's parameters that
    a request may set -> fields.

    Official YAMLs give schedule, guider and number of steps with the sampler: they become `discretization`, `guider`
    and `num_steps`, for the caller to use (see `guided`); sampling itself does not use them.
    """

    title: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Field]] = {}

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
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        noise: Noise = torch.randn_like,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        num_steps = len(sigmas) - 1
        if num_steps < 1:
            raise ValueError(f"sigmas must be two or more, the last one 0; got {len(sigmas)}.")
        x = x * (1 + sigmas[0] ** 2).sqrt()
        self.begin(sigmas)
        for i in range(num_steps):
            x = self.step(denoise, x, sigmas, i, noise)
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

    def begin(self, sigmas: Tensor) -> None:  # noqa: B027
        """Called before the first step: multistep samplers clear their history here."""

    @abstractmethod
    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        """One step: x at sigmas[i] -> x at sigmas[i + 1]."""


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


class AncestralSampler(Sampler):
    """Base of samplers that step below the next sigma and add fresh noise. eta: its share, 0 for none, 1 for all."""

    options: ClassVar = {"eta": ETA, "s_noise": S_NOISE}

    def __init__(self, *args: Any, eta: float = 1.0, s_noise: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.eta, self.s_noise = eta, s_noise

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


# Name -> class; the request, the command line and the page list these.
SAMPLERS: dict[str, type[Sampler]] = {
    "euler_edm": EulerEDMSampler,
    "heun_edm": HeunEDMSampler,
    "euler_ancestral": EulerAncestralSampler,
    "dpmpp_2s_ancestral": DPMPP2SAncestralSampler,
    "dpmpp_2m": DPMPP2MSampler,
    "linear_multistep": LinearMultistepSampler,
    "lcm": LCMSampler,
}
