"""The training objective: denoising score matching, with noise of a random sigma."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sgm.config import instantiate_from_config
from sgm.diffusion.denoiser import Denoiser, Network
from sgm.diffusion.discretization import Discretization


class EDMSampling:
    """Log-normal sigmas: ln sigma ~ N(p_mean, p_std^2) (Karras et al. 2022, table 1)."""

    def __init__(self, p_mean: float = -1.2, p_std: float = 1.2) -> None:
        self.p_mean, self.p_std = p_mean, p_std

    def __call__(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return (self.p_mean + self.p_std * torch.randn(n, device=device)).exp()


class DiscreteSampling:
    """One of the sigmas of a discretization, all equally likely."""

    def __init__(self, discretization_config: Mapping[str, Any], num_idx: int, flip: bool = True) -> None:
        discretization: Discretization = instantiate_from_config(discretization_config)
        self.sigmas = discretization(num_idx, do_append_zero=False, flip=flip)

    def __call__(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return self.sigmas.to(device)[torch.randint(len(self.sigmas), (n,), device=device)]


class ZeroSampler:
    """1e-5, the noise level of conditioning pictures that are as good as clean."""

    def __call__(self, n: int, device: torch.device | str = "cpu") -> Tensor:
        return torch.full((n,), 1e-5, device=device)


class UnitWeighting:
    """1 for every sigma."""

    def __call__(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)


class EDMWeighting:
    """Karras et al. 2022, table 1: the effective weight at the network's output is the same for every sigma."""

    def __init__(self, sigma_data: float = 0.5) -> None:
        self.sigma_data = sigma_data

    def __call__(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class VWeighting(EDMWeighting):
    """EDMWeighting for v-prediction on unit-variance data."""

    def __init__(self) -> None:
        super().__init__(sigma_data=1.0)


class EpsWeighting:
    """1 / sigma^2: the weight of the error of the predicted noise."""

    def __call__(self, sigma: Tensor) -> Tensor:
        return sigma**-2.0


class StandardDiffusionLoss:
    """weight(sigma) * |D(x + sigma n; sigma) - x|^2, one sigma a clip; mean over everything that is known."""

    def __init__(
        self, sigma_sampler_config: Mapping[str, Any], loss_weighting_config: Mapping[str, Any], **unused: Any
    ) -> None:
        self.sigma_sampler: Callable[..., Tensor] = instantiate_from_config(sigma_sampler_config)
        self.weighting: Callable[[Tensor], Tensor] = instantiate_from_config(loss_weighting_config)

    def __call__(
        self,
        network: Network,
        denoiser: Denoiser,
        cond: dict[str, Tensor],
        x: Tensor,
        num_video_frames: int = 1,
        known: Tensor | None = None,
    ) -> Tensor:
        """x: clean latents (b t, c, h, w). known: (b t, 1, h, w), 0 where x is not to be learnt. Returns a scalar."""
        return self.of_clips(network, denoiser, cond, x, num_video_frames, known)[1].mean()

    def of_clips(
        self,
        network: Network,
        denoiser: Denoiser,
        cond: dict[str, Tensor],
        x: Tensor,
        num_video_frames: int = 1,
        known: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As the call. -> each clip's sigma and loss, (b,) each."""
        clips = x.shape[0] // num_video_frames
        sigma = self.sigma_sampler(clips, device=x.device).repeat_interleave(num_video_frames)
        noised = x + sigma.view(-1, 1, 1, 1) * torch.randn_like(x)
        denoised = denoiser(network, noised, sigma, cond, num_video_frames=num_video_frames)
        error = (denoised - x).square()
        if known is not None:
            error = error * (known / known.mean().clamp(min=1e-3))
        loss = self.weighting(sigma) * error.mean(dim=(1, 2, 3))
        return sigma[::num_video_frames], loss.view(clips, num_video_frames).mean(dim=1)
