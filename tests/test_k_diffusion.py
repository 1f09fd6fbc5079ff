"""Samplers against k-diffusion's and diffusers' UniPC: a toy denoiser, the same levels, the same noise."""

from __future__ import annotations

import importlib
import math
import sys
import types
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from sgm.diffusion.discretization import EDMDiscretization
from sgm.diffusion.sampling import ALIASES, SAMPLERS

X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SIGMAS = EDMDiscretization(0.002, 80.0)(8).double()
START = X * (1 + SIGMAS[0] ** 2).sqrt()


def toy(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser of a Gaussian with something bent in it, so that nothing is right by chance."""
    s2 = sigma.reshape(-1, 1, 1, 1) ** 2
    return (0.25 * x + 1.5 * s2) / (0.25 + s2) + 0.3 * torch.tanh(x / (1 + s2)) * s2 / (1 + s2)


def draws() -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


class Replay:
    """k-diffusion's `noise_sampler`, of our draws; intervals that begin at one level share a Brownian motion."""

    def __init__(self) -> None:
        self.draw, self.before = draws(), (0.0, 0.0, X)

    def __call__(self, start: Tensor, end: Tensor) -> Tensor:
        sigma, sigma_next, fresh = float(start), float(end), self.draw(X)
        begun, middle, noise = self.before
        if math.isclose(begun, sigma):
            share = (sigma - middle) / (sigma - sigma_next)
            fresh = math.sqrt(share) * noise + math.sqrt(1 - share) * fresh
        self.before = sigma, sigma_next, fresh
        return fresh


@pytest.fixture(scope="module")
def theirs() -> types.ModuleType:
    """`k_diffusion.sampling` alone: the package itself also imports what its training needs."""
    spec = find_spec("k_diffusion")
    assert spec is not None, 'k-diffusion is missing: python -m pip install -e ".[test]"'
    sys.modules.setdefault("k_diffusion", types.ModuleType("k_diffusion")).__path__ = list(
        spec.submodule_search_locations or ()
    )
    return importlib.import_module("k_diffusion.sampling")


CHURN = {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.1}
SOME = {"eta": 0.6, "s_noise": 1.1}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, options) for name in ("euler", "heun", "dpm_2") for options in ({}, CHURN)),
        *((name, {"order": order}) for name in ["lms"] for order in (1, 2, 4)),
        ("dpmpp_2m", {}),
        *(
            (name, options)
            for name in ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_3m_sde")
            for options in ({}, SOME)
        ),
        *(("dpmpp_2m_sde", {**SOME, "solver_type": kind}) for kind in ("midpoint", "heun")),
        ("dpmpp_2m_sde", {"eta": 0.0}),
    ],
)
def test_a_sampler_is_k_diffusions(
    name: str, options: dict[str, Any], theirs: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = SAMPLERS[ALIASES.get(name, name)](**options)(toy, X, SIGMAS, noise=draws())
    given = {"noise_sampler": Replay()} if "eta" in SAMPLERS[ALIASES.get(name, name)].options else {}
    if "s_churn" in options:  # drawn from torch's own generator there, also where no noise is added
        draw, churned = draws(), [0.05 <= sigma <= 50 for sigma in SIGMAS[:-1].tolist()]
        noises = iter([draw(X) if added else X for added in churned])
        monkeypatch.setattr(torch, "randn_like", lambda like: next(noises))
    wanted = getattr(theirs, f"sample_{name}")(toy, START, SIGMAS, disable=True, **options, **given)
    torch.testing.assert_close(ours, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_diffusers(order: int) -> None:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    options: dict[str, Any] = {"solver_order": order}
    scheduler = UniPCMultistepScheduler(**options, solver_type="bh2", prediction_type="sample")
    scheduler.set_timesteps(len(SIGMAS) - 1)
    scheduler.sigmas = SIGMAS.clone()
    x = X  # of variance 1 at each level, as diffusers has it: ours / sqrt(1 + sigma^2)
    for sigma, timestep in zip(SIGMAS, scheduler.timesteps, strict=False):
        estimate = toy(x * (1 + sigma**2).sqrt(), sigma)
        x = scheduler.step(estimate, timestep, x, return_dict=False)[0]  # pyright: ignore
    ours = SAMPLERS["unipc"](**options)(toy, X, SIGMAS)
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)
