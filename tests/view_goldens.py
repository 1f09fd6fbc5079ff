"""The golden values of models for several views: our value of each tensor."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgm.conditioning.views import Pass, dense_passes, view_angles, views_batch, window_passes
from sgm.config import instantiate_from_config
from sgm.diffusion.discretization import EDMDiscretization
from sgm.diffusion.guidance import Denoise, Guider, LinearPredictionGuider, SpatiotemporalPredictionGuider, guided
from sgm.diffusion.sampling import EulerEDMSampler
from sgm.engine import DiffusionEngine
from sgm.matrix import Matrix

Tensors = dict[str, Tensor]
Meta = dict[str, str]


class Model:
    """An engine as what fills a matrix, which keeps the conditions that it has given."""

    def __init__(self, engine: DiffusionEngine, frames: int) -> None:
        self.engine, self.frames, self.given = engine, frames, []

    def conditions(self, batch: Tensors) -> tuple[Tensors, Tensors]:
        self.given.append(self.engine.conditioner.get_unconditional_conditioning(batch))
        return self.given[-1]

    def denoiser(self, cond: Tensors) -> Denoise:
        return lambda x, sigma: self.engine.denoise(x, sigma, cond, num_video_frames=self.frames)

    def pictures(self, z: Tensor) -> Tensor:
        return self.engine.decode(z, len(z))


def fill(matrix: Matrix, model: Model, step: Pass, *settings: Any) -> Tensor:
    z = matrix.sample(model, step, *settings)
    matrix.put(step, model.pictures(z))
    return z


class Recorder(EulerEDMSampler):
    """Euler steps, and x after each."""

    def begin(self, sigmas: Tensor) -> None:
        self.steps: list[Tensor] = []

    def step(self, *args: Any) -> Tensor:
        self.steps.append(super().step(*args))
        return self.steps[-1]


def picture_noise(salt: str):
    def draw(name: str, like: Tensor) -> Tensor:
        seed = zlib.crc32(f"{salt}cond_noise/{name}".encode())
        values = np.random.Generator(np.random.PCG64(seed)).standard_normal(like.shape)
        return torch.from_numpy(values.astype(np.float32))

    return draw


def guider_of(meta: Meta) -> Guider:
    scales = float(meta["max_scale"]), int(meta["num_frames"])
    if meta["guider"] == "LinearPredictionGuider":
        return LinearPredictionGuider(*scales, min_scale=float(meta["min_scale"]))
    return SpatiotemporalPredictionGuider(*scales, int(meta["num_views"]), float(meta["min_scale"]))


def schedule(meta: Meta) -> Tensor:
    return EDMDiscretization(0.002, float(meta.get("sigma_max", 700)), 7.0)(int(meta["num_steps"]))


def compute(engine: DiffusionEngine, golden: Tensors, meta: Meta) -> Iterator[tuple[str, Tensor]]:
    """(key, our value). meta: of the case, with that of its model's case for what it lacks."""
    if "noise.anchors" in golden:
        return compute_dense(engine, golden, meta)
    return compute_windows(engine, golden, meta) if "window_starts" in meta else compute_model(engine, golden, meta)


def compute_model(engine: DiffusionEngine, golden: Tensors, meta: Meta) -> Iterator[tuple[str, Tensor]]:
    frames = int(meta["num_frames"])
    views = frames // int(meta["num_times"])
    model = Model(engine, frames)
    angles = golden["batch.polar_rad"][:views], golden["batch.azimuth_rad"][:views]
    batch = views_batch(golden["batch.cond_motion"], golden["batch.cond_view"], angles, picture_noise(meta["salt"]))
    c, uc = model.conditions(batch)
    for name, cond in (("c", c), ("uc", uc)):
        yield from ((f"{name}.{key}", value) for key, value in cond.items())

    def first(cond: Tensors) -> Tensors:
        return {**cond, "cond_view": torch.zeros_like(cond["cond_view"])}

    pairs = {"": (c, uc), "first_window.": (first(c), first(uc))}
    x, guider = golden["x"], guider_of(meta)
    sampler = instantiate_from_config(engine.sampler_config or {})
    yield "guidance.scale", guider.scales()
    yield "guidance.scale.yaml", sampler.guider.scales()
    yield "sigmas", schedule(meta)
    for key in golden:
        if key.startswith("denoised."):
            window, _, level = key.removeprefix("denoised.").partition("sigma_")
            s, noised = float(level), torch.cat([x, x])
            both = {name: torch.cat([pairs[window][1][name], pairs[window][0][name]]) for name in c}
            sigma = torch.full((2 * frames,), s)
            inputs = {"num_video_frames": frames, "image_only_indicator": torch.full((2, frames), float(not window))}
            yield key, engine.denoise(noised * (1 + s**2) ** 0.5, sigma, both, **inputs)
    for name, window in (("sampled", ""), ("sampled.first_window", "first_window.")):
        if name in golden:
            yield name, sampler(guided(model.denoiser, guider, *pairs[window], like=x), x, schedule(meta))
    if "sampled.yaml" in golden:
        own = sampler.discretization(int(meta["num_steps"]))
        yield "sampled.yaml", sampler(guided(model.denoiser, sampler.guider, c, uc, like=x), x, own)
    if "unet.varied" in golden:
        cond = {name: torch.cat([uc[name], c[name]]) for name in c} | {"vector": golden["unet.varied.vector"]}
        only = torch.zeros(2, frames)
        only[1, 0] = 1
        network_inputs = torch.cat([x, x]), torch.full((2 * frames,), 0.3), cond
        yield "unet.varied", engine.model(*network_inputs, num_video_frames=frames, image_only_indicator=only)
    yield "decoded.first_2", engine.decode(golden["sampled"][:2], 2)


def compute_dense(engine: DiffusionEngine, golden: Tensors, meta: Meta) -> Iterator[tuple[str, Tensor]]:
    """SV4D's anchors and alternating passes."""
    times, views = int(meta["num_times"]), int(meta["num_views"])
    chosen = [int(number) for number in meta["chosen_views"].split(",")]
    orbit = golden["orbit"].roll(1, 0)[chosen]  # the input's view first
    around = [360 / int(meta["sv3d_views"]) * number for number in chosen]
    angles = view_angles([float(meta["elevation"])] * len(chosen), around, relative_elevation=False)
    yield from angles_per_frame(angles, times)
    pictures = torch.zeros(len(golden["frames"]), 1 + views, *orbit.shape[1:])
    pictures[0], pictures[:, 0] = orbit, golden["frames"]
    matrix, model, sampler = (
        Matrix(pictures, angles, picture_noise(meta["salt"])),
        Model(engine, times * views),
        Recorder(),
    )
    anchors, *windows = dense_passes(times)
    settings = guider_of(meta), sampler, schedule(meta)
    yield "latents.anchors", fill(matrix, model, anchors, golden["noise.anchors"], *settings)
    for i, window in enumerate(windows):
        if f"latents.window_{i}.steps" not in golden:
            break
        fill(matrix, model, window, golden[f"noise.window_{i}"][list(window.times), 1:].flatten(0, 1), *settings)
        rows = torch.stack(sampler.steps).unflatten(1, (times, views))
        rows[0::2] = rows[0::2].flip(1)  # as the steps in reverse saw them
        yield f"latents.window_{i}.steps", rows.flatten(1, 2)


def compute_windows(engine: DiffusionEngine, golden: Tensors, meta: Meta) -> Iterator[tuple[str, Tensor]]:
    """SV4D 2.0's windows."""
    times, views = int(meta["num_times"]), int(meta["num_views"])
    elevations, azimuths = ([float(n) for n in meta[name].split(",")] for name in ("elevations", "azimuths"))
    angles = view_angles(elevations, azimuths, relative_elevation=True)
    yield from angles_per_frame(angles, times)
    frames = golden["frames"]
    pictures = torch.zeros(len(frames), 1 + views, *frames.shape[1:])
    pictures[:, 0] = frames
    matrix, model = Matrix(pictures, angles, picture_noise(meta["salt"])), Model(engine, times * views)
    passes = window_passes(len(frames), times)
    assert [window.times[0] for window in passes] == [int(start) for start in meta["window_starts"].split(",")]
    for i, window in enumerate(passes):
        if i > 0:
            yield f"cond_view.window_{i}", matrix.pictures[window.times[0], 1:].clone()
        settings = guider_of(meta), EulerEDMSampler(), schedule(meta)
        yield f"latents.window_{i}", fill(matrix, model, window, golden[f"noise.window_{i}"], *settings)
        if i > 0:
            yield f"c.cond_view.window_{i}", model.given[-1][0]["cond_view"]


def angles_per_frame(angles: tuple[Tensor, Tensor], times: int) -> Iterator[tuple[str, Tensor]]:
    yield from zip(("polar_rad", "azimuth_rad"), (angle.repeat(times) for angle in angles), strict=True)
