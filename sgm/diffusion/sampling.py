"""Samplers of the probability-flow ODE and of its ancestral variants.

All share one signature. A `denoiser` is `(x, sigma, cond) -> clean x`; x is (n, c, h, w), sigma (n,).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgm.config import instantiate_from_config
from sgm.diffusion.discretization import Discretization
from sgm.diffusion.guidance import Condition, Guider, IdentityGuider

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma as a 0-dim tensor) -> guided estimate of the clean x
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


class Sampler(ABC):
    """Base. Schedule and guider are given as configs, as in the official YAMLs, or as objects.

    `sampler(denoiser, x, cond, uc, num_steps)` turns standard normal x into a sample. `noise` draws what stochastic
    samplers need (default: torch's global generator); `on_step(i, n)` is called after step i of n and may raise.
    `options` names the parameters of its own that a request may set; `evaluations` is how often a step runs the
    network.
    """

    options: tuple[str, ...] = ()
    evaluations: int = 1

    def __init__(
        self,
        discretization_config: Mapping[str, Any] | Discretization,
        num_steps: int | None = None,
        guider_config: Mapping[str, Any] | Guider | None = None,
        **unused: Any,  # verbosity and device of the original
    ) -> None:
        def build(config: Any) -> Any:
            return instantiate_from_config(config) if isinstance(config, Mapping) else config

        self.discretization: Discretization = build(discretization_config)
        self.guider: Guider = IdentityGuider() if guider_config is None else build(guider_config)
        self.num_steps = num_steps

    def __call__(
        self,
        denoiser: Callable[[Tensor, Tensor, Condition], Tensor],
        x: Tensor,
        cond: Condition,
        uc: Condition | None = None,
        num_steps: int | None = None,
        noise: Noise = torch.randn_like,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        num_steps = self.num_steps if num_steps is None else num_steps
        if num_steps is None or num_steps < 1:
            raise ValueError(f"num_steps must be a positive whole number; got {num_steps}.")
        uc = cond if uc is None else uc
        sigmas = self.discretization(num_steps, device=x.device)
        ones = x.new_ones(x.shape[0])

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return self.guider(denoiser(*self.guider.prepare_inputs(x, sigma * ones, cond, uc)), sigma * ones)

        x = x * (1 + sigmas[0] ** 2).sqrt()
        self.begin(sigmas)
        for i in range(num_steps):
            x = self.step(denoise, x, sigmas, i, noise)
            if on_step is not None:
                on_step(i + 1, num_steps)
        return x

    def begin(self, sigmas: Tensor) -> None:  # noqa: B027
        """Called before the first step; multistep samplers forget the last run here."""

    @abstractmethod
    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        """From sigmas[i] to sigmas[i + 1]."""


class EulerEDMSampler(Sampler):
    """Karras et al. 2022, algorithm 2 without its second-order correction."""

    options = ("s_churn",)

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
        # Raise the noise for a moment.
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
    """Karras et al. 2022, algorithm 2. Two network evaluations a step, but for the last."""

    evaluations = 2

    def correct(
        self, denoise: Denoise, x: Tensor, euler: Tensor, d: Tensor, sigma_hat: Tensor, sigma_next: Tensor
    ) -> Tensor:
        if sigma_next == 0:
            return euler
        # Apply the 2nd order correction.
        d_next = to_d(euler, sigma_next, denoise(euler, sigma_next))
        return x + (sigma_next - sigma_hat) * (d + d_next) / 2


class AncestralSampler(Sampler):
    """Base of samplers that step below the next sigma and put noise back. eta: 0 none, 1 all of it."""

    options = ("eta",)

    def __init__(self, *args: Any, eta: float = 1.0, s_noise: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.eta, self.s_noise = eta, s_noise

    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        sigma_down, sigma_up = get_ancestral_step(sigmas[i], sigmas[i + 1], self.eta)
        x = self.down(denoise, x, sigmas[i], sigma_down)
        return x + noise(x) * self.s_noise * sigma_up if sigmas[i + 1] > 0 else x

    @abstractmethod
    def down(self, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_down: Tensor) -> Tensor:
        """The deterministic part."""


class EulerAncestralSampler(AncestralSampler):
    """Ancestral sampling by Euler steps."""

    def down(self, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_down: Tensor) -> Tensor:
        return x + (sigma_down - sigma) * to_d(x, sigma, denoise(x, sigma))


class DPMPP2SAncestralSampler(AncestralSampler):
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095), ancestral. Two evaluations a step, but for the last."""

    evaluations = 2

    def down(self, denoise: Denoise, x: Tensor, sigma: Tensor, sigma_down: Tensor) -> Tensor:
        denoised = denoise(x, sigma)
        if sigma_down == 0:
            return x + (sigma_down - sigma) * to_d(x, sigma, denoised)
        h = sigma.log() - sigma_down.log()  # a step in lambda = -log sigma
        sigma_mid = (sigma * sigma_down).sqrt()
        x_mid = sigma_mid / sigma * x - torch.expm1(-0.5 * h) * denoised
        return sigma_down / sigma * x - torch.expm1(-h) * denoise(x_mid, sigma_mid)


class DPMPP2MSampler(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095): second order from the step before."""

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
    """Adams-Bashforth in sigma, up to `order` steps back."""

    options = ("order",)

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
        here = self.nodes[i - j]
        integral = np.poly1d(np.poly(others) if others else [1.0]).integ()
        scale = np.prod([here - other for other in others]) if others else 1.0
        return float((integral(self.nodes[i + 1]) - integral(self.nodes[i])) / scale)


class LCMSampler(Sampler):
    """Multistep consistency sampling (Song et al. 2023, arXiv:2303.01469, algorithm 1), for networks distilled to it.

    Each step goes all the way to the clean estimate, then noises it to the next sigma.
    """

    def __init__(self, *args: Any, s_noise: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.s_noise = s_noise

    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, i: int, noise: Noise) -> Tensor:
        clean = denoise(x, sigmas[i])
        return clean + noise(x) * self.s_noise * sigmas[i + 1] if sigmas[i + 1] > 0 else clean


# Name -> class; command line and page list these.
SAMPLERS: dict[str, type[Sampler]] = {
    "euler_edm": EulerEDMSampler,
    "heun_edm": HeunEDMSampler,
    "euler_ancestral": EulerAncestralSampler,
    "dpmpp_2s_ancestral": DPMPP2SAncestralSampler,
    "dpmpp_2m": DPMPP2MSampler,
    "linear_multistep": LinearMultistepSampler,
    "lcm": LCMSampler,
}
