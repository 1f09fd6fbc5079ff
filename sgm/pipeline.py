"""The pipeline from a picture to a clip: conditioning, sampling, decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from sgm.conditioning.memo import Memo
from sgm.conditioning.views import Pass
from sgm.devices import to_device
from sgm.diffusion.guidance import guided
from sgm.diffusion.sampling import Between, one_end
from sgm.engine import DiffusionEngine
from sgm.errors import UserError, enough_memory
from sgm.families.image import ready, to_pixels, to_uint8
from sgm.matrix import Matrix
from sgm.ranks import FollowersLost
from sgm.recipe import MARK, settings_of
from sgm.request import VideoRequest, ViewsRequest
from sgm.run import Condition, OnStep, Run

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")


@dataclass(frozen=True)
class Clip:
    """A clip: frames, uint8 (t, height, width, 3); fps; settings, its recipe (see `sgm.recipe`)."""

    frames: np.ndarray
    fps: int
    settings: dict[str, Any]

    def unmarked(self) -> Clip:
        """The same clip, whose files get no invisible watermark, as its recipe then says."""
        return self._saying(watermark=False)

    def as_input(self) -> Clip:
        """The same clip, which no model made: its files say nothing of one."""
        return self._saying(watermark=False, input=True)

    def _saying(self, **values: bool) -> Clip:
        return replace(self, settings={**self.settings, MARK: {**self.settings[MARK], **values}})


@enough_memory()
@torch.inference_mode()
def generate(
    engine: DiffusionEngine,
    request: VideoRequest,
    image: Image.Image,
    on_step: OnStep | None = None,
    check: Callable[[], None] | None = None,
    low_memory: bool = False,
    memo: Memo | None = None,
    last: Image.Image | None = None,
) -> Clip:
    """Turn a picture into a clip.

    `on_step` is called with the progress, `check` before each block of a network and each chunk of the decoder;
    exceptions of both end the job and reach the caller. All noise comes from one generator on the CPU, seeded by the
    request, so that one seed gives one video on any device. Any number of threads may share the engine. low_memory: see
    `Run`. memo: with one `Memo(engine)` for many clips, what they have in common of the picture is embedded once.
    last: the picture at which a request for one ends; where it is the first one, that is a loop.
    Raises UserError for a request of another version than the engine's, for a last picture that it does not take or
    lacks, where memory runs out, and for a result that is not finite, of one colour or without any motion; PictureError
    for a picture that cannot be used.
    """
    if isinstance(request, ViewsRequest):
        raise UserError(f"{request.version} makes its clips from a clip, not from a picture: use generate_views.")
    _check_version(engine, request)
    request = checked_ends(request, image, last)
    arguments = engine, request, image, last if request.takes_last else None
    settings = request, on_step, check, low_memory, memo
    return _together(engine, lambda run: _generate(*arguments, run), *settings)


def checked_ends(
    request: VideoRequest, first: Image.Image | Sequence[Image.Image], last: Image.Image | None
) -> VideoRequest:
    """The request for two pictures: that for a loop, where the last one is the first.

    Raises UserError for a last picture that the request does not take or lacks.
    """
    if last is not None and not request.takes_last:
        what = "ends where it began" if request.bounded else f"is sampled by {request.sampler!r}, from one picture"
        raise UserError(f"There is a last picture, but this clip {what}: take sampler 'bounded' with ends 'last'.")
    if last is None and request.takes_last:
        raise UserError("This clip ends at a last picture: give one, or take ends 'loop', which ends where it began.")
    same = last is not None and np.array_equal(np.asarray(first), np.asarray(last))
    return request.replace(ends="loop") if same else request


def _generate(
    engine: DiffusionEngine, request: VideoRequest, image: Image.Image, last: Image.Image | None, run: Run
) -> Clip:
    family = request.family
    run.tell_followers(image, last)
    generator = torch.Generator().manual_seed(request.seed)

    # Prepare the picture.
    run.report("encode", 0, 1)
    picture = family.prepare(image, request)
    goal = family.prepare(last, request) if last else None
    if goal and (doubt := family.doubt(picture, goal)):
        run.note = f"{run.note} {doubt}".lstrip()
    if request.bounded:
        batches = family.between(picture, goal, engine.factor, generator)
    else:
        batches = (family.batch(picture, engine.factor, generator),)

    ends = (picture, goal or picture) if request.bounded else ()
    w, h = (side // engine.factor for side in request.size)

    # Condition.
    @cache
    def embedded(dtype: torch.dtype) -> tuple[list[tuple[Condition, Condition]], list[Tensor]]:
        conditions = [run.conditions(batch) for batch in batches]
        latents = [run.latents(to_pixels(end.frame()).to(engine.device), family.corrections) for end in ends]
        run.report("encode", 1, 1)
        return conditions, latents

    @cache
    def generator_state() -> Tensor:
        for batch in batches:
            ready(batch["cond_frames"])  # whose noise the generator draws first
        return generator.get_state()

    def sample() -> Tensor:
        conditions, latents = embedded(run.dtype_of("conditioner"))  # again where it overflowed
        c, uc = conditions[0]

        def draw(middle_alone: bool) -> np.ndarray:
            estimate = run.estimate.flip(0) if request.bounded else run.estimate  # the latest half goes back in time
            z = estimate[request.frames // 2][None] if middle_alone else estimate
            return preview(z / engine.scale_factor, c["concat"], ready(batches[0]["cond_frames"]))

        # Denoise.
        generator.set_state(generator_state())
        x = torch.randn(request.frames, engine.latent_channels, h, w, generator=generator)
        x = to_device(x, engine.device)
        guider = request.build_guider()
        if request.bounded:
            known = zip(conditions, reversed(latents), strict=True)
            denoise = Between(*(one_end(run.denoiser, guider, *pair, like=x, other=other) for pair, other in known))
        else:
            denoise = guided(run.denoiser, guider, c, uc, like=x)
        return request.build_sampler()(
            denoise,
            x,
            request.build_schedule()(request.steps, device=x.device),
            noise=lambda like: torch.randn(like.shape, generator=generator).to(like),
            on_step=lambda i, n: run.report("sample", i, n, lambda: draw(middle_alone=3 * i < n)),
        )

    z = run.sample(sample)

    # Decode.
    frames, shown = run.decode(z), picture.frame()
    _check_frames(frames, shown)
    frames = family.finish(frames, picture)
    settings = settings_of(request, engine, shown, frames, run.loras, goal and goal.frame(), cost=run.cost)
    return Clip(frames, request.fps, settings)


@enough_memory()
@torch.inference_mode()
def generate_views(
    engine: DiffusionEngine,
    request: ViewsRequest,
    clip: Sequence[Image.Image],
    on_step: OnStep | None = None,
    check: Callable[[], None] | None = None,
    low_memory: bool = False,
    first: np.ndarray | None = None,
) -> list[Clip]:
    """Turn a clip of an object into clips of the same motion from several sides, the first of them the clip itself.

    clip: its frames as `request.family.prepare_clip` gives them. first: for SV4D, the frames of sv3d_u's orbit around
    the object in the clip's first frame, uint8 (21, h, w, 3). Raises UserError and calls on_step and check as
    `generate` does, with previews of all new views at one time; steps are counted over all passes. The recipe of each
    says under "sgm" which it is, as "view": "input", "view-1", …
    """
    _check_version(engine, request)
    settings = request, on_step, check, low_memory
    return _together(engine, lambda run: _generate_views(engine, request, clip, first, run), *settings)


def _generate_views(
    engine: DiffusionEngine, request: ViewsRequest, clip: Sequence[Image.Image], first: np.ndarray | None, run: Run
) -> list[Clip]:
    family, generator = request.family, torch.Generator().manual_seed(request.seed)
    run.tell_followers(clip, first)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    run.report("encode", 0, 1)
    pictures = family.matrix(clip, request, first)
    matrix = Matrix(pictures, family.angles(request), lambda name, like: noise(like), request.cond_aug)
    passes = family.passes(request)
    w, h = (side // engine.factor for side in request.size)
    sigmas = request.build_schedule()(request.steps, device=engine.device)
    for number, step in enumerate(passes):
        state = generator.get_state()

        def report(i: int, n: int, number: int = number) -> None:
            tiles = _side_by_side(run.estimate, request) / engine.scale_factor
            run.report("sample", number * n + i, len(passes) * n, partial(preview, tiles, *matrix.example))

        def sample(step: Pass = step, state: Tensor = state) -> Tensor:
            generator.set_state(state)
            x = torch.randn(request.rows, engine.latent_channels, h, w, generator=generator)
            x = to_device(x, engine.device)
            settings = request.build_guider(), request.build_sampler(), sigmas, noise
            return matrix.sample(run, step, x, *settings, on_step=report)

        last = [lambda done, of: run.report("decode", done, of)] if number == len(passes) - 1 else []
        matrix.put(step, run.pictures(run.sample(sample), *last))

    seen = np.stack([np.asarray(frame) for frame in clip])
    views = [seen]
    for view in pictures[:, 1:].unbind(1):
        views.append(to_uint8(view))
        _check_frames(views[-1], clip[0])
    names = ("input", *(f"view-{number}" for number in range(1, len(views))))
    clips = [
        Clip(frames, request.fps, settings_of(request, engine, seen, frames, run.loras, view=name, cost=run.cost))
        for name, frames in zip(names, views, strict=True)
    ]
    return [clips[0].as_input(), *clips[1:]]


def _side_by_side(estimates: Tensor, request: ViewsRequest) -> Tensor:
    """The latents of all new views at a pass's middle time, of (t v, c, h, w), as one picture's: (1, c, m h, n w)."""
    views = estimates.unflatten(0, (request.model.times, -1))[request.model.times // 2]
    columns = math.ceil(len(views) ** 0.5)
    empty = -len(views) % columns
    tiles = torch.cat([views, views.new_zeros(empty, *views.shape[1:])])
    return rearrange(tiles, "(rows columns) c h w -> 1 c (rows h) (columns w)", columns=columns)


def _together(engine: DiffusionEngine, work: Callable[[Run], T], *settings: Any) -> T:
    """`work(run)` by all of an engine's processes; where they are lost, by this one alone, as the note says."""
    with torch.cuda.device(engine.device) if engine.device.type == "cuda" else nullcontext():
        if not engine.ranks.lost:
            with suppress(FollowersLost), engine.ranks.job():
                return work(Run(engine, *settings, ranks=engine.ranks))
        return work(Run(engine, *settings, note=f"Only one device is at work: {engine.ranks.lost}"))


def _check_version(engine: DiffusionEngine, request: VideoRequest) -> None:
    if engine.version not in ("", request.version):
        raise UserError(f"The request is for {request.version}, the engine is {engine.version}; load that version.")


def _check_frames(frames: np.ndarray, picture: Image.Image) -> None:
    """Raise UserError for frames of one colour, and for equal frames, unless the picture is of one colour itself."""
    still = all(np.array_equal(frame, frames[0]) for frame in frames[1:])  # ends at the first that differs
    plain, plain_picture = (
        all((row == image[0, 0]).all() for row in image) for image in (frames[0], np.asarray(picture))
    )
    if not still or plain_picture or (len(frames) == 1 and not plain):
        return
    colour = f"came out in one colour, RGB {tuple(frames[0, 0, 0].tolist())}"
    problem = colour if plain else "stands still: all frames are equal"
    raise UserError(
        f"The clip {problem}. The weights are damaged or of another model, or a setting is far out of its usual range: "
        "start from the version's own settings, and try --dtype float32."
    )


def preview(z: Tensor, latents: Tensor, pictures: Tensor) -> np.ndarray:
    """Latents (t, c, h, w) as small pictures, uint8 (t, h, w, 3), by a linear map from latents to RGB.

    The map is a least-squares fit of the conditioning `pictures` (m, 3, f h, f w) to their `latents` (n, >= c, h, w),
    so that no model needs coefficients of its own.
    """
    channels = z.shape[1]
    examples = latents[:1, :channels].float().cpu().flatten(2)[0].T  # (h w, c)
    small = F.interpolate(pictures[:1].float().cpu(), latents.shape[-2:], mode="area").flatten(2)[0].T  # (h w, 3)
    inputs = torch.cat([examples, torch.ones(len(examples), 1)], dim=1)
    ridge = 1e-3 * len(examples) * torch.eye(channels + 1)  # flat pictures have no single answer
    weights = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ small)
    colours = z.float().cpu().movedim(1, -1) @ weights[:-1] + weights[-1]
    return ((colours.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
