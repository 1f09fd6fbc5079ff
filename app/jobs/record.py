"""Job: one clip to be made, and its record on disk.

`<outputs>/<id>/` holds `input.png` (the uncropped picture, or its object as RGBA), `job.json` (request and outcome),
`clip.mp4`, `frames.mkv` (its frames, lossless), `poster.jpg`, and for an extension of other clips `film.mp4`, all of
them joined.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from sgm import Clip, Progress, VideoRequest
from sgm.paths import replacing

log = logging.getLogger(__name__)

ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_NUMBER = (int, float)
_SAVED: dict[str, Any] = {  # what of a job stands in job.json beside its request, and of which kind it is
    **dict.fromkeys(("state", "name", "message", "owner", "parent"), str),
    **dict.fromkeys(("created", "seconds"), _NUMBER),
    **dict.fromkeys(("settings", "phases"), dict),
}


@dataclass
class Job:
    """One clip to be made. The table returns copies, which do not change while they are read."""

    id: str
    folder: Path
    request: VideoRequest
    name: str  # of the picture, for people
    state: str = "queued"  # queued, running, done, failed, cancelled, interrupted
    created: float = field(default_factory=time.time)  # seconds since 1970
    seconds: float = 0.0  # that it ran
    message: str = ""  # what went wrong, for people
    settings: dict[str, Any] = field(default_factory=dict)  # the clip's recipe
    owner: str = ""  # the browser session: owners take turns in the queue
    parent: str = ""  # id of the clip that this one extends
    phases: dict[str, float] = field(default_factory=dict)  # seconds that each phase took
    phase: str = ""  # the running phase: one of estimate.PHASES
    progress: Progress | None = None
    preview: bytes = b""  # a small JPEG of the current estimate
    unsaved: bytes = b""  # the MP4's content, if the disk was full
    unwritten: Clip | None = None  # the clip itself, if one of its files could not be written
    stopping: bool = False  # Cancel was pressed: the job stops at its next check
    seconds_left: float | None = None  # until its end; None while they cannot be estimated
    fraction: float = 0.0  # share of the running job that is done, 0 to 1
    started: float = 0.0  # when it began to run, by the monotonic clock, as the following
    phase_started: float = 0.0
    first_step: tuple[float, int] = (0.0, 0)  # the first step reported in the phase: its time and number
    latest_step: tuple[float, int] = (0.0, 0)

    @property
    def active(self) -> bool:
        return self.state in ("queued", "running")

    @property
    def picture(self) -> Path:
        return self.folder / "input.png"

    @property
    def clip(self) -> Path:
        return self.folder / "clip.mp4"

    @property
    def film(self) -> Path:
        """The clip, joined to the clips that it extends if there are any."""
        path = self.folder / "film.mp4"
        return path if path.is_file() else self.clip

    @property
    def frames(self) -> Path:
        """The clip's lossless frames."""
        return self.folder / "frames.mkv"

    @property
    def poster(self) -> Path:
        return self.folder / "poster.jpg"

    def start(self) -> None:
        """Set the state to running."""
        self.state, self.started = "running", time.monotonic()
        self.enter("load")

    def enter(self, phase: str, progress: Progress | None = None) -> None:
        """Set the running phase. progress: its first report, with step 0 for encoding and decoding, 1 for sampling."""
        self.phase, self.phase_started = phase, time.monotonic()
        self.first_step = self.latest_step = (self.phase_started, progress.step if progress else 0)
        self.progress = progress or self.progress

    def go_on(self, progress: Progress) -> None:
        """Set the progress within the phase."""
        self.latest_step, self.progress = (time.monotonic(), progress.step), progress


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
    except OSError as error:
        log.warning("the state of job %s could not be written: %s", job.id, error)


def restore(folder: Path) -> Job | None:
    """The job of an earlier run of the server; None for other folders and unreadable ones.

    A queued job stays queued; a running one becomes interrupted, and its incomplete files are deleted.
    """
    if not ID.fullmatch(folder.name) or not (folder / "job.json").is_file():
        return None
    try:
        saved = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        values = saved.pop("request")
        request = VideoRequest.fitting(values.pop("version"), values)  # earlier programs may have had other fields
        _check_kinds(saved)
        job = Job(id=folder.name, folder=folder, request=request, **saved)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        log.warning("%s is left out of the history: %s", folder, error)
        return None
    if job.active:
        for incomplete in (*folder.glob("*.tmp"), *folder.glob(".*")):
            with contextlib.suppress(OSError):
                incomplete.unlink()
    if job.state == "running":
        job.state, job.message = "interrupted", "The server was stopped before the clip was finished."
        save_or_log(job)
    elif job.state == "done" and not job.clip.is_file():
        job.state, job.message = "failed", "The clip's file is no longer on the server."
    return job


def _check_kinds(saved: dict[str, Any]) -> None:
    """Raise TypeError, ValueError or OverflowError for values of a record that no job has."""
    for name, value in saved.items():
        if name in _SAVED and not isinstance(value, _SAVED[name]):
            raise TypeError(f"{name} is {value!r}")
    time.localtime(saved.get("created"))  # a date that there is
    if not all(isinstance(seconds, _NUMBER) for seconds in saved.get("phases", {}).values()):
        raise TypeError(f"phases are {saved['phases']}")


def open_stored(path: Path) -> Image.Image:
    """Open a job's stored picture: RGB, or RGBA for an object. Raises OSError."""
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
