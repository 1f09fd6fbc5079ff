"""From a picture to a clip: the one place where conditioning, sampling and decoding are spelled out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sgm.conditioning.camera import CAMERA_MOVES, camera_path, direction, identity_rays, motion_of_bucket, rays, render
from sgm.conditioning.orbit import ORBITS, Orbit, make_orbit, radians
from sgm.config import instantiate_from_config, load_config
from sgm.diffusion.discretization import Discretization, EDMDiscretization
from sgm.diffusion.guidance import GUIDERS, Guider
from sgm.diffusion.sampling import SAMPLERS, Sampler
from sgm.engine import DiffusionEngine
from sgm.errors import UserError, enough_memory
from sgm.media.image import fit_picture
from sgm.media.object import cut_out, place_object
from sgm.plan import GIB, Plan, choose, free_memory
from sgm.versions import VERSIONS, Version

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)
_SCHEDULE = ("sigma_min", "sigma_max", "rho")
OnStep = Callable[["Progress"], None]
Batch = dict[str, Tensor]
FITS = ("crop", "pad", "object")


@dataclass(frozen=True)
class VideoRequest:
    """What to make. None stands for the version's default; once built, every field is concrete and checked.

    frames, height, width (pixels), steps: whole numbers. fps: frames a second, played and told to the model (as
    fps - 1). motion_bucket: 0 to 511; higher moves more. cond_aug: standard deviation of the noise on the conditioning
    picture, 0 to 1. sampler, guider: keys of SAMPLERS and GUIDERS; guidance goes from min_guidance to max_guidance over
    the frames as the guider says. decode_chunk: frames decoded at once; fewer take less memory, for the same picture.
    camera: one of CAMERA_MOVES, for versions that take one. fit: one of FITS; "object" cuts the object out and centres
    it on white, its longer side `image_frame_ratio` of the frame. sv3d_p: `elevation` in degrees, and `orbit`, one of
    ORBITS; for "list" `elevations` and `azimuths` in degrees, one a frame, the last of them the input view.
    sigma_min, sigma_max, rho: the noise schedule. s_churn, eta, order: of the samplers that have them among their
    `options`.
    Raises UserError, saying what was given and what was expected.
    """

    version: str = "svd_tiny"
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    fps: int | None = None
    motion_bucket: int | None = None
    cond_aug: float | None = None
    seed: int = 23
    sampler: str | None = None
    guider: str | None = None
    min_guidance: float | None = None
    max_guidance: float | None = None
    decode_chunk: int | None = None
    camera: str = "auto"
    elevation: float = 10.0
    orbit: str = "same"
    elevations: tuple[float, ...] = ()
    azimuths: tuple[float, ...] = ()
    image_frame_ratio: float = 0.9
    fit: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float | None = None
    s_churn: float = 0.0
    eta: float = 1.0
    order: int = 4

    def __post_init__(self) -> None:
        _one_of("version", self.version, VERSIONS)
        for entry in fields(self):
            if entry.default is None and getattr(self, entry.name) is None:
                object.__setattr__(self, entry.name, self._default(entry.name))
        _one_of("sampler", self.sampler, SAMPLERS)
        _one_of("guider", self.guider, GUIDERS)
        _one_of("camera", self.camera, CAMERA_MOVES)
        _one_of("fit", self.fit, FITS)
        _one_of("orbit", self.orbit, ORBITS)
        limits = {
            "frames": (1, 200),
            "steps": (1, 1000),
            "fps": (1, 120),
            "motion_bucket": (0, 511),
            "seed": (0, 2**31 - 1),
            "decode_chunk": (1, 200),
            "order": (1, 8),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise UserError(f"{name} must be a whole number from {low} to {high}; got {value!r}.")
        for name, (low, high) in {
            "cond_aug": (0, 1),
            "min_guidance": (0, 100),
            "max_guidance": (0, 100),
            "elevation": (-90, 90),
            "image_frame_ratio": (0.1, 1),
            "s_churn": (0, 100),
            "eta": (0, 1),
            "sigma_min": (1e-4, 1e4),
            "sigma_max": (1e-4, 1e4),
            "rho": (1, 100),
        }.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise UserError(f"{name} must be a number from {low} to {high}; got {value!r}.")
        low, high = float(self.min_guidance or 0), float(self.max_guidance or 0)
        if low > high:
            raise UserError(f"min_guidance must not exceed max_guidance; got {low} and {high}.")
        low, high = float(self.sigma_min or 0), float(self.sigma_max or 0)
        if low >= high:
            raise UserError(f"sigma_max must exceed sigma_min; got {high} and {low}.")
        for name in ("height", "width"):
            _check_size(name, getattr(self, name), self.row.multiple)
        self._check_orbit()

    def _check_orbit(self) -> None:
        for name in ("elevations", "azimuths"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)):
                raise UserError(f"{name} must be a list of degrees, one a frame; got {value!r}.")
            object.__setattr__(self, name, tuple(value))
        if self.orbit != "same" and self.version != "sv3d_p":
            raise UserError(f"orbit is {self.orbit!r}, but {self.version} has no choice of orbits: take sv3d_p.")
        if self.orbit == "list" and not (self.elevations or self.azimuths):
            raise UserError("orbit is 'list', but neither elevations nor azimuths are given: give one degree a frame.")
        if self.orbit != "list" and (self.elevations or self.azimuths):
            raise UserError(f"elevations and azimuths belong to orbit 'list'; got orbit {self.orbit!r}.")
        orbit_of(self)

    @property
    def row(self) -> Version:
        return VERSIONS[self.version]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), pixels."""
        return _int(self.width), _int(self.height)

    def _default(self, name: str) -> Any:
        if name == "decode_chunk":
            return self.frames
        return getattr(_own_schedule(self.version) if name in _SCHEDULE else self.row, name)

    def settings(self) -> dict[str, Any]:
        """Every field, as JSON can hold it; `VideoRequest(**settings)` gives the same request back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def orbit_of(request: VideoRequest) -> Orbit:
    """A request's elevations and azimuths in degrees, one a frame; the last are the input view's."""
    elevation = float(request.elevation) if request.version == "sv3d_p" else 0.0
    frames = _int(request.frames)
    return make_orbit(request.orbit, frames, elevation, request.seed, request.elevations, request.azimuths)


def prepare_picture(image: Image.Image, request: VideoRequest, scale: int = 1) -> Image.Image:
    """The picture as the model sees it, RGB of the request's size, or `scale` times as large.

    For a fit of "object", transparency says what the object is; a picture without any goes through rembg.
    """
    if request.fit == "object":
        width, height = request.size
        return place_object(cut_out(image), scale * width, scale * height, request.image_frame_ratio)
    return fit_picture(image, *request.size, mode=str(request.fit), scale=scale)


@dataclass(frozen=True)
class Progress:
    """Step `step` of `total` of a phase ("encode", "sample", "decode"; "load", before them) is done.

    preview: in "sample", draws the middle frame as it stands, uint8 (h, w, 3) at the latents' size. note: how memory is
    spent, where there is a choice.
    """

    phase: str
    step: int
    total: int
    note: str = field(default="", compare=False)
    preview: Callable[[], np.ndarray] | None = field(default=None, compare=False, repr=False)

    @property
    def fraction(self) -> float:
        """Share of the whole job that is done, 0 to 1, with the phases' usual shares of the time."""
        start, share = {"load": (0.0, 0.0), "encode": (0.0, 0.03), "sample": (0.03, 0.77), "decode": (0.8, 0.2)}[
            self.phase
        ]
        return start + share * self.step / self.total


@dataclass(frozen=True)
class Clip:
    """frames: uint8 (t, height, width, 3); fps; settings: what made it."""

    frames: np.ndarray
    fps: int
    settings: dict[str, Any]


@enough_memory()
@torch.inference_mode()
def generate(
    engine: DiffusionEngine,
    request: VideoRequest,
    image: Image.Image,
    on_step: OnStep | None = None,
    check: Callable[[], None] | None = None,
    low_memory: bool = False,
) -> Clip:
    """Turn a picture into a clip. `on_step` is told of progress; `check` is called before every operation on tensors.

    What either raises ends the job, in whichever phase, and reaches the caller. All noise comes from one generator on
    the CPU, seeded by the request, so one seed is one video. On a GPU the fastest plan is taken that fits into its free
    memory (`low_memory`: the smallest). One that does not fit after all gives way to the next, and nothing that has
    been computed is lost.
    Raises UserError for a request that is for another version than the engine's, and where no plan finds the memory.
    """
    if engine.version not in ("", request.version):
        raise UserError(f"The request is for {request.version}, the engine is {engine.version}; load that version.")
    # Entered always: under it some of torch's own layers take another path, and one seed is to be one video.
    try:
        with _Checked(check or (lambda: None)):
            return _generate(engine, request, image, on_step or (lambda progress: None), low_memory)
    finally:
        engine.network.forget()


def _generate(
    engine: DiffusionEngine, request: VideoRequest, image: Image.Image, report: OnStep, low_memory: bool
) -> Clip:
    frames, device = _int(request.frames), engine.device
    generator = torch.Generator().manual_seed(request.seed)
    sampler = build_sampler(engine, request)
    budget = _Budget(engine, request, sampler.guider.needs_uc, low_memory)
    report(Progress("encode", 0, 1, budget.note))
    settings, picture = request.settings(), None
    if request.row.sv3d:  # once: its background may have to be removed
        image = picture = prepare_picture(image, request)
        request = replace(request, fit="crop")
    batch = get_batch(engine, request, image, generator)
    inputs = {key: value.to(device) for key, value in batch.items()}
    c, uc = budget.run("conditioner", lambda: engine.conditioner.get_unconditional_conditioning(inputs))
    c, uc = (_per_frame(cond, frames) for cond in (c, uc))
    report(Progress("encode", 1, 1))

    shape = (frames, engine.latent_channels, *(_int(side) // engine.factor for side in (request.height, request.width)))
    x = torch.randn(shape, generator=generator).to(device)
    middle = x[frames // 2]

    def denoise(x: Tensor, sigma: Tensor, cond: Batch) -> Tensor:
        nonlocal middle
        denoised = budget.run("network", lambda: engine.denoise(x, sigma, cond, num_video_frames=frames))
        middle = denoised[frames // 2 - frames]  # the conditional estimates stand last
        return denoised

    def preview() -> np.ndarray:
        return _preview(middle / engine.scale_factor, c["concat"], batch["cond_frames"])

    z = sampler(
        denoise,
        x,
        c,
        uc,
        num_steps=request.steps,
        noise=lambda like: torch.randn(like.shape, generator=generator).to(like),
        on_step=lambda i, n: report(Progress("sample", i, n, budget.note, preview)),
    )
    engine.network.forget()
    chunk = _int(request.decode_chunk)

    def tell(done: int, of: int) -> None:
        report(Progress("decode", done, of, budget.note))

    video = budget.run("autoencoder", lambda: _to_bytes(engine.decode_clip(z, chunk, tell)).cpu()).numpy()
    if picture is not None:
        video[-1] = np.asarray(picture)  # the last frame is the input view, which is known
    return Clip(video, _int(request.fps), settings)


class _Checked(TorchFunctionMode):
    """Calls `check` before every operation on tensors of this thread, so that a job can be stopped in any phase."""

    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self.check = check

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.check()
        return func(*args, **(kwargs or {}))


class _Budget:
    """Runs each part of the engine as its plan for memory says, and a smaller plan where memory runs out."""

    def __init__(self, engine: DiffusionEngine, request: VideoRequest, guided: bool, low: bool) -> None:
        self.engine = engine
        self.clip = _int(request.frames), _int(request.height), _int(request.width), guided
        self.note = ""
        self.plan: Plan | None = None
        room = free_memory(engine.device)
        if room is not None:
            self.plan = choose(engine, *self.clip, room, low)
            self.note = f"GPU memory: {self.plan} of {room / GIB:.1f} GiB."
            logger.info(self.note)

    def run(self, part: str, work: Callable[[], Any]) -> Any:
        while True:
            try:
                if self.plan is not None:
                    self.plan.apply(self.engine, part)
                return work()
            except torch.cuda.OutOfMemoryError:
                if self.plan is None or self.plan.by_turns:
                    raise
            # Only here nothing that failed is held any more.
            self.plan = choose(self.engine, *self.clip, None, low=True)
            self.note = f"GPU memory ran out; from here on {self.plan}."
            logger.warning(self.note)
            self.engine.network.forget()
            torch.cuda.empty_cache()


def _to_bytes(video: Tensor) -> Tensor:
    """(t, 3, h, w) in [-1, 1] -> uint8 (t, h, w, 3)."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def _preview(z: Tensor, latents: Tensor, pictures: Tensor) -> np.ndarray:
    """A latent (c, h, w) as a small picture, uint8 (h, w, 3), by the linear map that suits the conditioning picture.

    The map from the picture's `latents` (n, >= c, h, w) to the picture (m, 3, f h, f w) is a least-squares fit, so that
    it needs no figures of any model's own.
    """
    channels = len(z)
    known = latents[:1, :channels].float().cpu().flatten(2)[0].T  # (h w, c)
    small = F.interpolate(pictures[:1].float().cpu(), latents.shape[-2:], mode="area").flatten(2)[0].T  # (h w, 3)
    inputs = torch.cat([known, torch.ones(len(known), 1)], dim=1)
    ridge = 1e-3 * len(known) * torch.eye(channels + 1)  # flat pictures have no single answer
    weights = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ small)
    colours = z.float().cpu().flatten(1).T @ weights[:-1] + weights[-1]
    return ((colours.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).view(*z.shape[1:], 3).numpy()


def build_sampler(engine: DiffusionEngine, request: VideoRequest) -> Sampler:
    """The request's sampler and guider on the schedule that the engine's YAML names (EDM 0.002 to 700 by default)."""
    config = ((engine.sampler_config or {}).get("params") or {}).get("discretization_config")
    schedule: Discretization = instantiate_from_config(config) if config else EDMDiscretization(sigma_max=700.0)
    return _sampler(schedule, request)


def curves(request: VideoRequest) -> tuple[list[float], list[float]]:
    """What a request will do, before any of it is done: the sigma of each step, the guidance scale of each frame."""
    sampler = _sampler(_own_schedule(request.version), request)
    scales = sampler.guider.scales()
    return (
        sampler.discretization(_int(request.steps), do_append_zero=False).tolist(),
        scales.expand(_int(request.frames)).tolist(),
    )


def _sampler(schedule: Discretization, request: VideoRequest) -> Sampler:
    wanted = {name: getattr(request, name) for name in _SCHEDULE}
    if wanted != {name: getattr(_own_schedule(request.version), name) for name in _SCHEDULE}:
        schedule = type(schedule)(**wanted)
    guider: Guider = GUIDERS[str(request.guider)](
        float(request.min_guidance or 0), float(request.max_guidance or 0), _int(request.frames)
    )
    sampler = SAMPLERS[str(request.sampler)]
    options = {name: getattr(request, name) for name in sampler.options}
    return sampler(schedule, guider_config=guider, **options)


@cache
def _own_schedule(version: str) -> EDMDiscretization:
    """The schedule that a version's YAML names."""
    params = load_config(VERSIONS[version].config_path)["model"]["params"]["sampler_config"]["params"]
    return instantiate_from_config(params["discretization_config"])


def get_batch(engine: DiffusionEngine, request: VideoRequest, image: Image.Image, generator: torch.Generator) -> Batch:
    """The conditioner's inputs, by name.

    Pictures are (1, 3, h, w) in [-1, 1], scalars (t,); where a camera moves, `cond_frames` is what it sees of the
    picture, (t, 3, h, w), and `camera` its ray maps, (t, 2, h / f, w / f).
    """
    frames = _int(request.frames)
    pixels = _pixels(prepare_picture(image, request))
    polars, azimuths = radians(orbit_of(request))
    batch = {
        "fps_id": torch.full((frames,), float(_int(request.fps) - 1)),
        "motion_bucket_id": torch.full((frames,), float(_int(request.motion_bucket))),
        "cond_aug": torch.full((frames,), float(request.cond_aug or 0)),
        "polars_rad": polars,
        "azimuths_rad": azimuths,
        "cond_frames_without_noise": pixels,
        "cond_frames": pixels,
    }
    if request.row.camera:
        h, w = (side // engine.factor for side in pixels.shape[-2:])
        motion = torch.tensor([float(motion_of_bucket(_int(request.motion_bucket)))])
        move = direction(request.camera, generator=generator)
        path = camera_path(move, motion, frames, request.height or h, request.width or w)[0]
        batch["camera"] = rays(path, identity_rays(h, w))
        batch["cond_frames"] = render(_pixels(prepare_picture(image, request, scale=2)), path)
    noise = torch.randn(batch["cond_frames"].shape, generator=generator)
    batch["cond_frames"] = batch["cond_frames"] + float(request.cond_aug or 0) * noise
    keys = set(engine.conditioner.input_keys)
    return {key: value for key, value in batch.items() if key in keys}


def _pixels(picture: Image.Image) -> Tensor:
    """(1, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


def _per_frame(cond: dict[str, Tensor], frames: int) -> dict[str, Tensor]:
    """One row a frame: those given once a clip are repeated."""
    return {key: value if len(value) == frames else value.repeat_interleave(frames, 0) for key, value in cond.items()}


def _one_of(name: str, value: Any, known: Any) -> None:
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}; got {value!r}.")


def _check_size(name: str, value: Any, multiple: int) -> None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 4096 and value % multiple == 0:
        return
    low = max(value // multiple, 1) * multiple if isinstance(value, int) else multiple
    high = low + multiple
    near = f"{low} or {high}" if isinstance(value, int) and 0 < value < 4096 else f"{multiple} to 4096"
    raise UserError(f"{name} must be a multiple of {multiple} (nearest: {near}); got {value!r}.")


def _int(value: int | None) -> int:
    """For the type checker: fields that may be None before `__post_init__` are not afterwards."""
    assert value is not None
    return value
