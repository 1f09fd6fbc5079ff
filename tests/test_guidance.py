"""Guiders beyond the goldens: trapezoid, spatiotemporal, fused triangles; and what guidance costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sgm import VideoRequest
from sgm.diffusion.adaptive_guiders import APGGuider, IntervalGuider
from sgm.diffusion.discretization import EDMDiscretization
from sgm.diffusion.guidance import (
    GUIDERS,
    Denoise,
    Guider,
    SpatiotemporalPredictionGuider,
    TrapezoidPredictionGuider,
    TrianglePredictionGuider,
    VanillaCFG,
    guided,
)
from sgm.diffusion.sampling import SAMPLERS


def test_trapezoid_has_edges_and_one_between() -> None:
    guider = TrapezoidPredictionGuider(max_scale=3.0, num_frames=10, min_scale=1.0, edge_perc=0.3)
    assert guider.scales().tolist() == [1, 2, 3, 1, 1, 1, 1, 3, 2, 1]


@pytest.mark.parametrize("frames", [1, 2, 9, 14, 25])
def test_trapezoid_of_any_length_has_a_scale_for_each_frame(frames: int) -> None:
    scales = TrapezoidPredictionGuider(2.5, frames).scales()
    assert scales.shape == (frames,)
    assert torch.equal(scales, scales.flip(0))


def test_spatiotemporal_adds_half_a_rise_over_time_and_half_a_triangle_over_views() -> None:
    guider = SpatiotemporalPredictionGuider(max_scale=3.0, num_frames=15, num_views=5, min_scale=1.0)
    #       view 0, 1, 2, 3, 4
    wanted = [[1.0, 1.5, 2.0, 1.5, 1.0], [1.5, 2.0, 2.5, 2.0, 1.5], [2.0, 2.5, 3.0, 2.5, 2.0]]
    torch.testing.assert_close(guider.scales(), torch.tensor(wanted).flatten())


def test_spatiotemporal_of_one_view_is_half_a_rise() -> None:
    scales = SpatiotemporalPredictionGuider(max_scale=3.0, num_frames=5, num_views=1, min_scale=1.0).scales()
    torch.testing.assert_close(scales, torch.tensor([1.0, 1.25, 1.5, 1.75, 2.0]))


@pytest.mark.parametrize(
    ("fusing", "wanted"),
    [
        ("max", [0, 1, 1, 1, 0]),
        ("min", [0, 0.5, 0, 0.5, 0]),
        ("mean", [0, 0.75, 0.5, 0.75, 0]),
        ("multiply", [0, 0.5, 0, 0.5, 0]),
    ],
)
def test_triangles_of_several_periods_are_fused(fusing: str, wanted: list[float]) -> None:
    guider = TrianglePredictionGuider(2.0, 5, 1.0, period=[1.0, 0.5], period_fusing=fusing)
    torch.testing.assert_close(guider.scales(), 1 + torch.tensor(wanted, dtype=torch.float32))


def test_an_unknown_way_to_fuse_is_refused() -> None:
    with pytest.raises(ValueError, match=r"period_fusing must be one of max, min, mean, multiply; got 'median'"):
        TrianglePredictionGuider(2.0, 5, period_fusing="median")


def build(name: str, low: float, high: float, frames: int) -> Guider:
    """A guider with these scales, as far as it has them; APG as plain guidance."""
    values = {"min_guidance": low, "max_guidance": high, "apg_eta": 1, "apg_norm": 0, "apg_momentum": 0}
    options = {key: values[field.name] for key, field in GUIDERS[name].options.items() if field.name in values}
    return GUIDERS[name].of(frames, **options)


@pytest.mark.parametrize("name", GUIDERS)
def test_options_of_a_request_start_as_the_guiders_own_parameters_do(name: str) -> None:
    own = {k: f.default for k, f in GUIDERS[name].options.items() if f.default is not None}
    low_high = {k: 2.0 for k, f in GUIDERS[name].options.items() if f.default is None}
    assert torch.equal(GUIDERS[name].of(6, **own, **low_high).scales(), build(name, 2.0, 2.0, 6).scales())


def test_a_clip_that_cannot_be_divided_into_views_is_refused() -> None:
    with pytest.raises(ValueError, match="num_views must divide the number of frames, 14; got 3"):
        SpatiotemporalPredictionGuider(2.0, 14, num_views=3)


@pytest.mark.parametrize("name", GUIDERS)
def test_each_clip_of_a_batch_gets_the_same_scales(name: str) -> None:
    guider = build(name, 1.5, 3.0, 4)
    scales = guider.scales().expand(4)
    c, uc = torch.randn(8, 2, 3, 3), torch.randn(8, 2, 3, 3)
    denoise = guided(lambda cond: lambda x, sigma: cond["x"], guider, {"x": c}, {"x": uc}, like=c)
    out = denoise(c, torch.tensor(1.0))
    for i in range(8):
        torch.testing.assert_close(out[i], uc[i] + scales[i % 4] * (c[i] - uc[i]))


def evaluations(name: str, low: float, high: float) -> list[tuple[int, float]]:
    """(rows, the condition's mean) of every network evaluation of a run."""
    seen = []

    def denoiser(cond: dict[str, Tensor]) -> Denoise:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            assert len(x) == len(sigma) == len(cond["vector"])
            seen.append((len(x), float(cond["vector"].mean())))
            return x * 0

        return denoise

    c, uc, x = {"vector": torch.ones(4, 2)}, {"vector": torch.zeros(4, 2)}, torch.randn(4, 1, 2, 2)
    denoise = guided(denoiser, build(name, low, high, 4), c, uc, like=x)
    SAMPLERS["euler_edm"]()(denoise, x, EDMDiscretization()(3))
    return seen


@pytest.mark.parametrize("name", GUIDERS)
def test_guidance_of_one_evaluates_the_conditional_batch_alone(name: str) -> None:
    assert evaluations(name, 1.0, 1.0) == [(4, 1.0)] * 3


@pytest.mark.parametrize("name", sorted(set(GUIDERS) - {"identity", "trapezoid", "interval"}))
def test_guidance_evaluates_both(name: str) -> None:
    assert evaluations(name, 1.0, 2.0) == [(8, 0.5)] * 3


def test_guidance_in_an_interval_evaluates_both_there_alone() -> None:
    assert [round(sigma, 2) for sigma in EDMDiscretization()(3).tolist()] == [80, 2.52, 0, 0]
    assert evaluations("interval", 1.0, 2.0) == [(4, 1.0), (8, 0.5), (4, 1.0)]
    guider = IntervalGuider(2.0, 4, sigma_min=0.5, sigma_max=3.0)
    assert [guider.guides(torch.tensor(sigma)) for sigma in (3.1, 3.0, 0.6, 0.5)] == [False, True, True, False]
    request = VideoRequest("svd", guider="interval", sampler="heun_edm", steps=9)
    inside = sum(0.28 < sigma <= 5.42 for sigma in request.levels)
    assert (request.evaluations, request.guided_evaluations) == (17, inside)
    assert 0 < inside < 9
    assert VideoRequest("svd", steps=9).guided_evaluations == 9
    assert VideoRequest("svd", steps=9, guider="identity").guided_evaluations == 0


def apg_of_the_paper(
    x_u: np.ndarray, x_c: np.ndarray, scale: float, eta: float, r: float, beta: float, sums: list[np.ndarray]
) -> np.ndarray:
    """Sadat et al. 2024, algorithm 1, for one frame: momentum, then the threshold, then the projection."""
    sums.append(x_c - x_u + (beta * sums[-1] if sums else 0))
    update = sums[-1] * min(1, r / np.sqrt((sums[-1] ** 2).sum()))
    unit = x_c / np.sqrt((x_c**2).sum())
    parallel = (update * unit).sum() * unit
    return x_c + (scale - 1) * (update - parallel + eta * parallel)


@pytest.mark.parametrize(("eta", "r", "beta"), [(0.0, 15.0, -0.5), (0.3, 2.0, 0.7), (0.0, 1e3, 0.0)])
def test_apg_is_the_papers(eta: float, r: float, beta: float) -> None:
    """Over three evaluations, of frames with a scale each, and again in another run."""
    generator = torch.Generator().manual_seed(0)
    estimates = torch.randn(3, 8, 4, 5, 5, generator=generator, dtype=torch.float64)
    guider = APGGuider(3.0, 4, 1.5, eta=eta, norm_threshold=r, momentum=beta)
    like = estimates[0, :4]
    for _ in range(2):
        given = iter(estimates)
        denoise = guided(lambda cond, given=given: lambda x, sigma: next(given), guider, {"x": like}, {"x": like}, like)
        out = [denoise(like, torch.tensor(1.0)).numpy() for _ in estimates]
        for frame, scale in enumerate([1.5, 2.0, 2.5, 3.0]):
            sums: list[np.ndarray] = []
            for i, both in enumerate(estimates.numpy()):
                wanted = apg_of_the_paper(both[frame], both[frame + 4], scale, eta, r, beta, sums)
                np.testing.assert_allclose(out[i][frame], wanted, rtol=1e-10)


def test_guidance_of_one_changes_nothing() -> None:
    """Leaving the unconditional batch out is exact, not an approximation."""
    c, uc = torch.randn(4, 1), torch.randn(4, 1)
    denoise = guided(lambda cond: lambda x, sigma: cond["x"], VanillaCFG(1.0), {"x": c}, {"x": uc}, like=c)
    torch.testing.assert_close(denoise(c, torch.tensor(1.0)), uc + 1.0 * (c - uc))


def test_conditions_are_joined_once_and_each_step_uses_them() -> None:
    joined, x = [], torch.zeros(2, 1)
    c, uc = ({"vector": torch.full((2, 1), value)} for value in (1.0, 0.0))

    def denoiser(cond: dict[str, Tensor]) -> Denoise:
        joined.append(cond["vector"].flatten().tolist())
        return lambda x, sigma: cond["vector"] * sigma[:, None]

    denoise = guided(denoiser, VanillaCFG(2.0), c, uc, like=x)
    assert [denoise(x, torch.tensor(s)).flatten().tolist() for s in (1.0, 3.0)] == [[2, 2], [6, 6]]
    assert joined == [[0, 0, 1, 1]]
