"""Recipes: the settings that made a clip, stored in its file: reading, recognising, comparing and printing them."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf

from sgm import __version__
from sgm.errors import UserError, printable, reason_of
from sgm.media.kinds import UNKNOWN, kind_of
from sgm.paths import is_file, refusals_explained
from sgm.request import VideoRequest, ViewsRequest, request_class, with_later_fields

if TYPE_CHECKING:
    from PIL import Image

    from sgm.engine import DiffusionEngine
    from sgm.loras import Lora
    from sgm.media.reading import Video

MARK, FORMAT = "sgm", 1  # the key that identifies this program's recipes, and the version of their format
# links: the recipes of the clips that an extended clip continues; the others: see `Smoothing`.
_NOT_FIELDS = (MARK, "links", "smooth", "slow_motion")
_INTERPOLATION, _ESCAPED = "${", "\\${"  # the start of omegaconf's interpolations, and its escape in a text
_LONGEST = 1 << 20  # bytes of a YAML
# Keys of recipes from before the mark. These recipes also hold fields that their version does not have.
_BEFORE_MARK = {"version", "frames", "height", "width", "steps", "fps", "motion_bucket", "cond_aug", "seed", "sampler"}


def settings_of(
    request: VideoRequest,
    engine: DiffusionEngine,
    picture: Image.Image | np.ndarray,
    frames: np.ndarray,
    loras: Sequence[Lora] = (),
    last: Image.Image | None = None,
    view: str = "",
    cost: str = "",
) -> dict[str, Any]:
    """The recipe of a clip: the values of all fields and, under "sgm", everything else that decides the frames.

    Under "sgm": versions of the program and of torch, type of device, dtype, number of threads on a processor, name
    and hash of the weights, of their base and of LoRAs (see `sgm.weights.quick_hash`), the `cost` of the speed (see
    `Speed.cost`), the hash of `picture`, as the model saw it, of the `last` one where there is one, that of the frames
    which came of it all, for an MP4 holds them with a loss, whether files are watermarked and, of views, the name of
    which it is (see `sgm.make_views`).
    """
    provenance = {
        "format": FORMAT,
        "program": __version__,
        "torch": str(torch.__version__),  # of a subclass of str, which YAML cannot write
        "device": engine.device.type,
        "dtype": str(engine.dtype).removeprefix("torch."),
        # On a processor, each number of threads adds in an order of its own.
        **({"threads": str(torch.get_num_threads())} if engine.device.type == "cpu" else {}),
        "weights": copy.deepcopy(engine.weights),
        **({"loras": [lora.provenance for lora in loras]} if loras else {}),
        **({"speed": cost} if cost else {}),
        "picture": hash_of(picture),
        **({"last": hash_of(last)} if last else {}),
        "frames": hash_of_frames(frames),
        "watermark": True,  # of what is written for people, until `Clip.unmarked`
        **({"view": view} if view else {}),
    }
    return {**request.settings(), MARK: provenance}


def hash_of(pixels: np.ndarray | Image.Image) -> str:
    """SHA-256 of an RGB picture, (h, w, 3), uint8, or of the clip that views are made of: of its bytes, row by row.

    Recipes of before `hash_of_frames` have that of their frames, too.
    """
    return _sha256(pixels).hexdigest()


def hash_of_frames(frames: np.ndarray) -> str:
    """SHA-256 of the SHA-256 of each frame, uint8 (t, h, w, 3), one after the other: those are computed in parallel."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return hashlib.sha256(b"".join(each.digest() for each in pool.map(_sha256, frames))).hexdigest()


def _sha256(pixels: np.ndarray | Image.Image) -> hashlib._Hash:
    return hashlib.sha256(np.ascontiguousarray(pixels).data)


def input_frame(frames: np.ndarray | Video, request: VideoRequest, times: int = 1) -> tuple[np.ndarray, str]:
    """The frame (H, W, 3) of a video that shows the picture of its recipe, and which it is, in words.

    frames: (T, H, W, 3), or an open video, of which no more is read than is needed. A film of several clips has the
    last clip's recipe, so the frame is that clip's. times: of a smoother clip, see `Smoothing`. Raises UserError where
    an open video's frame cannot be read.
    """
    if request.family.input_frame:
        return frames[-1], "last"
    start = len(frames) - times * (request.frames - 1) - 1
    return (frames[start], "last clip's first") if start > 0 else (frames[0], "first")


class Restored(NamedTuple):
    """What a clip's file gives back. picture: its input frame, None where it cannot be read. note: says which it is.

    last: its last frame, where it ends at a last picture.
    """

    settings: dict[str, Any]
    request: VideoRequest
    picture: Image.Image | None
    note: str
    last: Image.Image | None = None


def restore_clip(source: str | Path | bytes, name: str | None = None) -> Restored:
    """The recipe and the picture of a clip. source: a path, or a file's content. name: the file's name in messages.

    Raises UserError, before a frame is decoded, for a file that is no video or holds no recipe that can be used.
    """
    from PIL import Image

    from sgm.media.reading import open_video
    from sgm.media.smooth import Smoothing

    name = name or ("The file" if isinstance(source, bytes) else str(source))
    with open_video(source, name) as video:
        settings = _ours(video.settings, name)
        request = request_of_picture(settings, name)
        try:
            frame, which = input_frame(video, request, Smoothing.of(settings).times)
            last = Image.fromarray(video[-1]) if request.takes_last else None
        except UserError as error:
            return Restored(settings, request, None, f"No picture could be read from it: {error}")
    which, picture = (f"{which} and last frames stand", "pictures") if last else (f"{which} frame stands", "picture")
    return Restored(settings, request, Image.fromarray(frame), f"Its {which} in for the {picture}.", last)


def is_recipe(settings: object) -> bool:
    """Whether these are settings that this program wrote into a clip, rather than another tool's JSON."""
    if not isinstance(settings, Mapping):
        return False
    if MARK in settings:
        mark = settings[MARK]
        return isinstance(mark, Mapping) and type(mark.get("format")) is int and "version" in settings
    return settings.keys() >= _BEFORE_MARK and isinstance(settings["version"], str)


def made_by(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe's mark says made the clip: texts by key; "weights" and "base": mappings of texts.

    "loras": name -> SHA-256. A file from elsewhere may hold anything there: what is of another kind is left out.
    """
    mark = settings.get(MARK)
    loras = mark.get("loras") if isinstance(mark, Mapping) else None
    known = [_texts(lora) for lora in loras] if isinstance(loras, list) else []
    hashes = {lora["name"]: lora["sha256"] for lora in known if {"name", "sha256"} <= lora.keys()}
    weights = mark.get("weights") if isinstance(mark, Mapping) else None
    base = weights.get("base") if isinstance(weights, Mapping) else None
    return {**_texts(mark), "weights": _texts(weights), "base": _texts(base), "loras": hashes}


def _texts(values: object) -> dict[str, str]:
    """The texts of a mapping; {} of what is none."""
    items = values.items() if isinstance(values, Mapping) else ()
    return {str(key): value for key, value in items if isinstance(value, str)}


def request_of(settings: Mapping[str, Any]) -> VideoRequest:
    """The request of a recipe. Raises UserError for other settings, a newer program's recipe, and wrong values."""
    if not is_recipe(settings):
        raise UserError("There are no settings of ours: only clips that were made here hold them.")
    values = {name: value for name, value in settings.items() if name not in _NOT_FIELDS}
    name = values.pop("version")
    if MARK not in settings:
        return request_class(name).fitting(name, with_later_fields(values))
    if (form := settings[MARK]["format"]) > FORMAT:
        raise UserError(f"These settings are a newer program's (format {form}; known: {FORMAT}): update sgm-video.")
    by_program = "program" in settings[MARK]  # else by hand, with what differs from the defaults alone
    return request_class(name)(name, **(with_later_fields(values) if by_program else values))


def request_of_picture(settings: Mapping[str, Any], name: object) -> VideoRequest:
    """As `request_of`, for what needs a clip's picture. Raises UserError for a view of another clip, too."""
    request = request_of(settings)
    if isinstance(request, ViewsRequest):
        raise UserError(
            f"{name} is a view that {request.version} made of another clip, not of a picture: "
            f"`sgm sample CLIP --recipe {name}` makes it again."
        )
    return request


def read_recipe(source: str | Path | bytes, name: str | None = None) -> dict[str, Any]:
    """The recipe in a video file or in a YAML, whatever its name. The YAML needs the key `version` only.

    source: a path, or a file's content. name: the file's name in messages.
    Raises UserError for a file that cannot be read or holds no recipe.
    """
    path = name or ("The file" if isinstance(source, bytes) else str(source))
    text = _text_of(source, path) if isinstance(source, bytes) else recipe_text(Path(source))
    if text is None:
        from sgm.media.reading import open_video  # imported here, since PyAV's import is slow

        with open_video(source, path) as video:
            return _ours(video.settings, path)
    try:
        # Not resolved: an interpolation could read the environment of whoever opens another's recipe.
        settings = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except Exception as error:  # PyYAML's errors share no base with omegaconf's
        raise UserError(f"{path} cannot be read as YAML: {reason_of(error)}.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} is no recipe: a recipe is a mapping of settings, such as version: svd_tiny.")
    if not isinstance(settings.get("version"), str):
        raise UserError(f"{path} is no recipe: it does not say its version, such as version: svd_tiny.")
    settings = _replaced({str(name): value for name, value in settings.items()}, _ESCAPED, _INTERPOLATION)
    return settings if MARK in settings or is_recipe(settings) else {**settings, MARK: {"format": FORMAT}}


def recipe_text(path: Path) -> str | None:
    """The text of a YAML, told by its content, in UTF-8 or, as PowerShell writes it, UTF-16; None for other files.

    Raises UserError for a file that is missing or unreadable, too long, or named as a YAML and no text.
    """
    named = path.suffix.lower() in (".yaml", ".yml")
    if not is_file(path):
        if named:
            raise UserError(f"There is no recipe at {path}: it is missing, or no file.")
        return None
    with refusals_explained(path), path.open("rb") as file:
        return _text_of(file.read(_LONGEST + 1), str(path))


def _text_of(content: bytes, path: str) -> str | None:
    """As `recipe_text`, of a file's content, or of the beginning of a longer one. path: its name."""
    named = path.lower().endswith((".yaml", ".yml"))
    if kind_of(io.BytesIO(content)) != UNKNOWN or not (named or (content and b"\0" not in content)):
        return None
    try:
        text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeError as error:
        if not named:
            return None
        raise UserError(f"{path} cannot be read as YAML: {reason_of(error)}.") from error
    if len(content) > _LONGEST:
        raise UserError(f"{path} is no recipe: it is longer than the {_LONGEST >> 20} MB that one can have.")
    return text


def _ours(settings: dict[str, Any] | None, name: str) -> dict[str, Any]:
    """A video's settings, if they are a recipe. Raises UserError for others, and for none."""
    if settings is None or not is_recipe(settings):
        raise UserError(f"{name} holds no settings of ours: only clips that were made here do.")
    return settings


def differences(settings: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """How program, torch, device, dtype, threads, weights and picture of a second recipe differ, in sentences.

    Entries that the first recipe lacks are left out. Without differences, the same request gives the same frames.
    The sentences are `printable`: a file from elsewhere may hold any text.
    """
    before, now = made_by(settings), made_by(again)
    sentences = []
    labels = {
        "program": "Program version",
        "torch": "torch",
        "device": "Device",
        "dtype": "dtype",
        "threads": "Threads",
    }
    for key, label in labels.items():
        if key in before and key in now and before[key] != now[key]:
            sentences.append(f"{label}: {printable(before[key], 80)} then, {printable(now[key], 80)} now.")
    for key, label in (("weights", "Weights"), ("base", "Base weights")):
        old, new = before[key], now[key]
        if old and old.get("sha256") != new.get("sha256"):
            name, digest = printable(old.get("name"), 80), printable(str(old.get("sha256"))[:8])
            sentences.append(f"{label}: {name} ({digest}) then, another now.")
    for name, sha in before["loras"].items():
        if now["loras"].get(name, sha) != sha:
            sentences.append(f"LoRA: {printable(name, 80)} ({printable(str(sha)[:8])}) then, another now.")
    if "picture" in before and before["picture"] != now.get("picture"):
        sentences.append("The picture is another one, or was cropped otherwise.")
    if "last" in before and before["last"] != now.get("last"):
        sentences.append("The last picture is another one, or was cropped otherwise.")
    return sentences


def as_yaml(settings: Mapping[str, Any]) -> str:
    """A recipe as a YAML that `read_recipe` reads."""
    return OmegaConf.to_yaml(OmegaConf.create(_replaced(dict(settings), _INTERPOLATION, _ESCAPED)))


def _replaced(value: Any, old: str, new: str) -> Any:
    """A JSON value with `old` replaced by `new` in all its strings."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {key: _replaced(entry, old, new) for key, entry in value.items()}
    return [_replaced(entry, old, new) for entry in value] if isinstance(value, list) else value


def as_command(settings: Mapping[str, Any], picture: str = "PICTURE") -> str:
    """A recipe as a `sgm sample` command line, with the values that differ from the version's defaults."""
    request = request_of(settings)
    words = [
        "sgm",
        "sample",
        picture,
        *(["--last", "LAST"] if request.takes_last else []),
        "--version",
        request.version,
    ]
    words += as_options(request)
    if "smooth" in settings:
        words += ["--smooth", str(settings["smooth"]), *(["--slow-motion"] if settings.get("slow_motion") else [])]
    if dtype := made_by(settings).get("dtype"):
        words += ["--dtype", dtype]
    return shlex.join(words)


def as_options(request: VideoRequest, without: Collection[str] = ()) -> list[str]:
    """A request's seed and choices as words of a command line, but for the fields `without`.

    Lists have no spaces, and LoRAs an option each: every system's shell has quotes of its own.
    """
    words = []
    for name, value in _seed_and_choices(request).items():
        for part in [] if name in without else request.fields()[name].argument(value).split(" + "):
            words += [f"--{name.replace('_', '-')}", part]
    return words


def as_python(settings: Mapping[str, Any], picture: str = "PICTURE") -> str:
    """A recipe as a Python program, with the values that differ from the version's defaults."""
    request = request_of(settings)
    choices = "".join(f", {name}={value!r}" for name, value in _seed_and_choices(request).items())
    dtype = made_by(settings).get("dtype")
    if isinstance(request, ViewsRequest):
        return f"""from pathlib import Path

from sgm import ViewsRequest, generate, generate_views, load_engine, open_clip, write_video

request = ViewsRequest({request.version!r}{choices})
clip = request.family.prepare_clip(open_clip(Path({picture!r}), request.frames).frames, request)
first = None
if request.first:  # the views of the first frame
    first = generate(load_engine(request.first.version), request.first, clip[0]).frames
engine = load_engine({request.version!r}{f", dtype={dtype!r}" if dtype else ""})
for number, view in enumerate(generate_views(engine, request, clip, first=first)):
    write_video(f"view-{{number}}.mp4", view.frames, view.fps, view.settings)
"""
    name, made = "", "clip.frames, clip.fps, clip.settings"
    if "smooth" in settings:
        name, slow = "Smoothing, ", settings.get("slow_motion", False)
        made = f"*Smoothing({settings['smooth']!r}, slow={slow!r}).apply({made})"
    last = ", last=open_picture('LAST')" if request.takes_last else ""
    return f"""from sgm import {name}VideoRequest, generate, load_engine, open_picture, write_video

engine = load_engine({request.version!r}{f", dtype={dtype!r}" if dtype else ""})
request = VideoRequest({request.version!r}{choices})
clip = generate(engine, request, open_picture({picture!r}){last})
write_video("clip.mp4", {made})
"""


def _seed_and_choices(request: VideoRequest) -> dict[str, Any]:
    """A request's seed, and its values that differ from the version's defaults."""
    return {"seed": request.seed, **request.choices()}


RECIPE_TEXTS = {"yaml": as_yaml, "command": as_command, "python": as_python}
