"""Samplers on a Gaussian whose exact denoiser is known, and how they report and stop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sgm.diffusion.discretization import (
    AlignYourStepsDiscretization,
    ConsistencyDiscretization,
    Discretization,
    EDMDiscretization,
    LegacyDDPMDiscretization,
)
from sgm.diffusion.sampling import SAMPLERS
from sgm.errors import UserError

MEAN, STD = 1.5, 0.5


def exact(x: Tensor, sigma: Tensor) -> Tensor:
    """E[clean x | x] of the Gaussian N(MEAN, STD^2) under noise of sigma."""
    s2 = sigma**2
    return (STD**2 * x + s2 * MEAN) / (STD**2 + s2)


def sample(
    name: str, steps: int, x: Tensor, schedule: Discretization | None = None, seed: int = 1, **options
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sigmas = (schedule or EDMDiscretization(sigma_max=80.0))(steps)
    sampler = SAMPLERS[name](**options)
    return sampler(exact, x, sigmas, noise=lambda like: torch.randn(like.shape, generator=generator))


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "schedule", [EDMDiscretization(sigma_max=80.0), LegacyDDPMDiscretization()], ids=["edm", "legacy"]
)
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])  # that one wants a consistency model
def test_samples_have_the_gaussians_mean_and_spread(name: str, noise: Tensor, schedule: Discretization) -> None:
    out = sample(name, 200, noise, schedule)
    # Sampling starts from noise around 0 rather than MEAN, of which MEAN STD / sigma_max remains: 0.05 for legacy.
    assert float(out.mean()) == pytest.approx(MEAN, abs=0.07)
    assert float(out.std()) == pytest.approx(STD, rel=0.05)


ORDERS = [
    ("euler_edm", {}, 1),
    ("heun_edm", {}, 2),
    ("restart", {"restarts": 0}, 2),
    ("dpm_2", {}, 2),
    ("euler_ancestral", {"eta": 0.0}, 1),
    ("dpm_2_ancestral", {"eta": 0.0}, 2),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, 2),
    ("dpmpp_sde", {"eta": 0.0}, 2),
    ("dpmpp_2m", {}, 2),
    ("dpmpp_2m_sde", {"eta": 0.0}, 2),
    ("dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"}, 2),
    ("dpmpp_3m_sde", {"eta": 0.0}, 2),  # k-diffusion's: the second difference counts half of what third order needs
    *(("unipc", {"solver_order": order}, order + 1) for order in (1, 2, 3)),
    *(("linear_multistep", {"order": order}, order) for order in (1, 2, 3, 4)),
]


@pytest.mark.parametrize(("name", "options", "order"), ORDERS)
def test_converges_to_the_odes_solution_at_its_order(name: str, options: dict[str, Any], order: int) -> None:
    """The slope of ln error over ln steps, on levels that fall by equal factors to almost nothing."""
    sigma_max, errors = 80.0, []
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    start = x * math.sqrt(1 + sigma_max**2)
    # x - MEAN shrinks as sqrt(STD^2 + sigma^2) along the probability-flow ODE.
    wanted = MEAN + (start - MEAN) * STD / math.sqrt(STD**2 + sigma_max**2)
    for steps in (128, 256):
        sigmas = torch.logspace(math.log10(sigma_max), -6, steps, dtype=torch.float64)
        out = SAMPLERS[name](**options)(exact, x, torch.cat([sigmas, sigmas.new_zeros(1)]))
        errors.append(float((out - wanted).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if "eta" in sampler.options])
def test_ancestral_samplers_without_noise_are_the_ode(name: str, noise: Tensor) -> None:
    assert torch.equal(sample(name, 10, noise, eta=0.0, seed=1), sample(name, 10, noise, eta=0.0, seed=2))
    assert not torch.equal(sample(name, 10, noise, seed=1), sample(name, 10, noise, seed=2))
    assert torch.equal(sample(name, 10, noise, seed=1), sample(name, 10, noise, seed=1))


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_a_consistency_model_needs_few_steps(noise: Tensor, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)

    def end_of_path(x: Tensor, sigma: Tensor) -> Tensor:
        """Where the probability-flow ODE through x ends: what such a model is distilled to give."""
        return MEAN + (x - MEAN) * STD / (STD**2 + sigma**2).sqrt()

    schedule = ConsistencyDiscretization(sigma_max=700.0)
    sigmas = schedule(steps)
    out = SAMPLERS["lcm"]()(end_of_path, noise, sigmas, noise=lambda like: torch.randn(like.shape, generator=generator))
    assert float(out.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(out.std()) == pytest.approx(STD, rel=0.03)
    grid = EDMDiscretization(sigma_max=700.0)(40)
    assert torch.equal(sigmas[:-1], grid[torch.arange(steps) * (40 // steps)])
    assert float(sigmas[-1]) == 0


def test_a_consistency_model_takes_no_more_steps_than_it_was_distilled_on() -> None:
    with pytest.raises(UserError, match="distilled on 40 sigmas; 41 steps"):
        ConsistencyDiscretization()(41)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_enough_to_be_finite(name: str, noise: Tensor) -> None:
    assert sample(name, 1, noise).isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_tells_of_each_step_in_order(name: str, noise: Tensor) -> None:
    told: list[tuple[int, int]] = []
    SAMPLERS[name]()(exact, noise, EDMDiscretization()(5), on_step=lambda i, n: told.append((i, n)))
    steps = 5 + 2 * (1 + 10) if name == "restart" else 5  # up, and ten steps down, twice
    assert told == [(i, steps) for i in range(1, steps + 1)]


# Of five steps; of the others, five.
EVALUATIONS = dict.fromkeys(["heun_edm", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"], 9)
EVALUATIONS["restart"] = 9 + 2 * 10 * 2
EVALUATIONS["bounded"] = 2 * 5  # from either end


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_says_at_which_sigmas_it_runs_the_network(name: str, noise: Tensor) -> None:
    ran = []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        ran.append(float(sigma))
        return exact(x, sigma)

    sigmas = EDMDiscretization()(5)
    said = SAMPLERS[name]().levels(sigmas)
    SAMPLERS[name]()(counted, noise, sigmas)
    assert said == ran
    assert len(said) == EVALUATIONS.get(name, 5)


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("name", SAMPLERS)
def test_stops_where_it_is_told_and_can_start_again(name: str, noise: Tensor) -> None:
    calls = []

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma))
        return exact(x, sigma)

    def stop(i: int, n: int) -> None:
        if i == 2:
            raise Cancelled

    def draws():
        generator = torch.Generator().manual_seed(5)
        return lambda like: torch.randn(like.shape, generator=generator)

    sampler, sigmas = SAMPLERS[name](), EDMDiscretization()(8)
    with pytest.raises(Cancelled):
        sampler(counted, noise, sigmas, noise=draws(), on_step=stop)
    assert 2 <= len(calls) <= 4
    again = sampler(exact, noise, sigmas, noise=draws())
    assert torch.equal(again, SAMPLERS[name]()(exact, noise, sigmas, noise=draws()))


@pytest.mark.parametrize("count", [0, 1])
def test_a_step_is_needed(count: int, noise: Tensor) -> None:
    with pytest.raises(ValueError, match=f"sigmas must be two or more, the last one 0; got {count}"):
        SAMPLERS["euler_edm"]()(exact, noise, torch.zeros(count))


@pytest.mark.parametrize("name", SAMPLERS)
def test_options_of_a_request_start_as_the_samplers_own_parameters_do(name: str, noise: Tensor) -> None:
    options = {parameter: field.default for parameter, field in SAMPLERS[name].options.items()}
    assert torch.equal(sample(name, 4, noise, **options), sample(name, 4, noise))


PUBLISHED = [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034]


def test_align_your_steps_is_the_published_schedule_and_its_interpolation() -> None:
    schedule = AlignYourStepsDiscretization()
    assert schedule(10).tolist() == pytest.approx([*PUBLISHED, 0])
    twice = schedule(20).double()
    assert twice[::2].tolist() == pytest.approx([*PUBLISHED, 0])
    between = twice[1:-2:2]  # the geometric mean of both neighbours
    torch.testing.assert_close(between, (twice[:-3:2] * twice[2:-1:2]).sqrt(), rtol=1e-6, atol=0)
    assert float(twice[-2]) == pytest.approx(math.sqrt(0.034 * 0.002))  # of the level that becomes zero
    assert schedule(1).tolist() == [700, 0]


def test_legacy_schedule_refuses_more_steps_than_it_has() -> None:
    with pytest.raises(ValueError, match="has 1000 timesteps; 1001 steps were asked for"):
        LegacyDDPMDiscretization()(1001)
