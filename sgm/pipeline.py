"""From a picture to a clip: the one place where conditioning, sampling and decoding are spelled out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sgm.conditioning.camera import CAMERA_MOVES, camera_path, direction, identity_rays, motion_of_bucket, rays, render
from sgm.conditioning.orbit import ORBITS, Orbit, make_orbit, radians
from sgm.config import instantiate_from_config
from sgm.diffusion.discretization import Discretization, EDMDiscretization
from sgm.diffusion.guidance import GUIDERS, Guider
from sgm.diffusion.sampling import SAMPLERS, Sampler
from sgm.engine import DiffusionEngine
from sgm.errors import UserError
from sgm.media.image import fit_picture
from sgm.media.object import cut_out, place_object
from sgm.memory import kept_memory
from sgm.versions import VERSIONS, Version

if TYPE_CHECKING:
    from PIL import Image

OnStep = Callable[["Progress"], None]
Batch = dict[str, Tensor]
FITS = ("crop", "pad", "object")


@dataclass(frozen=True)
class VideoRequest:
    """What to make. None stands for the version's default; once built, every field is concrete and checked.

    frames, height, width (pixels), steps: whole numbers. fps: frames a second, played and told to the model (as
    fps - 1). motion_bucket: 0 to 511; higher moves more. cond_aug: standard deviation of the noise on the conditioning
    picture, 0 to 1. sampler, guider: keys of SAMPLERS and GUIDERS; guidance goes from min_guidance to max_guidance over
    the frames as the guider says. decode_chunk: frames decoded at once, the temporal decoder's window. camera: one of
    CAMERA_MOVES, for versions that take one. fit: one of FITS; "object" cuts the object out and centres it on white,
    its longer side `image_frame_ratio` of the frame. sv3d_p: `elevation` in degrees, and `orbit`, one of ORBITS; for
    "list" `elevations` and `azimuths` in degrees, one a frame, the last of them the input view.
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

    def __post_init__(self) -> None:
        _one_of("version", self.version, VERSIONS)
        for field in fields(self):
            if field.default is None and getattr(self, field.name) is None:
                default = self.frames if field.name == "decode_chunk" else getattr(self.row, field.name)
                object.__setattr__(self, field.name, default)
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
        }.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise UserError(f"{name} must be a number from {low} to {high}; got {value!r}.")
        low, high = float(self.min_guidance or 0), float(self.max_guidance or 0)
        if low > high:
            raise UserError(f"min_guidance must not exceed max_guidance; got {low} and {high}.")
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

    def settings(self) -> dict[str, Any]:
        """Every field, as JSON has it; `VideoRequest(**settings)` gives the same request back."""
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
    width, height = (scale * side for side in request.size)
    if request.fit == "object":
        return place_object(cut_out(image), width, height, request.image_frame_ratio)
    return fit_picture(image, width, height, mode=str(request.fit))


@dataclass(frozen=True)
class Progress:
    """Step `step` of `total` of a phase ("encode", "sample", "decode") is done."""

    phase: str
    step: int
    total: int

    @property
    def fraction(self) -> float:
        """Share of the whole job that is done, 0 to 1, with the phases' usual shares of the time."""
        start, share = {"encode": (0.0, 0.03), "sample": (0.03, 0.77), "decode": (0.8, 0.2)}[self.phase]
        return start + share * self.step / self.total


@dataclass(frozen=True)
class Clip:
    """frames: uint8 (t, height, width, 3); fps; settings: what made it."""

    frames: np.ndarray
    fps: int
    settings: dict[str, Any]


@kept_memory()
@torch.inference_mode()
def generate(engine: DiffusionEngine, request: VideoRequest, image: Image.Image, on_step: OnStep | None = None) -> Clip:
    """Turn a picture into a clip. `on_step` is told of progress; what it raises ends the job and reaches the caller.

    All noise comes from one generator on the CPU, seeded by the request, so one seed is one video.
    Raises UserError for a request that is for another version than the engine's.
    """
    if engine.version not in ("", request.version):
        raise UserError(f"The request is for {request.version}, the engine is {engine.version}; load that version.")
    report = on_step or (lambda progress: None)
    frames, device = _int(request.frames), engine.device
    generator = torch.Generator().manual_seed(request.seed)
    report(Progress("encode", 0, 1))
    settings = request.settings()
    if request.row.sv3d:  # once: its background may have to be removed
        image = picture = prepare_picture(image, request)
        request = replace(request, fit="crop")
    batch = get_batch(engine, request, image, generator)
    c, uc = engine.conditioner.get_unconditional_conditioning({k: v.to(device) for k, v in batch.items()})
    c, uc = (_per_frame(cond, frames) for cond in (c, uc))
    report(Progress("encode", 1, 1))

    shape = (frames, engine.latent_channels, *(_int(side) // engine.factor for side in (request.height, request.width)))
    x = torch.randn(shape, generator=generator).to(device)
    sampler = build_sampler(engine, request)
    z = sampler(
        lambda x, sigma, cond: engine.denoise(x, sigma, cond, num_video_frames=frames),
        x,
        c,
        uc,
        num_steps=request.steps,
        noise=lambda like: torch.randn(like.shape, generator=generator).to(like),
        on_step=lambda i, n: report(Progress("sample", i, n)),
    )

    chunks = z.split(_int(request.decode_chunk))
    decoded = []
    for i, chunk in enumerate(chunks):
        video = engine.decode(chunk, len(chunk)).clamp(-1, 1)
        decoded.append(((video + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
        report(Progress("decode", i + 1, len(chunks)))
    video = torch.cat(decoded).numpy()
    if request.row.sv3d:
        video[-1] = np.asarray(picture)  # the last frame is the input view, which is known
    return Clip(video, _int(request.fps), settings)


def build_sampler(engine: DiffusionEngine, request: VideoRequest) -> Sampler:
    """The request's sampler and guider on the schedule that the engine's YAML names (EDM 0.002 to 700 by default)."""
    guider: Guider = GUIDERS[str(request.guider)](
        float(request.min_guidance or 0), float(request.max_guidance or 0), _int(request.frames)
    )
    config = ((engine.sampler_config or {}).get("params") or {}).get("discretization_config")
    schedule: Discretization = instantiate_from_config(config) if config else EDMDiscretization(sigma_max=700.0)
    return SAMPLERS[str(request.sampler)](schedule, guider_config=guider)


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
        batch["camera"] = identity_rays(h, w).expand(frames, -1, -1, -1) * float("nan")
        if request.camera != "free":
            motion = torch.tensor([float(motion_of_bucket(_int(request.motion_bucket)))])
            move = direction(request.camera, generator=generator)
            path = camera_path(move, motion, frames, request.height or h, request.width or w, torch.tensor([0.3]))[0]
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
