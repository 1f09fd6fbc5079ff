"""The matrix of times and views, filled pass by pass: a pass's conditions, sampling, decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sgm.conditioning.views import Pass, views_batch
from sgm.diffusion.guidance import Condition, Denoise, Guider, guided
from sgm.diffusion.sampling import Noise, Sampler


class Model(Protocol):
    """What fills a matrix; a `Run` is one."""

    def conditions(self, batch: Condition) -> tuple[Condition, Condition]:
        """Condition and unconditional condition of the conditioner's inputs."""
        ...

    def denoiser(self, cond: Condition) -> Denoise: ...

    def pictures(self, z: Tensor) -> Tensor:
        """Scaled latents (n, c, h, w) -> pictures (n, 3, f h, f w) in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Matrix:
    """Pictures of n times and v + 1 views, (n, v + 1, 3, h, w) in [-1, 1]; the first view is the input clip.

    angles: of the v new views, see `view_angles`. picture_noise(name, pictures): noise of the pictures' shape, for what
    the model is shown.
    """

    pictures: Tensor
    angles: tuple[Tensor, Tensor]
    picture_noise: Callable[[str, Tensor], Tensor]

    def fill(
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
        """Sample a pass from standard normal noise x (t v, c, h, w), and take its pictures over. -> its latents.

        on_step, noise: see `Sampler`.
        """
        times = len(step.times)
        denoisers = []
        for order, shown in step.directions:
            denoise = guided(model.denoiser, guider, *self.conditions(model, order, shown), like=x)
            denoisers.append(denoise if order == step.times else _reversed(denoise, times))
        z = sampler(denoisers, x, sigmas, noise, on_step)
        made = model.pictures(z).clamp(-1, 1)
        self.pictures[list(step.times), 1:] = made.unflatten(0, (times, -1)).to(self.pictures)
        return z

    def conditions(self, model: Model, times: tuple[int, ...], shown: int | None) -> tuple[Condition, Condition]:
        """Both conditions of the pictures at `times`, in that order, with the views at the time `shown`."""
        views = self.pictures[shown or 0, 1:]
        c, uc = model.conditions(views_batch(self.pictures[list(times), 0], views, self.angles, self.picture_noise))
        if shown is None:  # zero latents, which are not those of any picture
            c, uc = ({**cond, "cond_view": torch.zeros_like(cond["cond_view"])} for cond in (c, uc))
        return c, uc


def _reversed(denoise: Denoise, times: int) -> Denoise:
    """A denoiser whose rows (t v) have their times in reverse, for x in order. Guidance counts along its own rows."""

    def reverse(x: Tensor) -> Tensor:
        return x.unflatten(0, (times, -1)).flip(0).flatten(0, 1)

    return lambda x, sigma: reverse(denoise(reverse(x), sigma))
