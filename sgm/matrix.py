"""The matrix of times and views: what a pass is shown of it, and its sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sgm.conditioning.views import Pass, views_batch
from sgm.diffusion.guidance import Condition, Denoise, Guider, guided
from sgm.diffusion.sampling import Noise, Sampler


class Model(Protocol):
    """What samples a pass; a `Run` is one."""

    def conditions(self, batch: Condition) -> tuple[Condition, Condition]:
        """Condition and unconditional condition of the conditioner's inputs."""
        ...

    def denoiser(self, cond: Condition) -> Denoise: ...


class Matrix:
    """Pictures of n times and v + 1 views, (n, v + 1, 3, h, w) in [-1, 1]; the first view is the input clip.

    angles: of the v new views, see `view_angles`. picture_noise, cond_aug: noise on what the model is shown, see
    `views_batch`. example: the latent of a picture that it was shown, and that picture, (1, c, h, w) each.
    """

    def __init__(
        self,
        pictures: Tensor,
        angles: tuple[Tensor, Tensor],
        picture_noise: Callable[[str, Tensor], Tensor],
        cond_aug: float = 1e-5,
    ) -> None:
        self.pictures, self.angles, self.picture_noise, self.cond_aug = pictures, angles, picture_noise, cond_aug
        self.example: tuple[Tensor, Tensor]

    def sample(
        self,
        model: Model,
        step: Pass,
        x: Tensor,
        guider: Guider,
        sampler: Sampler,
        sigmas: Tensor,
        noise: Noise = torch.randn_like,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """The latents of a pass, from standard normal noise x (t v, c, h, w). on_step, noise: see `Sampler`."""
        denoisers = []
        for order, shown in step.directions:
            denoise = guided(model.denoiser, guider, *self.conditions(model, order, shown), like=x)
            denoisers.append(denoise if order == step.times else _reversed(denoise, len(order)))
        return sampler(denoisers, x, sigmas, noise, on_step)

    def put(self, step: Pass, pictures: Tensor) -> None:
        """Take over a pass's decoded pictures (t v, 3, h, w), also in place of earlier ones."""
        rows = pictures.clamp(-1, 1).unflatten(0, (len(step.times), -1))
        self.pictures[list(step.times), 1:] = rows.to(self.pictures)

    def conditions(self, model: Model, times: tuple[int, ...], shown: int | None) -> tuple[Condition, Condition]:
        """Both conditions of the pictures at `times`, in that order, with the views at the time `shown`."""
        clip, views = self.pictures[list(times), 0], self.pictures[shown or 0, 1:]
        batch = views_batch(clip, views, self.angles, self.picture_noise, self.cond_aug)
        c, uc = model.conditions(batch)
        self.example = c["concat"][:1], batch["cond_frames"][:1]
        if shown is None:  # zero latents, which are not those of any picture
            c, uc = ({**cond, "cond_view": torch.zeros_like(cond["cond_view"])} for cond in (c, uc))
        return c, uc


def _reversed(denoise: Denoise, times: int) -> Denoise:
    """A denoiser whose rows (t v) have their times in reverse, for x in order. Guidance counts along its own rows."""

    def reverse(x: Tensor) -> Tensor:
        return x.unflatten(0, (times, -1)).flip(0).flatten(0, 1)

    return lambda x, sigma: reverse(denoise(reverse(x), sigma))
