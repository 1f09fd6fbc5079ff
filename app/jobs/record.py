"""Job: one clip to be made, and its record on disk.

`<outputs>/<id>/` holds `input.png` (the uncropped picture, or its object as RGBA), `last.png` (likewise, of a clip that
ends at a last picture), `job.json` (request and outcome),
`clip.mp4`, `frames.mkv` (its frames, lossless), `poster.jpg`, and for an extension of other clips `film.mp4`, all of
them joined. Of a clip's views, it holds `input.mkv` (that clip) instead of the picture, `clip.mp4` is the grid of all,
and `input.mp4`, `view-1.mp4`, … and `walk.mp4` are its parts. Which of all that can be trusted, after a power cut or in
a folder from elsewhere, is decided here.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import math
import operator
import re
import reprlib
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from sgm import (
    MAX_CELLS,
    Axis,
    Clip,
    Progress,
    UserError,
    VideoRequest,
    ViewsRequest,
    open_clip,
    request_class,
    with_later_fields,
)
from sgm.paths import is_file, replacing

log = logging.getLogger(__name__)

Input = Image.Image | list[Image.Image]  # of a job: a picture, or a clip's frames
ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
API_OWNER, STAND_OWNER = "api-", "stand-"  # what the owners of the HTTP API's and the stand's jobs begin with
STATES = ("queued", "running", "done", "failed", "cancelled", "interrupted")
_LARGEST_RECORD = 2**20  # bytes of a job.json
_DEEPEST_RECORD = 12  # levels: a film's recipe has 5


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9


def _is_date(value: Any) -> bool:
    """Whether a value is in seconds since 1970, of a year of four digits."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 253_370_764_800


def _is_id_or_none(value: Any) -> bool:
    """Whether a value is a job's id, or ""."""
    return isinstance(value, str) and (not value or ID.fullmatch(value) is not None)


def _are_axes(value: Any) -> bool:
    """Whether a value is a list of axes that a sweep can have. Raises an exception of any kind for what is no axis."""
    counts = (len(Axis.parse(axis).values) for axis in value) if isinstance(value, list) else [math.inf]
    return all(count <= MAX_CELLS for count in itertools.accumulate(counts, operator.mul))


# What of a job stands in job.json beside its request, and what it must be. The first three must be there.
_SAVED: dict[str, Callable[[Any], bool]] = {
    "state": lambda value: value in STATES,
    "name": lambda value: isinstance(value, str),
    "created": _is_date,
    "message": lambda value: isinstance(value, str),
    "owner": lambda value: isinstance(value, str),
    "parent": _is_id_or_none,
    "group": _is_id_or_none,
    "place": _is_date,
    "cell": lambda value: type(value) is int and 0 <= value < MAX_CELLS,
    "axes": _are_axes,
    "finish": lambda value: isinstance(value, dict),
    "seconds": _is_seconds,
    "ended": _is_date,
    "resumed": lambda value: isinstance(value, bool),
    "device": lambda value: isinstance(value, str),
    "filtered": lambda value: isinstance(value, bool),
    "settings": lambda value: isinstance(value, dict),
    "phases": lambda value: isinstance(value, dict) and all(map(_is_seconds, value.values())),
    "files": lambda value: isinstance(value, dict) and all(type(size) is int for size in value.values()),
}
_NEEDED = list(_SAVED)[:3]


class Unreadable(UserError):
    """Raised for a folder named like a job's that holds none; the message is the reason."""


@dataclass(frozen=True)
class ViewsClip(Clip):
    """The grid of a clip's views, and the clips that it is made of, by their names: see `sgm.make_views`."""

    parts: dict[str, Clip]

    def unmarked(self) -> ViewsClip:
        parts = {name: part.unmarked() for name, part in self.parts.items()}
        return replace(self, settings=super().unmarked().settings, parts=parts)


@dataclass
class Job:
    """One clip to be made. The table returns copies, which do not change while they are read."""

    id: str
    folder: Path
    request: VideoRequest
    name: str  # of the picture, for people
    state: str = "queued"  # one of STATES
    created: float = field(default_factory=time.time)  # seconds since 1970
    seconds: float = 0.0  # that it ran
    ended: float = 0.0  # seconds since 1970; 0 until then, and of clips from before this was noted
    resumed: bool = False  # it ran when the server was killed or its device failed, and waits or runs once more
    lost: int = 0  # how many times the machine went away that it ran on
    device: str = ""  # on which it runs or ran, as "cuda:1"
    message: str = ""  # what went wrong, for people
    filtered: bool = False  # the filter withholds its clip
    settings: dict[str, Any] = field(default_factory=dict)  # the clip's recipe
    owner: str = ""  # the browser session: owners take turns in the queue
    place: float = 0.0  # in line, among its owner's or its group's jobs; 0 for that of `created`: it was not moved
    parent: str = ""  # id of the clip that this one extends
    group: str = ""  # id of the sweep or the batch that this clip is part of: groups take turns, too
    cell: int = 0  # its number among the clips of its group
    axes: list[str] = field(default_factory=list)  # what the sweep varies, as `sgm.Axis.parse` reads it
    finish: dict[str, Any] = field(default_factory=dict)  # of a draft: the settings that make the finished clip of it
    phases: dict[str, float] = field(default_factory=dict)  # seconds that each ended phase took
    files: dict[str, int] = field(default_factory=dict)  # name -> size in bytes, of the files that were written whole
    phase: str = ""  # the running phase: one of estimate.PHASES
    progress: Progress | None = None
    preview: bytes = b""  # a small JPEG of the current estimate's middle frame
    moving: bytes = b""  # the whole estimate, as a small animated WebP; none in the first steps
    preview_number: int = 0  # of the preview: it rises with each new one
    unsaved: bytes = b""  # the MP4's content, if it could not be written
    unwritten: Clip | None = None  # the clip itself, if one of its files could not be written
    stopping: bool = False  # Cancel was pressed: the job stops at its next check
    seconds_left: float | None = None  # until its end; None while they cannot be estimated
    fraction: float = 0.0  # share of the running job that is done, 0 to 1; it never falls
    started: float = 0.0  # when it began to run, by the monotonic clock, as the following
    phase_started: float = 0.0
    reported: float = 0.0  # when the progress was reported

    @property
    def active(self) -> bool:
        return self.state in ("queued", "running")

    @property
    def group_kind(self) -> str:
        """What its group is: "Sweep", "Drafts" or "Batch", as the pages are named; "" for a single clip."""
        return "" if not self.group else "Drafts" if self.finish else "Sweep" if self.axes else "Batch"

    @property
    def by_api(self) -> bool:
        """Whether a program asked for it, rather than a person at the page."""
        return self.owner.startswith(API_OWNER)

    @property
    def at_stand(self) -> bool:
        """Whether a passer-by asked for it at the stand."""
        return self.owner.startswith(STAND_OWNER)

    @property
    def picture(self) -> Path:
        """What the clip is made of: a picture, or a clip."""
        return self.folder / ("input.mkv" if isinstance(self.request, ViewsRequest) else "input.png")

    @property
    def parts(self) -> list[Path]:
        """The clips of which a grid of views is made; [] of a single clip."""
        if not isinstance(self.request, ViewsRequest):
            return []
        views = (f"view-{number + 1}" for number in range(self.request.model.num_views))
        return [self.folder / f"{name}.mp4" for name in ("input", *views, "walk")]

    @property
    def last(self) -> Path:
        """The last picture, of a clip that ends at one."""
        return self.folder / "last.png"

    @property
    def clip(self) -> Path:
        return self.folder / "clip.mp4"

    @property
    def film(self) -> Path:
        """The clip, joined to the clips that it extends if there are any."""
        path = self.folder / "film.mp4"
        return path if self.has(path) else self.clip

    @property
    def frames(self) -> Path:
        """The clip's lossless frames."""
        return self.folder / "frames.mkv"

    @property
    def poster(self) -> Path:
        return self.folder / "poster.jpg"

    def has(self, path: Path) -> bool:
        """Whether one of the job's files is there and whole: a file of its own, of the size that it was written with.

        Of jobs from before sizes were noted, files are only known not to be empty.
        """
        try:
            found = path.lstat()
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == (self.files.get(path.name) or found.st_size or -1)

    def start(self, device: str = "") -> None:
        """Set the state to running, on a device."""
        self.state, self.started, self.device = "running", time.monotonic(), device
        self.enter("load")

    def put_back(self, resumed: bool = True) -> None:
        """Set the state to queued once more: the device failed that the job ran on."""
        self.state, self.resumed, self.device = "queued", resumed, ""
        self.phase, self.progress, self.phases, self.fraction = "", None, {}, 0.0
        self.preview = self.moving = b""

    def enter(self, phase: str, progress: Progress | None = None) -> None:
        """Set the running phase, and its first progress if there is one."""
        self.phase, self.phase_started = phase, time.monotonic()
        self.progress, self.reported = progress or self.progress, self.phase_started

    def go_on(self, progress: Progress) -> None:
        """Set the progress within the phase."""
        self.progress, self.reported = progress, time.monotonic()


def new_id() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"


def save(job: Job) -> None:
    """Write job.json. Raises OSError."""
    content = {name: getattr(job, name) for name in _SAVED} | {"request": job.request.settings()}
    write(job.folder / "job.json", json.dumps(content, indent=1).encode())


def save_or_log(job: Job) -> None:
    """Write job.json; failures are logged, for jobs that go on in memory if the disk is full or the folder gone."""
    try:
        save(job)
    except Exception as error:  # of any kind: the worker goes on
        log.warning("the state of job %s could not be written: %s", job.id, error)


def restore(folder: Path) -> Job | None:
    """The job of an earlier run of the server; None for a folder that is not named like a job's.

    A queued job stays queued. A running one becomes interrupted or, of the HTTP API and the stand, where nobody is
    there to press "Run again", queued once more. Its incomplete files are deleted. Raises Unreadable, without any
    change, for a record that this program cannot have written, whatever it holds.
    """
    if not ID.fullmatch(folder.name):
        return None
    try:
        if folder.is_symlink():
            raise ValueError("it is a link")
        job = _recorded(folder, _content(folder / "job.json"))
    except Exception as error:  # of any kind: the record may come from anywhere
        raise Unreadable(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error
    if job.active:
        for incomplete in (*folder.glob("*.tmp"), *folder.glob(".*")):
            with contextlib.suppress(OSError):
                incomplete.unlink()
    if job.state == "running" and (job.by_api or job.at_stand) and not job.resumed:
        job.state, job.resumed = "queued", True
        save_or_log(job)
    elif job.state == "running":
        job.state, job.message = "interrupted", "The server was stopped before the clip was finished."
        save_or_log(job)
    elif job.state == "done" and not (job.has(job.clip) or job.has(job.frames)):
        is_there = job.clip.is_file() or job.frames.is_file()
        what = "files are damaged. Run it again." if is_there else "file is no longer on the server."
        job.state, job.message = "failed", f"The clip's {what}"
    return job


def _content(path: Path) -> dict[str, Any]:
    """The mapping in a job.json. Raises an exception of any kind for another file."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise ValueError("it has no job.json") from None
    if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_RECORD:
        raise ValueError(f"its job.json is no file of at most {_LARGEST_RECORD // 2**20} MB")
    saved = json.loads(path.read_text(encoding="utf-8"))
    if _depth(saved) > _DEEPEST_RECORD:
        raise ValueError("its job.json is nested too deep")
    json.dumps(saved, allow_nan=False, ensure_ascii=False).encode()  # raises for nan and for half characters
    return saved


def _recorded(folder: Path, saved: dict[str, Any]) -> Job:
    """The job of a job.json. Raises an exception of any kind for a record that no job has."""
    for name, fits in _SAVED.items():
        if not (fits(saved[name]) if name in saved else name not in _NEEDED):
            raise ValueError(f"its {name} is {reprlib.repr(saved[name])}" if name in saved else f"it has no {name}")
    values = saved["request"]
    # Earlier programs may have had other fields.
    chosen = with_later_fields({name: values[name] for name in values if name != "version"})
    request = request_class(values["version"]).fitting(values["version"], chosen)
    return Job(folder.name, folder, request, **{name: saved[name] for name in _SAVED if name in saved})


def _depth(value: Any) -> int:
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if entries is None else 1 + max(map(_depth, entries), default=0)


def sizes(job: Job) -> dict[str, int]:
    """The sizes of a job's files, for `Job.files`."""
    found = {}
    own = job.picture, job.last, job.clip, job.frames, job.poster, job.folder / "film.mp4"
    for path in (*own, *job.parts):
        with contextlib.suppress(OSError):
            found[path.name] = path.stat().st_size
    return found


def stored_picture(job: Job) -> Image.Image:
    """A job's stored picture: RGB, or RGBA for an object. Raises UserError where it has been deleted or is damaged."""
    try:
        return open_stored(job.picture)
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UserError("The picture of this clip is no longer on the server. Choose it again.") from error


def stored_last(job: Job) -> Image.Image | None:
    """A job's stored last picture; None of a clip that ends at none. Raises UserError as `stored_picture` does."""
    if not job.request.takes_last:
        return None
    try:
        return open_stored(job.last)
    except Exception as error:  # as above
        raise UserError("The last picture of this clip is no longer on the server. Choose it again.") from error


def stored_input(job: Job) -> Input:
    """As `stored_picture`, or the frames of a job's stored clip."""
    if not isinstance(job.request, ViewsRequest):
        return stored_picture(job)
    try:
        return open_clip(job.picture, job.request.frames).frames
    except UserError as error:
        raise UserError("The clip that this one was made of is no longer on the server. Choose it again.") from error


def still(job: Job) -> bytes:
    """A small picture that stands for a job: its poster or, where that is missing or damaged, its picture; else b""."""
    try:
        content = job.poster.read_bytes() if job.has(job.poster) else b""
        Image.open(io.BytesIO(content)).load()
        return content
    except Exception:  # Pillow raises many kinds for damaged files
        try:
            found = stored_input(job)
            return small_jpeg((found[0] if isinstance(found, list) else found).convert("RGB"))
        except UserError:
            return b""


def open_stored(path: Path) -> Image.Image:
    """Open a job's stored picture: RGB, or RGBA for an object. Raises an error of any kind."""
    if not is_file(path):  # a pipe would be waited for
        raise FileNotFoundError(path)
    with Image.open(path) as image:
        return image.convert("RGBA" if image.mode == "RGBA" else "RGB")


def small_jpeg(image: Image.Image) -> bytes:
    """A picture as a JPEG of at most 480 pixels a side. Shrinks the picture itself."""
    image.thumbnail((480, 480))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a file atomically, by a temporary name. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
