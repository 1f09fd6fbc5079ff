"""From a picture to a clip: the shipped model, and small engines of the official kinds with made-up weights."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.overrides import TorchFunctionMode

from sgm import (
    GUIDERS,
    SAMPLERS,
    Clip,
    Progress,
    UserError,
    VideoRequest,
    curves,
    fit_picture,
    generate,
    load_engine,
    open_picture,
    prepare_picture,
    request_of,
)
from sgm.engine import DTYPES, DiffusionEngine, copy_to
from sgm.run import Run
from sgm.speeds import SPEEDS
from sgm.versions import bundle
from tests import small_model

SAMPLES = bundle() / "app" / "samples"
GOLDENS = Path(__file__).parent / "data" / "goldens"
SMALL: dict[str, Any] = {"frames": 3, "steps": 2, "height": 64, "width": 64}


@pytest.fixture(scope="module")
def tiny() -> DiffusionEngine:
    return load_engine("svd_tiny", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def kitten() -> Image.Image:
    return open_picture(SAMPLES / "kitten.jpg")


@pytest.fixture(scope="module")
def lake() -> Image.Image:
    return open_picture(SAMPLES / "lake.jpg")


@pytest.fixture(scope="module")
def made_up() -> Callable[[str], DiffusionEngine]:
    """version -> a small engine of its kind. Its weights are a function of their names."""
    engines: dict[str, DiffusionEngine] = {}

    def build(version: str) -> DiffusionEngine:
        if version not in engines:
            engines[version] = small_model.made_up(GOLDENS / f"{version}_small.yaml")
            engines[version].version = version
        return engines[version]

    return build


def make(engine: DiffusionEngine, picture: Image.Image, on_step=None, **choices) -> Clip:
    return generate(engine, VideoRequest(engine.version, **{**SMALL, **choices}), picture, on_step)


def test_where_a_device_has_no_products_in_8_bits_the_clip_is_exact(tiny: DiffusionEngine, lake: Image.Image) -> None:
    notes: list[str] = []
    clip = make(tiny, lake, lambda progress: notes.append(progress.note), speed="fp8")
    assert set(notes) == {"The network's products are exact, not in 8 bits: this device has no others."}
    assert np.array_equal(clip.frames, make(tiny, lake).frames)
    assert "speed" not in clip.settings["sgm"]
    assert make(tiny, lake, speed="cached").settings["sgm"]["speed"] == SPEEDS["cached"].cost
    for speed in SPEEDS.values():  # what is lost otherwise is in the file nevertheless
        exact, kept = speed.without_fp8, ("steps", "cache_interval", "schedule")
        assert [getattr(exact, name) for name in ("fp8", *kept)] == [False, *(getattr(speed, name) for name in kept)]
    assert "dB" in make(tiny, lake, speed="ays_fp8", steps=1).settings["sgm"]["speed"]


def test_gives_the_frames_asked_for_with_their_settings(tiny: DiffusionEngine, kitten: Image.Image) -> None:
    clip = make(tiny, kitten, fps=11, seed=7)
    assert clip.frames.shape == (3, 64, 64, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.fps == 11
    assert request_of(clip.settings) == VideoRequest("svd_tiny", **SMALL, fps=11, seed=7)


@pytest.mark.parametrize("tint", [(1, 1, 1), (1, 0.3, 0)])
def test_begins_with_the_picture(tiny: DiffusionEngine, kitten: Image.Image, tint: tuple[float, ...]) -> None:
    """At a size that the model knows, frame 0 is the picture as it was cropped, in its colours, be they all but one."""
    picture = Image.fromarray((np.asarray(kitten) * tint).astype(np.uint8))
    clip = make(tiny, picture, height=192, width=320, frames=2, steps=2)
    wanted = np.asarray(fit_picture(picture, 320, 192), dtype=float)
    psnr = 10 * np.log10(255**2 / ((clip.frames[0] - wanted) ** 2).mean())
    assert psnr > 28


def test_one_seed_is_one_video(tiny: DiffusionEngine, kitten: Image.Image) -> None:
    torch.manual_seed(1)
    first = make(tiny, kitten, seed=5)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    again = make(tiny, kitten, seed=5)
    assert np.array_equal(first.frames, again.frames)
    assert torch.equal(before, torch.random.get_rng_state())  # no draw from the global generator
    assert not np.array_equal(first.frames, make(tiny, kitten, seed=6).frames)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_repeats_itself(tiny: DiffusionEngine, kitten: Image.Image, sampler: str) -> None:
    options = {"restart_steps": 2} if sampler == "restart" else {}
    first, again = (make(tiny, kitten, sampler=sampler, frames=2, **options) for _ in range(2))
    assert np.array_equal(first.frames, again.frames)


@pytest.mark.parametrize("guider", GUIDERS)
def test_every_guider_runs(tiny: DiffusionEngine, kitten: Image.Image, guider: str) -> None:
    scales = {"min_guidance": 1.5, "max_guidance": 3.0}
    taken = {field.name for field in GUIDERS[guider].options.values()}
    choices = {name: value for name, value in scales.items() if name in taken}
    assert make(tiny, kitten, guider=guider, **choices).frames.std() > 0


def test_what_is_made_does_not_depend_on_what_was_made_before(
    tiny: DiffusionEngine, kitten: Image.Image, lake: Image.Image
) -> None:
    weights = {name: value.clone() for name, value in tiny.state_dict().items()}
    jobs = {"kitten": (kitten, 1), "lake": (lake, 2), "lake again": (lake, 3)}
    there = {name: make(tiny, picture, seed=seed).frames for name, (picture, seed) in jobs.items()}
    back = {name: make(tiny, picture, seed=seed).frames for name, (picture, seed) in reversed(jobs.items())}
    for name in jobs:
        assert np.array_equal(there[name], back[name]), name
    assert not np.array_equal(there["kitten"], there["lake"])
    assert all(torch.equal(value, weights[name]) for name, value in tiny.state_dict().items())


def test_progress_comes_in_order(tiny: DiffusionEngine, kitten: Image.Image) -> None:
    told: list[Progress] = []
    make(tiny, kitten, told.append, steps=3, decode_chunk=2)
    wanted = [("encode", 0, 1), ("encode", 1, 1), *(("sample", i, 3) for i in (1, 2, 3))]
    blocks = told[-1].total
    assert blocks > 5
    wanted += [("decode", i, blocks) for i in range(blocks + 1)]
    assert [(p.phase, p.step, p.total) for p in told] == wanted
    fractions = [p.fraction for p in told]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, pytest.approx(1))


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("phase", ["encode", "sample", "decode"])
def test_cancelling_reaches_the_caller_and_leaves_the_engine_as_it_was(
    tiny: DiffusionEngine, kitten: Image.Image, phase: str
) -> None:
    told: list[str] = []

    def stop(progress: Progress) -> None:
        told.append(progress.phase)
        if progress.phase == phase:
            raise Cancelled

    whole = make(tiny, kitten, seed=9)
    with pytest.raises(Cancelled):
        make(tiny, kitten, stop, seed=9)
    assert told.count(phase) == 1
    assert np.array_equal(make(tiny, kitten, seed=9).frames, whole.frames)


@pytest.mark.parametrize("camera", ["pan_left", "zoom_in", "roll_right"])
def test_camera_moves_change_the_clip(tiny: DiffusionEngine, kitten: Image.Image, camera: str) -> None:
    still, moving = (make(tiny, kitten, camera=name).frames for name in ("auto", camera))
    assert not np.array_equal(still, moving)


@pytest.mark.parametrize("size", [(31, 400), (400, 31), (1, 1), (64, 64)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_pictures_of_any_shape(tiny: DiffusionEngine, size: tuple[int, int], fit: str) -> None:
    assert make(tiny, Image.new("RGB", size, "teal"), fit=fit, steps=1, frames=2).frames.shape == (2, 64, 64, 3)


def test_one_frame_is_a_clip_too(tiny: DiffusionEngine, kitten: Image.Image) -> None:
    assert make(tiny, kitten, frames=1, steps=1).frames.shape == (1, 64, 64, 3)


def test_half_precision_stays_near_and_is_said_to_be_slow_where_it_is(
    tiny: DiffusionEngine, kitten: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, notes = load_engine("svd_tiny", device="cpu", dtype="bfloat16"), set()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    a = make(tiny, kitten, lambda progress: notes.add(progress.note)).frames.astype(float)
    assert notes == {""}
    b = make(half, kitten, lambda progress: notes.add(progress.note)).frames.astype(float)
    assert np.abs(a - b).mean() < 8
    assert notes == {"", "This processor computes bfloat16 far more slowly than float32."}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert Run(half, VideoRequest(half.version, **SMALL)).note == ""


KINDS = ["svd", "svd_image_decoder", "sv3d_p"]


@pytest.mark.parametrize("version", KINDS)
def test_official_kinds_run_from_picture_to_clip(
    made_up: Callable[[str], DiffusionEngine], lake: Image.Image, version: str
) -> None:
    engine = made_up(version)
    request = VideoRequest(version, frames=3, steps=2, height=64, width=128, decode_chunk=2, fit="crop")
    told: list[Progress] = []
    clip, again = (generate(engine, request, lake, told.append) for _ in range(2))
    assert clip.frames.shape == (3, 64, 128, 3)
    assert clip.frames.std() > 0
    assert np.array_equal(clip.frames, again.frames)
    assert clip.settings["version"] == version
    phases = [p.phase for p in told[: len(told) // 2]]
    assert phases == ["encode"] * 2 + ["sample"] * 2 + ["decode"] * (len(phases) - 4)


def test_sv3d_sees_the_object_alone_and_ends_with_it(made_up: Callable[[str], DiffusionEngine]) -> None:
    picture = Image.new("RGBA", (90, 50), (0, 0, 0, 0))
    picture.paste((200, 30, 30, 255), (60, 10, 80, 50))
    request = VideoRequest("sv3d_p", **SMALL, image_frame_ratio=0.5)
    clip = generate(made_up("sv3d_p"), request, picture)
    np.testing.assert_array_equal(clip.frames[-1], np.asarray(prepare_picture(picture, request)))
    assert clip.frames[-1][32, 32].tolist() == [200, 30, 30]
    assert clip.frames[-1][2, 2].tolist() == [255, 255, 255]
    assert clip.settings["fit"] == "object"
    # Already prepared, as a page does that has shown it: the same clip.
    again = generate(made_up("sv3d_p"), request.replace(fit="crop"), prepare_picture(picture, request))
    np.testing.assert_array_equal(clip.frames, again.frames)


@pytest.fixture(scope="module")
def plain(made_up: Callable[[str], DiffusionEngine], kitten: Image.Image) -> Callable[[str], np.ndarray]:
    """version -> the frames of its clip of the kitten, in which nothing was chosen."""
    return cache(lambda version: make(made_up(version), kitten, fit="crop").frames)


@pytest.mark.parametrize(
    ("version", "choice"),
    [
        ("svd", {"motion_bucket": 20}),
        ("svd", {"fps": 25}),
        ("svd", {"cond_aug": 0.5}),
        ("svd", {"max_guidance": 9.0}),
        ("svd", {"seed": 24}),
        ("svd", {"steps": 3}),
        ("sv3d_p", {"elevation": 40.0}),
        ("sv3d_p", {"guider": "identity"}),
        ("sv3d_p", {"orbit": "dynamic"}),
        ("sv3d_p", {"orbit": "list", "azimuths": (10, 20, 30)}),
    ],
)
def test_each_choice_reaches_the_network(
    made_up: Callable[[str], DiffusionEngine],
    kitten: Image.Image,
    plain: Callable[[str], np.ndarray],
    version: str,
    choice: dict,
) -> None:
    assert not np.array_equal(plain(version), make(made_up(version), kitten, fit="crop", **choice).frames)


@pytest.mark.parametrize("version", ["svd", "svd_image_decoder"])
def test_how_many_frames_are_decoded_at_once_does_not_show(
    made_up: Callable[[str], DiffusionEngine], kitten: Image.Image, version: str
) -> None:
    engine = made_up(version)
    chunks = ({}, {"decode_chunk": 1}, {"decode_chunk": 2}, {"decode_chunk": 50})
    whole, *others = (make(engine, kitten, **chunk).frames.astype(int) for chunk in chunks)
    assert all(np.abs(whole - other).max() <= 1 for other in others)  # rounding
    # The original's way shows: there the frames of a chunk are the temporal decoder's window.
    z = torch.randn(4, engine.latent_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        pairs = torch.cat([engine.decode(part, 2) for part in z.split(2)])
        difference = (engine.decode_clip(z, 2) - pairs).abs().max()
    assert (difference > 1e-2) == (version == "svd")


def test_memory_is_saved_at_no_change_of_the_picture(tiny: DiffusionEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(3, tiny.latent_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    pictures = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    results = []
    for size in (1, 2**30):
        monkeypatch.setattr("sgm.autoencoder.blocks._SLICE", {"cpu": size})
        with torch.inference_mode():
            results.append((tiny.decode(z, 3), tiny.encode(pictures)))
    for few, all_at_once in zip(*results, strict=True):
        assert (few - all_at_once).abs().max() < 1e-4


def test_a_request_for_another_version_is_refused(tiny: DiffusionEngine, kitten: Image.Image) -> None:
    with pytest.raises(UserError, match="The request is for svd, the engine is svd_tiny"):
        generate(tiny, VideoRequest("svd", **SMALL), kitten)


@pytest.mark.parametrize("phase", ["encode", "sample", "decode"])
def test_a_check_stops_in_the_midst_of_any_phase(tiny: DiffusionEngine, kitten: Image.Image, phase: str) -> None:
    told: list[Progress] = []
    calls = 0

    def check() -> None:
        nonlocal calls
        if told and told[-1].phase == phase:
            calls += 1
            if calls == 5:
                raise Cancelled

    with pytest.raises(Cancelled):
        generate(tiny, VideoRequest(**SMALL), kitten, told.append, check)
    assert told[-1].phase == phase
    assert told[-1].step < told[-1].total


class Products(TorchFunctionMode):
    """Counts convolutions and matrix products: since the last check, and the most between two checks of each phase."""

    KINDS = (F.conv2d, F.conv3d, F.conv_transpose2d, F.linear, torch.Tensor.addmm_)

    def __init__(self) -> None:
        super().__init__()
        self.since = 0
        self.phase = "encode"
        self.most: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.since += func in self.KINDS
        return func(*args, **(kwargs or {}))

    def check(self) -> None:
        self.most[self.phase] = max(self.most.get(self.phase, 0), self.since)
        self.since = 0

    def on_step(self, progress: Progress) -> None:
        self.check()
        self.phase = "sample" if (progress.phase, progress.step) == ("encode", 1) else progress.phase


def test_the_work_between_two_checks_does_not_grow_with_the_clip(tiny: DiffusionEngine, kitten: Image.Image) -> None:
    counts = []
    for frames in (2, 6):
        with Products() as products:
            request = VideoRequest(**{**SMALL, "frames": frames, "decode_chunk": 1})
            generate(tiny, request, kitten, products.on_step, products.check)
        counts.append(products.most)
    assert counts[0] == counts[1]
    assert counts[0].keys() == {"encode", "sample", "decode"}
    assert counts[0]["encode"] <= 16
    assert counts[0]["sample"] <= 80  # what is computed once for the condition, and the first block
    assert counts[0]["decode"] <= 8


def test_the_last_preview_is_like_the_clip(tiny: DiffusionEngine, kitten: Image.Image) -> None:
    drawn: list[np.ndarray] = []

    def draw(progress: Progress) -> None:
        if progress.preview:
            drawn.append(progress.preview())

    request = VideoRequest(frames=3, steps=4, height=128, width=192)
    clip = generate(tiny, request, kitten, draw)
    # The middle one alone, then, from a third of the steps on, all.
    assert [preview.shape for preview in drawn] == [(1, 16, 24, 3), *[(3, 16, 24, 3)] * 3]
    for preview, frame in zip(drawn[-1], clip.frames, strict=True):
        small = np.asarray(Image.fromarray(frame).resize((24, 16), Image.Resampling.BOX), dtype=float)
        assert np.corrcoef(preview.ravel().astype(float), small.ravel())[0, 1] > 0.8


@pytest.fixture
def a_gpus_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are made and kept to as on a GPU with 8 GiB."""
    monkeypatch.setattr("sgm.run.free_memory", lambda device: 2**33)


class RunsOut:
    """A function that runs out of memory at its call number `at`; calls: how many there have been."""

    def __init__(self, work: Callable[..., torch.Tensor], at: int) -> None:
        self.work, self.at, self.calls = work, at, 0

    def __call__(self, *args: Any, **inputs: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise torch.cuda.OutOfMemoryError
        return self.work(*args, **inputs)


@pytest.mark.usefixtures("a_gpus_memory")
@pytest.mark.parametrize("part", ["denoiser", "decode_clip"])
def test_where_memory_runs_out_less_is_taken_and_nothing_done_twice(
    made_up: Callable[[str], DiffusionEngine], kitten: Image.Image, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    engine, request = made_up("svd"), VideoRequest("svd", **{**SMALL, "steps": 3})
    wanted = generate(engine, request, kitten, low_memory=True)
    work = RunsOut(getattr(engine, part), 2 if part == "denoiser" else 1)
    told: list[str] = []
    monkeypatch.setattr(engine, part, work)
    clip = generate(engine, request, kitten, lambda progress: told.append(progress.note))
    assert work.calls == (4 if part == "denoiser" else 2)
    assert np.abs(clip.frames.astype(int) - wanted.frames).max() <= 1
    notes = list(dict.fromkeys(filter(None, told)))
    assert notes[0].startswith("GPU memory: everything on the device, about ")
    assert notes[1].startswith("GPU memory ran out; from here on each part on the device only while it is used")
    # The smallest plan has none to give way to, nor is there one for a processor's memory: what is missing is told.
    for error in (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."), None):
        monkeypatch.setattr(engine, part, lambda *args, error=error, **inputs: _run_out(error))
        with pytest.raises(UserError, match=r"more memory than there is\. Close other programs, take fewer frames"):
            generate(engine, request, kitten, low_memory=True)


def _run_out(error: Exception | None) -> torch.Tensor:
    if error:
        raise error
    return torch.empty(2**50)


def scaled(part: str, factor: float, dtype: str = "float16") -> DiffusionEngine:
    """svd_tiny with the first convolutions of a part's residual blocks scaled, which group norms undo."""
    engine = load_engine("svd_tiny", device="cpu", dtype=dtype)
    with torch.inference_mode():
        for name, weight in engine.parts[part].named_parameters():
            if name.endswith(("conv1.weight", "in_layers.2.weight")) and (
                part == "conditioner" or "encoder" not in name
            ):
                weight.mul_(factor)
        for embedder in engine.conditioner.embedders if part == "conditioner" else ():
            if hasattr(embedder, "encoder"):
                embedder.encoder.to(DTYPES[dtype])
    return engine.freeze()


@pytest.mark.parametrize(
    ("part", "factor", "choices"),
    [
        *(("network", 1e5, {}), ("autoencoder", 4e3, {}), ("conditioner", 1e5, {})),
        ("conditioner", 1e5, {"sampler": "bounded", "ends": "loop"}),  # its latents are encoded, too
    ],
)
def test_a_part_that_overflows_float16_runs_in_a_wider_dtype(
    part: str, factor: float, choices: dict[str, Any], kitten: Image.Image
) -> None:
    notes: list[str] = []
    request = VideoRequest(**{**SMALL, "frames": 2, "steps": 1, **choices})
    clip = generate(scaled(part, factor), request, kitten, lambda progress: notes.append(progress.note))
    assert f"The {part} overflowed float16: it runs in float32 from here on." in notes
    wanted = generate(scaled(part, factor, "float32"), request, kitten).frames
    assert np.abs(clip.frames.astype(int) - wanted).mean() < 1


def test_results_that_cannot_be_right_are_not_called_done(
    tiny: DiffusionEngine, kitten: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"The autoencoder overflowed in float32.*weights are damaged"):
        make(scaled("autoencoder", 1e38, "float32"), kitten)
    with pytest.raises(UserError, match="The sampler diverged"):
        make(tiny, kitten, sampler="linear_multistep", order=8, steps=10, sigma_min=1.0, sigma_max=1.0001)
    for frames, problem in (
        (torch.full((3, 3, 64, 64), -1.0), "in one colour"),
        (torch.rand(3, 64, 64), "stands still"),
    ):
        monkeypatch.setattr(tiny, "decode_clip", lambda *args, frames=frames: frames.expand(3, 3, 64, 64))
        with pytest.raises(UserError, match=problem):
            make(tiny, kitten)
        assert make(tiny, Image.new("RGB", (64, 64), "navy")).frames.shape == (3, 64, 64, 3)


def test_curves_tell_what_will_run() -> None:
    sigmas, scales = curves(VideoRequest("svd_xt", steps=9, sigma_max=300, rho=3))
    assert (len(sigmas), sigmas[0], sigmas[-1]) == (9, pytest.approx(300), pytest.approx(0.002, rel=1e-3))
    assert (len(scales), scales[0], scales[-1]) == (25, 1.5, 3.0)
    with pytest.raises(UserError, match="sigma_max must exceed sigma_min"):
        VideoRequest(sigma_min=5, sigma_max=5)


def test_a_clip_takes_the_evaluations_and_steps_that_are_said_before(
    tiny: DiffusionEngine, kitten: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, steps, denoiser = [], [], tiny.denoiser
    monkeypatch.setattr(tiny, "denoiser", lambda network, x, sigma: rows.append(len(x)) or denoiser(network, x, sigma))
    chosen = {"steps": 4, "sampler": "restart", "restart_steps": 2, "guider": "interval", "max_guidance": 2}
    request = VideoRequest(**{**SMALL, **chosen})
    generate(tiny, request, kitten, lambda p: steps.append((p.step, p.total)) if p.phase == "sample" else None)
    assert [len(rows), rows.count(2 * request.frames)] == [request.evaluations, request.guided_evaluations]
    assert 0 < request.guided_evaluations < request.evaluations == 7 + 2 * 2 * 2
    assert steps == [(i, 10) for i in range(1, 11)]  # two restarts: up, and two steps down


def test_what_a_guider_remembers_ends_with_its_clip(tiny: DiffusionEngine, kitten: Image.Image) -> None:
    options = {"guider": "apg", "max_guidance": 4, "apg_norm": 2, "steps": 3}
    first, again, other = (make(tiny, kitten, **options, apg_momentum=beta).frames for beta in (-0.5, -0.5, 0.0))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


SIX = [
    {"height": 64, "width": 64 + 32 * (i % 2), "motion_bucket": 20 + 30 * i, "seed": i, "frames": 1 + i % 3}
    | {"steps": 1 + i % 2}
    | ({"sampler": "heun_edm"} if i % 5 == 0 else {})
    | ({"sampler": "dpmpp_2m", "guider": "triangle", "min_guidance": 1.2, "max_guidance": 2.5} if i % 3 == 1 else {})
    for i in range(6)
]


def all_at(threads: int, engine: DiffusionEngine, pictures: list[Image.Image]) -> list[np.ndarray]:
    """Six clips of different pictures, sizes and settings, so many at a time on one engine."""

    def one(i: int) -> np.ndarray:
        return generate(engine, VideoRequest(engine.version, **SIX[i]), pictures[i % 2]).frames

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(len(SIX))))


def state_of(engine: DiffusionEngine) -> tuple[Any, ...]:
    """All that an engine and its network hold: attributes by identity, weights by place and content."""
    objects = [vars(module) for module in engine.modules()] + [vars(engine.network), vars(engine.denoiser)]
    identities = [{key: id(value) for key, value in held.items() if key != "_modules"} for held in objects]
    weights = {
        name: (value.data_ptr(), value._version, value.double().sum().item())
        for name, value in (*engine.named_parameters(), *engine.named_buffers())
    }
    return identities, weights


@pytest.fixture(scope="module")
def alone(tiny: DiffusionEngine, kitten: Image.Image, lake: Image.Image) -> list[np.ndarray]:
    return all_at(1, tiny, [kitten, lake])


def test_threads_share_an_engine_and_each_clip_is_as_if_made_alone(
    tiny: DiffusionEngine, kitten: Image.Image, lake: Image.Image, alone: list[np.ndarray]
) -> None:
    before = state_of(tiny)
    together = all_at(2, tiny, [kitten, lake])
    for i in range(len(SIX)):
        np.testing.assert_array_equal(alone[i], together[i], err_msg=str(SIX[i]))
    assert state_of(tiny) == before


@pytest.mark.usefixtures("a_gpus_memory")
def test_memory_that_runs_out_in_one_thread_changes_no_other_threads_clip(
    tiny: DiffusionEngine,
    kitten: Image.Image,
    lake: Image.Image,
    alone: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = RunsOut(tiny.denoiser, 6)
    monkeypatch.setattr(tiny, "denoiser", work)
    together = all_at(2, tiny, [kitten, lake])
    assert work.calls > 6
    different = [i for i in range(len(SIX)) if not np.array_equal(alone[i], together[i])]
    assert len(different) <= 1  # the one whose memory ran out: other sums are rounded otherwise
    assert all(np.abs(alone[i].astype(int) - together[i]).max() <= 1 for i in different)


def test_offloaded_weights_are_copied_to_the_device_unchanged_and_come_back(
    made_up: Callable[[str], DiffusionEngine],
) -> None:
    """The processor stands for both: what is copied there is new all the same."""
    engine = made_up("svd")
    before = {name: value.clone() for name, value in engine.state_dict().items()}
    copy = copy_to(engine.model, torch.device("cpu"))
    moved = copy_to(engine.model, torch.device("meta"))
    assert {value.device.type for value in moved.state_dict().values()} == {"meta"}
    assert copy is not engine.model
    assert copy.state_dict().keys() == engine.model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in engine.state_dict().items())
