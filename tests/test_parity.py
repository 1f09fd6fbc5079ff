"""Every tensor of every golden case, against what the original computes. `SGM_GOLDENS` names another folder of them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sgm.conditioning.clip import MEAN, STD, resize
from sgm.config import instantiate_from_config, load_config
from sgm.diffusion.discretization import EDMDiscretization, LegacyDDPMDiscretization
from sgm.diffusion.guidance import (
    Denoise,
    IdentityGuider,
    LinearPredictionGuider,
    TrianglePredictionGuider,
    VanillaCFG,
    guided,
)
from sgm.diffusion.sampling import SAMPLERS, Between, BoundedSampler, one_end
from sgm.engine import DiffusionEngine
from tests import view_goldens

OWN = Path(__file__).parent / "data" / "goldens"
FOLDER = Path(os.environ.get("SGM_GOLDENS", OWN))
INPUTS = ("x", "frames", "orbit", "unet.varied.vector", "batch.", "noise.")  # a golden's keys, or how they begin


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def error(ours: Tensor, golden: Tensor) -> float:
    assert ours.shape == golden.shape, f"shape {tuple(ours.shape)}, golden {tuple(golden.shape)}"
    return float((ours.double() - golden.double()).norm() / golden.double().norm().clamp(min=1e-12))


def cases(folder: Path) -> dict[str, str]:
    """A folder's golden cases, and the YAML of each: its own, or the one that its metadata names."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        yaml = path.stem if path.with_suffix(".yaml").exists() else read(path)[1].get("yaml")
        if yaml and not path.stem.startswith("trace_"):
            found[path.stem] = yaml
    return found


CASES = cases(FOLDER)


def golden_weights(folder: Path):
    spec = importlib.util.spec_from_file_location("golden_weights", folder / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def golden_engine(folder: Path, yaml: str, salt: str, frames: int) -> DiffusionEngine:
    model = load_config(folder / f"{yaml}.yaml")["model"]
    guider = model["params"]["sampler_config"]["params"]["guider_config"]
    if "num_frames" not in guider.get("params", {}) and "PredictionGuider" in guider["target"]:
        guider["params"]["num_frames"] = frames
    engine = instantiate_from_config(model)
    golden_weights(folder).fill(engine, salt)
    return engine.freeze()


def compute_case(folder: Path, case: str) -> Iterator[tuple[str, Tensor]]:
    """(key, our value) for each golden tensor of a case."""
    golden, meta = read(folder / f"{case}.safetensors")
    frames, steps = int(meta["num_frames"]), int(meta["num_steps"])
    yaml = meta.get("yaml", case)
    engine = golden_engine(folder, yaml, meta["salt"], frames)
    if "num_views" in meta:
        yield from view_goldens.compute(engine, golden, read(folder / f"{yaml}.safetensors")[1] | meta)
        return
    batch = {key.removeprefix("batch."): value for key, value in golden.items() if key.startswith("batch.")}
    c, uc = engine.conditioner.get_unconditional_conditioning(batch)
    for name, cond in (("c", c), ("uc", uc)):
        yield from ((f"{name}.{key}", value) for key, value in cond.items())

    def repeat(cond: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v if k == "vector" else v.repeat_interleave(frames // len(v), 0) for k, v in cond.items()}

    c, uc = repeat(c), repeat(uc)
    both = {key: torch.cat([uc[key], c[key]]) for key in c}
    x = golden["x"]
    zeros = torch.zeros(2, frames)
    for key in golden:
        if key.startswith("denoised.sigma_"):
            sigma = float(key.removeprefix("denoised.sigma_"))
            noised = torch.cat([x, x]) * (1 + sigma**2) ** 0.5
            s = torch.full((2 * frames,), sigma)
            yield key, engine.denoise(noised, s, both, num_video_frames=frames, image_only_indicator=zeros)
    if "unet.image_only" in golden:
        only = zeros.clone()
        only[1, 0] = 1
        args = (torch.cat([x, x]), torch.full((2 * frames,), 0.3), both)
        yield "unet.image_only", engine.model(*args, num_video_frames=frames, image_only_indicator=only)
    sampler = instantiate_from_config(engine.sampler_config or {})

    def denoiser(cond: dict[str, Tensor]) -> Denoise:
        return lambda x, sigma: engine.denoise(x, sigma, cond, num_video_frames=frames)

    yield "sampled", sampler(guided(denoiser, sampler.guider, c, uc, like=x), x, sampler.discretization(steps))
    for key in golden:
        if key.startswith("decoded.chunk_"):
            chunks = golden["sampled"].split(int(key.removeprefix("decoded.chunk_")))
            yield key, torch.cat([engine.decode(z, len(z)) for z in chunks])
    if "encoder_moments" in golden:
        encoder = engine.first_stage_model
        if not encoder.can_encode:
            encoder = next(e.encoder for e in engine.conditioner.embedders if hasattr(e, "encoder"))
        yield "encoder_moments", encoder.moments(batch["cond_frames_without_noise"])


@cache
def computed(folder: Path, case: str) -> list[tuple[str, Tensor]]:
    with torch.inference_mode():
        return list(compute_case(folder, case))


def check_case(case: str, golden: dict[str, Tensor]) -> None:
    left = {key for key in golden if not key.startswith(INPUTS)}
    for key, value in computed(FOLDER, case):
        assert key in golden, f"{case}: computed {key}, of which there is no golden"
        left.discard(key)
        steps = key.endswith(".steps")
        wrong = max(map(error, value, golden[key])) if steps else error(value, golden[key])
        assert wrong <= (1e-3 if key.startswith("decoded.") else 1e-4), f"{case}: {key} is off by {wrong:.2e}"
    assert not left, f"{case}: nothing was computed for {sorted(left)}"


def toy_denoiser(c: dict[str, Tensor]) -> Denoise:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        s2 = sigma.view(-1, *[1] * (x.ndim - 1)) ** 2
        return (0.25 * x + s2 * c["concat"]) / (0.25 + s2)

    return denoise


def compute_samplers(golden: dict[str, Tensor], meta: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    frames, steps = int(meta["num_frames"]), int(meta["num_steps"])
    schedules = {"edm": EDMDiscretization(0.002, 700.0, 7.0), "legacy": LegacyDDPMDiscretization()}
    guiders = {
        "linear": lambda t: LinearPredictionGuider(3.0, t, 1.5),
        "triangle": lambda t: TrianglePredictionGuider(2.5, t, 1.0),
        "cfg": lambda t: VanillaCFG(2.0),
        "identity": lambda t: IdentityGuider(),
    }
    churn = {"s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}

    names = {cls.__name__: cls for cls in SAMPLERS.values()}
    for key in golden:
        parts = key.split("/")
        if parts[0] == "sigmas":
            yield key, schedules[parts[1]](int(parts[2]))
        elif parts[0] == "scale":
            yield key, guiders[parts[1]](int(parts[2])).scales().view_as(golden[key])
        elif parts[0] == "clip" and parts[1].startswith("out_"):
            height, width = golden[key].shape[-2:]
            x = resize(golden[f"clip/in_{parts[1].removeprefix('out_')}"], (height, width))
            mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
            yield key, ((x + 1) / 2 - mean) / std
        elif len(parts) == 3 and parts[0].split("(")[0] in names:
            name, _, options = parts[0].partition("(")
            settings: dict[str, Any] = {
                k: float(v) for k, v in (item.split("=") for item in options.rstrip(")").split(",") if item)
            }
            if "order" in settings:
                settings["order"] = int(settings["order"])
            settings |= churn if "s_churn" in settings else {}
            draws = iter(golden["noise"])
            c, uc, x = {"concat": golden["mu_c"]}, {"concat": golden["mu_u"]}, golden["x"]
            denoise = guided(toy_denoiser, guiders[parts[2]](frames), c, uc, like=x)
            sigmas = schedules[parts[1]](steps)
            yield key, names[name](**settings)(denoise, x, sigmas, noise=lambda like, draws=draws: next(draws))


def check_samplers(folder: Path) -> None:
    golden, meta = read(folder / "samplers.safetensors")
    left = {k for k in golden if k not in ("x", "noise", "mu_c", "mu_u") and not k.startswith("clip/in_")}
    for key, value in compute_samplers(golden, meta):
        left.discard(key)
        assert error(value, golden[key]) <= 1e-4, f"{key} is off by {error(value, golden[key]):.2e}"
    assert not left, f"nothing was computed for {sorted(left)}"


class Watched(BoundedSampler):
    """Keeps x after each step."""

    def step(self, *args: Any) -> Tensor:
        self.steps = [*getattr(self, "steps", []), super().step(*args)]
        return self.steps[-1]


def check_bounded(path: Path) -> None:
    """Names of goldens: bounded or loop/cfg_S or cfg_S_flip_R, for steps of their own /25_steps; /steps: each one."""
    golden, meta = read(path)
    inputs = {"x", "noise", "first", "last", "mu_c", "mu_u", "mu_c_end", "mu_u_end"}
    assert golden.keys() - inputs
    for key in sorted(golden.keys() - inputs):
        kind, scales, *more = key.split("/")
        forward, _, backward = scales.removeprefix("cfg_").partition("_flip_")
        steps = next((int(part.removesuffix("_steps")) for part in more if part != "steps"), int(meta["num_steps"]))
        ends = ("", "") if kind == "loop" else ("", "_end")
        goals = golden["first" if kind == "loop" else "last"], golden["first"]
        denoise = Between(
            *(
                one_end(
                    toy_denoiser,
                    VanillaCFG(float(scale)),
                    {"concat": golden[f"mu_c{end}"]},
                    {"concat": golden[f"mu_u{end}"]},
                    like=golden["x"],
                    other=goal,
                )
                for scale, end, goal in zip((forward, backward or forward), ends, goals, strict=True)
            )
        )
        draws, sampler = iter(golden["noise"]), Watched()
        out = sampler(denoise, golden["x"], EDMDiscretization(0.002, 700.0, 7.0)(steps), lambda like, d=draws: next(d))
        values = (sampler.steps, golden[key]) if "steps" in more else ([out], [golden[key]])
        wrong = max(map(error, *values))
        assert wrong <= 1e-4, f"{path.name}: {key} is off by {wrong:.2e}"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("bounded*.safetensors")) or [OWN / "bounded.safetensors"])
def test_between_two_pictures(path: Path) -> None:
    check_bounded(path)


@pytest.mark.parametrize("case", CASES)
def test_case(case: str) -> None:
    check_case(case, read(FOLDER / f"{case}.safetensors")[0])


@pytest.mark.skipif(not (FOLDER / "samplers.safetensors").exists(), reason="the folder has no goldens of samplers")
def test_samplers() -> None:
    check_samplers(FOLDER)


@pytest.mark.parametrize("key", ["c.vector", "sampled", "decoded.chunk_2", "encoder_moments"])
def test_a_golden_off_by_one_percent_fails(key: str) -> None:
    case = next(iter(CASES))
    golden, _ = read(FOLDER / f"{case}.safetensors")
    key = key if key in golden else next(name for name in golden if name.startswith("decoded"))
    with pytest.raises(AssertionError, match=f"{re.escape(key)} is off by"):
        check_case(case, {**golden, key: golden[key] * 1.01})


def test_the_projects_own_goldens_are_whole() -> None:
    stills = {"sv3d_p_small", "svd_image_decoder_small", "svd_small"}
    assert set(cases(OWN)) == stills | {"sv4d_small", "sv4d_dense", "sv4d2_small", "sv4d2_windows"}
    assert json.loads(json.dumps(read(OWN / "samplers.safetensors")[1]))["num_frames"]
