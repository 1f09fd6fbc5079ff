"""VideoRequest: the settings of one video, concrete and checked, and the table of its fields."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from sgm.config import instantiate_from_config, load_config
from sgm.diffusion.discretization import SCHEDULES, Discretization
from sgm.diffusion.guidance import GUIDERS, Guider
from sgm.diffusion.sampling import ALIASES, SAMPLERS, Sampler
from sgm.errors import UserError, shown
from sgm.families import FAMILIES, FITS, ImageFamily, ViewsFamily
from sgm.fields import Field, is_number
from sgm.loras import LORA
from sgm.speeds import SHARES, SPEEDS, Speed
from sgm.versions import ALL_VERSIONS, DEFAULT_VERSION, VERSIONS, VIEW_VERSIONS, Version

if TYPE_CHECKING:
    from PIL import Image

_SIZE = "Pixels, a multiple of 64 (svd_tiny: of 32). The size of the training works best."
# The fields that every model version takes; `all_fields` adds those of families, fits, samplers, guiders and schedules.
COMMON: tuple[Field, ...] = (
    Field("seed", int, "Seed", "The same seed and settings give the same clip.", 0, 2**32 - 2, 23, step=1),
    Field(
        "fps", int, "Frames a second", "The clip's frame rate; SVD is conditioned on it.", 1, 120, usual=(5, 30), step=1
    ),
    Field(
        "speed",
        str,
        "Speed",
        "What the clip may lose for time. All but exact draw a somewhat different clip. Of the exact clip's time "
        f"(svd_xt, an H200): {SHARES}. fp8 is for Hopper cards; elsewhere its products are exact.",
        default="exact",
        choices=lambda: SPEEDS,
    ),
    Field("steps", int, "Steps", "Sampling steps. More take longer and draw finer.", 1, 1000, usual=(1, 200), step=1),
    Field("frames", int, "Frames", "How many frames the clip has.", 1, 200, usual=(1, 60), step=1),
    Field("width", int, "Width", _SIZE, 1, 4096, unit="pixels"),
    Field("height", int, "Height", _SIZE, 1, 4096, unit="pixels"),
    Field("fit", str, "Frame", "How the picture is brought to the clip's shape.", choices=lambda: FITS),
    Field(
        "cond_aug",
        float,
        "Conditioning noise",
        "Noise on the picture before the model sees it. Higher drifts from the picture.",
        0,
        1,
        step=0.01,
    ),
    Field(
        "sampler",
        str,
        "Sampler",
        "How a step goes from noise to picture.",
        choices=lambda: SAMPLERS,
        aliases=ALIASES,
    ),
    Field(
        "guider",
        str,
        "Guidance",
        "How strongly each frame is held to the picture, from the first to the last.",
        choices=lambda: GUIDERS,
    ),
    Field("schedule", str, "Noise schedule", "The noise level of each step.", choices=lambda: SCHEDULES),
    Field(
        "decode_chunk",
        int,
        "Decoded at once",
        "Frames decoded at once. Fewer take less memory; the picture stays the same.",
        1,
        200,
        usual=(1, 60),
        step=1,
    ),
    LORA,
)


def all_fields() -> dict[str, Field]:
    """Every field by its name: the common ones, then those of families, fits, samplers, guiders and schedules."""
    by_name: dict[str, Field] = {}
    for field, *_ in _fields_with_owners():
        by_name.setdefault(field.name, field)
    return by_name


def _fields_with_owners(versions: Mapping[str, Version] = ALL_VERSIONS) -> Iterator[tuple[Field, str, str]]:
    """Every field, once for each owner: a version, as in ("version", "svd"), or a choice, as in ("fit", "crop")."""
    yield from _version_fields(versions)
    choosers = {field.name: field.choices for field, *_ in _version_fields(versions) if field.choices}
    for chooser, choices in choosers.items():
        for name, choice in choices().items():
            yield from ((field, chooser, name) for field in choice.options.values())


def _version_fields(versions: Mapping[str, Version]) -> Iterator[tuple[Field, str, str]]:
    for version in versions.values():
        yield from ((field, "version", version.name) for field in (*COMMON, *FAMILIES[version.family].fields))


@dataclass(frozen=True, init=False, repr=False)
class VideoRequest:
    """The settings of one video. Fields that are left out get the version's default; every value is checked.

    `VideoRequest(version, **choices)` takes each field of `all_fields()` that the version, its fit, sampler, guider and
    schedule have. All fields are attributes; `options` holds those that not every version has, as `motion_bucket`.
    A list of `sigmas` says how many steps there are; a zero at its end is left out.
    Raises UserError, saying what was given and what was expected, or which choices have a field that these lack.
    """

    versions: ClassVar[Mapping[str, Version]] = VERSIONS  # that it can be of

    version: str
    seed: int
    fps: int
    speed: str
    steps: int
    frames: int
    width: int
    height: int
    fit: str
    cond_aug: float
    sampler: str
    guider: str
    schedule: str
    decode_chunk: int
    lora: str
    _options: tuple[tuple[str, Any], ...]

    def __init__(self, /, version: str = DEFAULT_VERSION, **choices: Any) -> None:
        self._fill(version, choices, {})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"

    @classmethod
    def fitting(cls, version: str, values: Mapping[str, Any]) -> VideoRequest:
        """A request with those of the values whose fields it has. Raises UserError where one of these is wrong."""
        request = object.__new__(cls)
        request._fill(version, {}, values)
        return request

    def _fill(self, version: str, choices: Mapping[str, Any], optional: Mapping[str, Any]) -> None:
        """Resolve and check all values. optional: values that are ignored where the request has no such field."""
        if not isinstance(version, str) or version not in self.versions:
            raise UserError(f"version must be one of {', '.join(self.versions)}; got {shown(version)}.")
        values: dict[str, Any] = {"version": version}
        for field in _fields_for(version, values):
            value = next((source[field.name] for source in (choices, optional) if field.name in source), None)
            if field.name in choices or value is not None:
                if field.unit == "pixels":
                    _check_size(field, value, self.versions[version].multiple)
                values[field.name] = field.check(value)
            else:
                values[field.name] = _default(field, values)
        for name in choices:
            if name not in values:
                raise UserError(_refusal(name, values))
        if (sigmas := values.get("sigmas")) is not None:
            if sigmas[-1:] == (0.0,):  # where sampling ends in any case
                values["sigmas"] = sigmas = sigmas[:-1]
            if "steps" not in choices:
                values["steps"] = len(sigmas)
        attributes = {entry.name for entry in fields(VideoRequest)}
        for name in values.keys() & attributes:
            object.__setattr__(self, name, values[name])
        object.__setattr__(self, "_options", tuple(entry for entry in values.items() if entry[0] not in attributes))
        self._check()

    def _check(self) -> None:
        options = self.options
        low, high = options.get("min_guidance"), options.get("max_guidance")
        if low is not None and high is not None and low > high:
            raise UserError(f"min_guidance must not exceed max_guidance; got {low} and {high}.")
        self.family.check(self)
        self._check_ends()
        try:
            self.build_guider()
            self.build_sampler()
            sigmas = self.build_schedule()(self.steps)
        except ValueError as error:  # of a guider's, a sampler's or a schedule's constructor
            raise UserError(str(error)) from None
        if not (sigmas[:-1] > sigmas[1:]).all():
            raise UserError(
                f"This schedule gives {self.steps} sigmas of which some are the same in float32. Take fewer steps, a "
                "wider range or a higher rho."
            )

    def _check_ends(self) -> None:
        """Raise UserError for a clip between two pictures whose version or guidance does not go with it."""
        if not self.bounded:
            return
        if not self.family.bounded:
            versions = [name for name, version in VERSIONS.items() if FAMILIES[version.family].bounded]
            raise UserError(
                f"{self.version} takes no last picture, and makes no loop: sampler {self.sampler!r} belongs to "
                f"{_joined(versions)}."
            )
        if self.frames < 2:
            raise UserError(f"frames must be 2 or more with sampler {self.sampler!r}, the first and the last; got 1.")
        if self.guider not in SAMPLERS[self.sampler].guiders:
            raise UserError(
                f"guider must be {' or '.join(SAMPLERS[self.sampler].guiders)} with sampler {self.sampler!r}; got "
                f"{self.guider!r}: between two pictures all frames and steps are guided alike."
            )

    def __getattr__(self, name: str) -> Any:
        for option, value in self.__dict__.get("_options", ()):
            if option == name:
                return value
        raise AttributeError(f"This request of {self.__dict__.get('version')} has no {name!r}.")

    @property
    def options(self) -> dict[str, Any]:
        """The values of the fields that its family, fit, sampler, guider and schedule have beside the common ones."""
        return dict(self._options)

    @property
    def model(self) -> Version:
        """The model version with its defaults and weights."""
        return self.versions[self.version]

    @property
    def family(self) -> ImageFamily:
        """The version's family: how it prepares pictures and conditions."""
        return FAMILIES[self.model.family]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), pixels."""
        return self.width, self.height

    @property
    def rows(self) -> int:
        """How many frames the network evaluates together."""
        return self.frames

    @property
    def bounded(self) -> bool:
        """Whether the clip is made between two pictures: the first and a last one, or the first one twice, a loop."""
        return SAMPLERS[self.sampler].bounded

    @property
    def takes_last(self) -> bool:
        """Whether it takes a last picture beside the first."""
        return self.bounded and self.options.get("ends") == "last"

    @property
    def needs_uc(self) -> bool:
        """Whether the network estimates without the picture, too, at some step or at all."""
        return self.bounded or self.build_guider().needs_uc

    def fields(self) -> dict[str, Field]:
        """Its fields by name: the common ones, then its family's, fit's, sampler's, guider's and schedule's."""
        return {field.name: field for field in _fields_for(self.version, self.settings())}

    def settings(self) -> dict[str, Any]:
        """Every value by its field's name, as JSON can hold it; `VideoRequest(**settings)` gives the same request."""
        attributes = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "_options"}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in (attributes | self.options).items()}

    def choices(self) -> dict[str, Any]:
        """The values that differ from their defaults."""
        values = self.settings()
        defaults = {name: _default(field, values) for name, field in self.fields().items()}
        return {name: getattr(self, name) for name in defaults if getattr(self, name) != defaults[name]}

    def replace(self, /, **choices: Any) -> VideoRequest:
        """The request with other choices. Values at their defaults take the new defaults; fields it loses are dropped.

        Raises UserError as the constructor does.
        """
        version = choices.pop("version", self.version)
        if not isinstance(version, str) or version not in ALL_VERSIONS:
            raise UserError(f"version must be one of {', '.join(ALL_VERSIONS)}; got {shown(version)}.")
        request = object.__new__(request_class(version))
        request._fill(version, choices, {name: v for name, v in self.choices().items() if name not in choices})
        return request

    __replace__ = replace  # copy.replace

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """The sigma of each evaluation of the network, in order; with guidance, one evaluates both conditions."""
        return tuple(self.build_sampler().levels(self.build_schedule()(self.steps)))

    @property
    def evaluations(self) -> int:
        """How often the whole clip is denoised by the network; once where guidance evaluates both conditions."""
        return len(self.levels)

    @property
    def speed_of(self) -> Speed:
        """What the clip may lose for time."""
        return SPEEDS[self.speed]

    @property
    def guided_evaluations(self) -> int:
        """How many of the evaluations estimate without the picture, too, and so take twice as long."""
        if self.bounded:
            return self.evaluations
        guider = self.build_guider()
        return sum(map(guider.guides, self.levels)) if guider.needs_uc else 0

    @property
    def total_steps(self) -> int:
        """Steps of all sampling runs that the work takes."""
        return self.steps

    @property
    def notes(self) -> list[str]:
        """Sentences about choices that can be made but hardly are meant."""
        notes = [note] if (note := self.model.size_note(*self.size)) else []
        first = float(self.build_schedule()(self.steps)[0])
        own = float(_own_schedule(self.version)(self.model.steps)[0])
        if not 0.5 <= first / own <= 2:
            notes.append(
                f"This schedule starts from sigma {first:.4g}, {self.model.title}'s own from {own:.4g}, for which its "
                "network was trained: the clip may be poor."
            )
        if self.build_guider().needs_uc and not self.guided_evaluations:
            notes.append("No step is at a noise level at which there is guidance: it is off.")
        return notes

    def build_schedule(self) -> Discretization:
        """The noise schedule; what is no option, such as the sigmas of a distillation, is of the version's YAML."""
        own, schedule = _schedule_config(self.version), SCHEDULES[self.schedule]
        params = own.get("params", {}) if type(_own_schedule(self.version)) is schedule else {}
        return schedule(**{**params, **self._parameters(schedule.options)})

    def build_guider(self) -> Guider:
        guider = GUIDERS[self.guider]
        return guider.of(self.rows, **self._parameters(guider.options))

    def build_sampler(self) -> Sampler:
        sampler = SAMPLERS[self.sampler]
        return sampler(**self._parameters(sampler.options))

    def _parameters(self, options: Mapping[str, Field]) -> dict[str, Any]:
        return {parameter: getattr(self, field.name) for parameter, field in options.items()}


class ViewsRequest(VideoRequest):
    """The settings of one clip seen by several cameras: a `VideoRequest` of one of VIEW_VERSIONS."""

    versions = VIEW_VERSIONS

    @property
    def family(self) -> ViewsFamily:  # pyright: ignore[reportIncompatibleMethodOverride]
        family = FAMILIES[self.model.family]
        assert isinstance(family, ViewsFamily)
        return family

    @property
    def rows(self) -> int:
        return self.model.times * self.model.num_views

    @property
    def total_steps(self) -> int:
        return self.steps * len(self.family.passes(self)) + (self.first.steps if self.first else 0)

    def stage(self, step: int) -> str:
        """Where the work stands at its step `step` of `total_steps`, counted from 1, for people."""
        before = self.first.steps if self.first else 0
        if step <= before:
            return f"Orbit of the first frame, step {step} of {before}"
        number, done = divmod(step - before - 1, self.steps)
        return f"{self.family.pass_title(self, number)}, step {done + 1} of {self.steps}"

    @property
    def first(self) -> VideoRequest | None:
        """The request of the orbit around the first frame's object with which a version begins; None where none does.

        Its picture is the first frame as `family.prepare_clip` gives it.
        """
        if not self.model.begins_with:
            return None
        same = {name: getattr(self, name) for name in ("seed", "steps", "width", "height", "cond_aug")}
        return VideoRequest(self.model.begins_with, fit="crop", **same)


def request_class(version: object) -> type[VideoRequest]:
    """The class of a version's requests."""
    return ViewsRequest if isinstance(version, str) and version in ViewsRequest.versions else VideoRequest


def prepare_picture(image: Image.Image, request: VideoRequest, scale: int = 1) -> Image.Image:
    """The picture as the model sees it, RGB of the request's size, or `scale` times as large.

    For a fit of "object", the object is where the picture is opaque; of a picture without transparency, rembg removes
    the background. Raises PictureError for a picture that cannot be used.
    """
    return request.family.prepare(image, request).frame(scale)


def _fields_for(version: str, values: Mapping[str, Any]) -> Iterator[Field]:
    """The fields of a version, then those of its fit, sampler, guider, schedule and orbit, held by `values` by then."""
    queue = [*COMMON, *FAMILIES[ALL_VERSIONS[version].family].fields]
    for field in queue:  # grows by the options of what is chosen
        yield field
        if field.choices:
            queue += field.choices()[values[field.name]].options.values()


def _default(field: Field, values: Mapping[str, Any]) -> Any:
    """A field's default, given the values of the fields before it."""
    version = ALL_VERSIONS[values["version"]]
    sampler = SAMPLERS.get(values.get("sampler", ""))
    if sampler and field.name in sampler.defaults:
        return sampler.defaults[field.name]
    if field.default is not None:
        return getattr(version, field.name, field.default)
    if field.name == "decode_chunk":
        return values["frames"]
    schedule, speed = _own_schedule(version.name), SPEEDS[values.get("speed", "exact")]
    if field.name == "schedule" and speed.schedule:
        return speed.schedule
    if field.name == "schedule":
        return next(name for name, choice in SCHEDULES.items() if choice is type(schedule))
    if field.name == "sigmas":
        return tuple(float(f"{sigma:.4g}") for sigma in schedule(version.steps, do_append_zero=False).tolist())
    if field.name == "steps":
        own = min(version.steps, speed.steps or version.steps)
        return len(values["sigmas"]) if "sigmas" in values else own
    return getattr(schedule if hasattr(schedule, field.name) else version, field.name)


def default_of(field: Field, version: str) -> Any:
    """A field's value where nothing else is chosen; also of an option that the version's own choices do not have."""
    return _default(field, {"version": version, "frames": ALL_VERSIONS[version].frames})


@cache
def _own_schedule(version: str) -> Discretization:
    """The noise schedule that a version's YAML names."""
    return instantiate_from_config(_schedule_config(version))


@cache
def _schedule_config(version: str) -> dict[str, Any]:
    model = ALL_VERSIONS[version]
    config = load_config(model.config_path)["model"]["params"]["sampler_config"]["params"]["discretization_config"]
    own = {"sigma_max": model.sigma_max} if model.sigma_max else {}
    return {**config, "params": {**config.get("params", {}), **own}}


def with_later_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a clip, as this program or one of before wrote them, with the fields that came later.

    Those have the values that they amount to in clips of before, which are not always their defaults.
    """
    return {"depth": 0.0, **settings} if "camera" in settings else dict(settings)


def takers(name: str) -> str:
    """The versions, or the choices of another field, that have a field, in words; "" where every version has it."""
    owners: dict[str, list[str]] = {}
    for field, chooser, owner in _fields_with_owners():
        if field.name == name:
            owners.setdefault(chooser, []).append(owner)
    if not owners or owners.get("version") == list(ALL_VERSIONS):
        return ""
    return " or ".join(f"{chooser} {_joined(names)}" for chooser, names in owners.items())


def _refusal(name: str, values: Mapping[str, Any]) -> str:
    """The message for a field that the request does not have: who takes it, or that there is none of this name."""
    for versions in (request_class(values["version"]).versions, ALL_VERSIONS):
        owners = [(chooser, owner) for field, chooser, owner in _fields_with_owners(versions) if field.name == name]
        if owners:
            break
    else:
        return no_such_field(name)
    chooser, names = owners[0][0], _joined([owner for _, owner in owners])
    if chooser in values:
        return f"{name} does not belong to {chooser} {values[chooser]!r}, but to {names}."
    versions = _joined([owner for field, _, owner in _version_fields(versions) if field.name == chooser])
    return f"{name} does not belong to version {values['version']!r}, but to {versions} with {chooser} {names}."


def no_such_field(name: str) -> str:
    """The message for a name that is no field's."""
    near = difflib.get_close_matches(name, all_fields(), n=3)
    hint = f" Near it: {', '.join(near)}." if near else ""
    return f"{name if len(name) < 80 else shown(name)} is not a setting of a video.{hint}"


def _joined(names: list[str]) -> str:
    *others, last = dict.fromkeys(names)
    return f"{', '.join(others)} and {last}" if others else last


def _check_size(field: Field, value: Any, multiple: int) -> None:
    """Raise UserError for a size that is no multiple of `multiple`; the message names the nearest sizes."""
    integer = is_number(value, integer=True)
    value = int(value) if integer else value
    if integer and field.low <= value <= field.high and value % multiple == 0:
        return
    low = max(value // multiple, 1) * multiple if integer else multiple
    near = f"{low} or {low + multiple}" if integer and 0 < value < field.high else f"{multiple} to {field.high}"
    raise UserError(f"{field.name} must be a multiple of {multiple} (nearest: {near}); got {shown(value)}.")
