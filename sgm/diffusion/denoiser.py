"""The denoiser D(x; sigma): preconditioning around the raw network (Karras et al. 2022, arXiv:2206.00364, eq. 7)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sgm.config import instantiate_from_config

Network = Callable[..., Tensor]


class Scaling(ABC):
    """Base of preconditionings: sigma -> (c_skip, c_out, c_in, c_noise), all of sigma's shape."""

    @abstractmethod
    def __call__(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...


class EDMScaling(Scaling):
    """EDM preconditioning (Karras et al. 2022, table 1)."""

    def __init__(self, sigma_data: float = 0.5) -> None:
        self.sigma_data = sigma_data

    def __call__(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), 1 / total.sqrt(), 0.25 * sigma.log()


class EpsScaling(Scaling):
    """epsilon-prediction: the network predicts the noise (Ho et al. 2020, arXiv:2006.11239)."""

    def __call__(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return sigma.new_ones(sigma.shape), -sigma, 1 / (sigma**2 + 1).sqrt(), sigma.clone()


class VScaling(Scaling):
    """v-prediction: the network predicts v (Salimans & Ho 2022, arXiv:2202.00512)."""

    def __call__(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        total = sigma**2 + 1
        return 1 / total, -sigma / total.sqrt(), 1 / total.sqrt(), sigma.clone()


class VScalingWithEDMcNoise(VScaling):
    """v-prediction with c_noise = 0.25 ln sigma, as in Stable Video Diffusion."""

    def __call__(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (*super().__call__(sigma)[:3], 0.25 * sigma.log())


class Denoiser:
    """`denoiser(network, x, sigma, *cond)` estimates the clean x: (n, c, h, w), sigma: (n,), returns x's shape.

    network: (x, c_noise, *cond) -> output. cond is left out where the network already holds its condition.
    """

    def __init__(self, scaling_config: Mapping[str, Any]) -> None:
        self.scaling: Scaling = instantiate_from_config(scaling_config)

    def __call__(self, network: Network, x: Tensor, sigma: Tensor, *cond: dict[str, Tensor], **inputs: Any) -> Tensor:
        c_skip, c_out, c_in, c_noise = self.scaling(sigma.view(-1, *[1] * (x.ndim - 1)))
        return network(x * c_in, c_noise.flatten(), *cond, **inputs) * c_out + x * c_skip
