"""The jobs of the app: one table, one queue, one worker thread that owns the loaded model. Knows no Streamlit.

A job outlives the page that started it, and the server, too: `<outputs>/<id>/` holds `input.png`, the part of the
picture that the model sees, `job.json`, what was asked for and what became of it, `clip.mp4`, `frames.mkv`, the same
without loss, `poster.jpg`, and, for a clip that goes on from another, `film.mp4`, all of them joined. The folder is
`$SGM_OUTPUTS`, else `./outputs`.
The runner is the seam: today a thread with an engine, later perhaps a process or another machine.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import math
import os
import re
import secrets
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sgm import (
    JOIN,
    Clip,
    Progress,
    UserError,
    VideoRequest,
    encode_video,
    generate,
    load_engine,
    read_frames,
    stitch,
    write_frames,
    write_video,
)

log = logging.getLogger(__name__)

LONGEST_CHAIN = 4  # clips, each going on from the one before; by then little of the picture is left
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_PHASES = ("load", "encode", "sample", "decode", "save")  # in their order
_PREVIEW_EVERY = 0.4  # seconds: nobody looks more often


class Cancelled(Exception):
    """Raised in a runner's thread when somebody has cancelled its job."""


@dataclass
class Job:
    """One clip to be made. The table hands out copies: they do not change behind the reader's back."""

    id: str
    folder: Path
    request: VideoRequest
    name: str  # of the picture, for people
    state: str = "queued"  # queued, running, done, failed, cancelled, interrupted
    created: float = field(default_factory=time.time)  # seconds since 1970
    seconds: float = 0.0  # that it ran
    message: str = ""  # why it did not end well
    settings: dict[str, Any] = field(default_factory=dict)  # what ran, as it stands in the clip's file
    owner: str = ""  # whose turn it takes in the queue: a browser session
    parent: str = ""  # id of the clip that this one goes on from
    phases: dict[str, float] = field(default_factory=dict)  # seconds that each took
    phase: str = ""  # that is running: load, encode, sample, decode or save
    progress: Progress | None = None
    preview: bytes = b""  # a small JPEG of what is being made
    unsaved: bytes = b""  # the clip's file, where the disk had no room for it
    kept: Clip | None = None  # the clip itself, where something of it could not be written
    stopping: bool = False
    seconds_left: float | None = None  # None while there is no telling

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
        """The clip, or with the clips that it goes on from where there are any."""
        path = self.folder / "film.mp4"
        return path if path.is_file() else self.clip

    @property
    def frames(self) -> Path:
        """The clip's frames as the model drew them."""
        return self.folder / "frames.mkv"

    @property
    def poster(self) -> Path:
        return self.folder / "poster.jpg"

    @property
    def fraction(self) -> float:
        """Share of the running job that is done, 0 to 1: by time where it can be told, else by steps."""
        ran = time.monotonic() - self._started
        if self.seconds_left is not None and self.progress:
            return min(1.0, ran / max(ran + self.seconds_left, 1e-6))
        return self.progress.fraction if self.progress else 0.0

    _started: float = 0.0  # by the monotonic clock
    _since: float = 0.0  # start of the phase
    _steps: tuple[tuple[float, int], ...] = ()  # (time, step) of the phase's first and latest step


Runner = Callable[[Job, Callable[[Progress], None], Callable[[], None]], Clip]


class EngineRunner:
    """Makes clips with the real models, of which it keeps the latest loaded."""

    def __init__(self) -> None:
        self._engine: Any = None

    def __call__(self, job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        if self._engine is None or self._engine.version != job.request.version:
            self._engine = None  # unload first: two models at once may not fit
            _settle()
            on_step(Progress("load", 0, 100))
            self._engine = load_engine(
                job.request.version,
                on_progress=lambda share: on_step(Progress("load", math.floor(100 * share), 100)),
            )
            _settle()
        check()
        return generate(self._engine, job.request, open_stored(job.picture), on_step, check)


def open_stored(path: Path) -> Image.Image:
    """A picture that the table itself has stored, RGBA if it is an object that was cut out. Raises OSError."""
    with Image.open(path) as image:
        return image.convert("RGBA" if image.mode == "RGBA" else "RGB")


def _settle() -> None:
    """Take all that lives now out of the search for garbage.

    Streamlit searches after every script run, so at each look at a job's progress. With torch and a model to search,
    that stopped the worker for more than half of the time.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class Table:
    """All jobs that lie in `folder`, the queue of those that wait, and the worker that runs one after the other."""

    def __init__(self, folder: Path, runner: Runner | None = None) -> None:
        self.folder = folder
        self._runner = runner or EngineRunner()
        self._changed = threading.Condition()  # guards everything below
        self._jobs = {job.id: job for job in _restored(folder)}
        self._served: dict[str, float] = {}  # owner -> when a job of theirs last began
        self._worker: threading.Thread | None = None
        self._closed = False
        with self._changed:
            if self._line():  # left waiting when the server went down
                self._start()

    def submit(
        self, request: VideoRequest, picture: Image.Image, name: str = "picture", owner: str = "", parent: str = ""
    ) -> Job:
        """Put a job into the queue; owners take turns. Raises UserError if the outputs folder cannot be written."""
        job_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        job = Job(job_id, self.folder / job_id, request, name, owner=owner, parent=parent)
        hidden = replace(job, folder=self.folder / f".{job_id}")
        try:
            hidden.folder.mkdir(parents=True)
            picture.save(hidden.picture, format="PNG", compress_level=1)
            _save(hidden)
            os.replace(hidden.folder, job.folder)
        except OSError as error:
            shutil.rmtree(hidden.folder, ignore_errors=True)
            raise UserError(
                f"The clip cannot be stored in {self.folder}: {error.strerror or error}. "
                "Free some space there, or name another folder in SGM_OUTPUTS and start the app again."
            ) from error
        with self._changed:
            self._jobs[job.id] = job
            self._start()
            self._changed.notify_all()
            return replace(job)

    def again(self, job_id: str, owner: str = "") -> Job:
        """Run an ended job once more, as a new one. Raises UserError if it, or its picture, is gone."""
        job = self._known(job_id)
        return self.submit(job.request, self._picture(job), job.name, owner, job.parent)

    def new_take(self, job_id: str, owner: str = "") -> Job:
        """The same with the next seed. Raises UserError as `again` does."""
        job = self._known(job_id)
        request = replace(job.request, seed=(job.request.seed + 1) % 2**31)
        return self.submit(request, self._picture(job), job.name, owner, job.parent)

    def extend(self, job_id: str, owner: str = "") -> Job:
        """Go on from a clip, with its settings: from near its end, for the very last frames have drifted furthest.

        Raises UserError for a clip that is gone, too short, or the last of LONGEST_CHAIN.
        """
        job = self._known(job_id)
        if len(self.chain(job_id)) >= LONGEST_CHAIN:
            raise UserError(f"This film has {LONGEST_CHAIN} clips already, and more would drift off. Start a new one.")
        frames, _ = read_frames(job.frames if job.frames.is_file() else job.clip)
        if len(frames) <= -JOIN:
            raise UserError(f"A clip needs more than {-JOIN} frames to be gone on from; this one has {len(frames)}.")
        return self.submit(job.request, Image.fromarray(frames[JOIN]), job.name, owner, parent=job.id)

    def save_again(self, job_id: str) -> Job | None:
        """Write a finished clip for which there was no room before; the job's message is empty if all is saved now."""
        job = self.get(job_id)
        if job is None or job.kept is None:
            return job
        saved = replace(job, **{"message": "", "unsaved": b"", "kept": None} | self._saved(job, job.kept))
        with self._changed:
            if job_id not in self._jobs:  # deleted meanwhile
                return None
            self._jobs[job_id] = saved
        _save_or_log(saved)
        return saved

    def chain(self, job_id: str) -> list[Job]:
        """The clips that make up a job's film, the first one first; [] where one of them is gone."""
        chain: list[Job] = []
        while job_id:
            job = self.get(job_id)
            if job is None or len(chain) > LONGEST_CHAIN:
                return []
            chain.insert(0, job)
            job_id = job.parent
        return chain

    def lossless(self, job: Job) -> bool:
        """Whether `frames` are what the model drew, to the last bit."""
        chain = self.chain(job.id)
        return bool(chain) and all(link.frames.is_file() for link in chain)

    def frames(self, job: Job) -> tuple[np.ndarray, float]:
        """A finished job's film, uint8 (T, H, W, 3), and frames a second: without loss where all of that was kept.

        Raises UserError if its files are gone.
        """
        if self.lossless(job):
            clips, rates = zip(*(read_frames(link.frames) for link in self.chain(job.id)), strict=True)
            return stitch(clips), rates[-1]
        return read_frames(job.unsaved or job.film)

    def delete(self, job_id: str) -> None:
        """Remove an ended job and its files. Raises UserError for one that is active, OSError from the disk."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None:
                return
            if job.active:
                raise UserError("This clip is still being made: cancel it first.")
            gone = job.folder.with_name(f".{job.id}")
            if job.folder.exists():
                os.replace(job.folder, gone)  # whole or not at all
            del self._jobs[job_id]
        shutil.rmtree(gone, ignore_errors=True)

    def get(self, job_id: str) -> Job | None:
        """The job as it is now, or None for an id that is not known here, or is none at all."""
        with self._changed:
            job = self._jobs.get(job_id)
            return job and self._told(job)

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        with self._changed:
            return sorted((replace(job) for job in self._jobs.values()), key=lambda job: job.created, reverse=True)

    def waiting(self) -> int:
        """How many jobs wait."""
        with self._changed:
            return len(self._line())

    def ahead(self, job_id: str) -> int:
        """How many jobs end before a queued one starts, the running one included; 0 for every other job."""
        with self._changed:
            return len(self._before(job_id))

    def seconds_for(self, request: VideoRequest) -> float | None:
        """What a request takes once its model is loaded, judged by finished ones of its version; None if none is."""
        with self._changed:
            learned = self._learned(request)
        return sum(seconds for phase, seconds in learned.items() if phase != "load") if learned else None

    def cancel(self, job_id: str) -> None:
        """Take a job out of the queue, or stop it at its next operation. One that has ended stays as it is."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or not job.active:
                return
            job.stopping = True
            if job.state == "running":
                return
            job.state, job.message = "cancelled", "Taken out of the queue."
            self._changed.notify_all()
        _save_or_log(job)

    def wait(self, job_id: str, timeout: float | None = None) -> Job | None:
        """The job once it has ended, or as it is after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not (job_id in self._jobs and self._jobs[job_id].active), timeout)
        return self.get(job_id)

    def close(self) -> None:
        """Stop the running job at its next operation, leave the others queued and end the worker."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.stopping = job.stopping or job.state == "running"
            self._changed.notify_all()
        if self._worker is not None:
            self._worker.join()

    # With the lock held.

    def _line(self) -> list[Job]:
        """Those that wait, in the order in which they will run: one of each owner, then the next of each."""
        running = {job.owner for job in self._jobs.values() if job.state == "running"}
        counts: dict[str, int] = {}
        line = []
        for job in self._jobs.values():  # as they came
            if job.state == "queued":
                turn = counts.setdefault(job.owner, int(job.owner in running))
                counts[job.owner] += 1
                line.append((turn, self._served.get(job.owner, 0.0) if job.owner else 0.0, job))
        return [job for *_, job in sorted(line, key=lambda entry: entry[:2])]

    def _before(self, job_id: str) -> list[Job]:
        line = self._line()
        places = [place for place, job in enumerate(line) if job.id == job_id]
        if not places:
            return []
        return [job for job in self._jobs.values() if job.state == "running"] + line[: places[0]]

    def _told(self, job: Job) -> Job:
        """A copy that says how long it will be."""
        left: float | None = None
        if job.state == "running":
            if job.phase == "load":
                gc.freeze()  # what is loaded by now, lest looking on stops it; `_settle` will look through it all
            left = self._left(job)
        elif job.state == "queued":
            each = [self._left(other) for other in (*self._before(job.id), job)]
            left = None if None in each else sum(seconds or 0.0 for seconds in each)
        return replace(job, seconds_left=left)

    def _left(self, job: Job) -> float | None:
        """Seconds until a job would end that had the worker for itself."""
        learned = self._learned(job.request)
        if job.state == "queued":
            return sum(seconds for phase, seconds in learned.items() if phase != "load") if learned else None
        now = time.monotonic()
        at = job.progress
        if at is None:
            return None if not learned else max(0.0, sum(learned.values()) - (now - job._started))
        of_phase = learned.get(job.phase)
        (start, first), (latest, step) = job._steps
        if step > first:  # this very job's pace
            left = (latest - start) / (step - first) * (at.total - step) - (now - latest)
        elif of_phase is not None:
            left = of_phase - (now - job._since)
        else:
            return None
        if not learned:  # the shares that the phases usually have
            if job.phase in ("load", "encode"):
                return None
            pace = (latest - start) / (step - first) * at.total
            return max(0.0, left) + (0.25 * pace if job.phase == "sample" else 0.0)
        later = _PHASES[_PHASES.index(job.phase) + 1 :] if job.phase in _PHASES else ()
        return max(0.0, left) + sum(learned.get(phase, 0.0) for phase in later)

    def _learned(self, request: VideoRequest) -> dict[str, float]:
        """Seconds a phase, judged by the five latest finished jobs of the version; {} where there are none."""
        alike = (
            job
            for job in reversed(self._jobs.values())
            if job.state == "done" and job.phases and job.request.version == request.version
        )
        told: dict[str, list[float]] = {}
        for job, _ in zip(alike, range(5), strict=False):
            for phase, seconds in job.phases.items():
                told.setdefault(phase, []).append(seconds * _work(request, phase) / _work(job.request, phase))
        return {phase: statistics.median(seconds) for phase, seconds in told.items()}

    def _start(self) -> None:
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="clips", daemon=True)
            self._worker.start()

    # Without it.

    def _known(self, job_id: str) -> Job:
        job = self.get(job_id)
        if job is None:
            raise UserError("This clip is no longer on the server. Start a new one.")
        return job

    def _picture(self, job: Job) -> Image.Image:
        try:
            return open_stored(job.picture)
        except OSError as error:
            raise UserError("The picture of this clip is no longer on the server. Choose it again.") from error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line() or self._closed)
                if self._closed:
                    return
                job = self._line()[0]
                job.state, job._started = "running", time.monotonic()
                job.phase, job._since, job._steps = "load", job._started, ((job._started, 0),) * 2
                self._served[job.owner] = job._started
            _save_or_log(job)
            outcome = self._run(job)
            ended = replace(job, seconds=time.monotonic() - job._started, preview=b"", **outcome)
            _save_or_log(ended)  # before anybody hears of it: who sees the end finds it on disk, too
            with self._changed:
                self._jobs[job.id] = ended
                self._changed.notify_all()

    def _run(self, job: Job) -> dict[str, Any]:
        """Run a job; the fields that say how it ended."""
        phases: dict[str, float] = {}
        drawn = 0.0

        def check() -> None:
            if job.stopping:
                raise Cancelled

        def enter(phase: str, progress: Progress | None) -> None:
            now = time.monotonic()
            with self._changed:
                if job.phase != phase:
                    phases[job.phase] = now - job._since
                    # Encoding and decoding tell their start; sampling tells its first step only.
                    job.phase, job._since, job._steps = phase, now, ((now, progress.step if progress else 0),) * 2
                else:
                    job._steps = (job._steps[0], (now, progress.step if progress else 0))
                job.progress = progress or job.progress

        def on_step(progress: Progress) -> None:
            nonlocal drawn
            check()
            if progress.preview and time.monotonic() - drawn > _PREVIEW_EVERY:
                job.preview = _jpeg(Image.fromarray(progress.preview()))
                drawn = time.monotonic()
            enter(progress.phase, replace(progress, preview=None))  # it holds tensors

        try:
            clip = self._runner(replace(job), on_step, check)
            enter("save", None)
            outcome = self._saved(job, clip)
            phases["save"] = time.monotonic() - job._since
            return {"state": "done", "settings": clip.settings, "phases": phases, **outcome}
        except Cancelled:
            at = job.progress
            told = {
                "load": "Stopped while loading the model.",
                "encode": "Stopped while reading the picture.",
                "decode": "Stopped while painting the frames.",
            }
            steps = f"Stopped at step {at.step} of {at.total}." if at else "Stopped."
            return {"state": "cancelled", "message": told.get(job.phase, steps)}
        except UserError as error:
            return {"state": "failed", "message": str(error)}
        except Exception as error:  # whatever it was, the worker lives on for the next job
            log.exception("job %s failed", job.id)
            return {"state": "failed", "message": f"{type(error).__name__}: {error}. The server's log has the details."}

    def _saved(self, job: Job, clip: Clip) -> dict[str, Any]:
        """Write a clip's files; what finds no room is kept in memory, to be downloaded or saved later."""
        try:
            write_video(job.clip, clip.frames, clip.fps, clip.settings)
        except UserError as error:
            log.warning("%s", error)
            message = (
                "Finished, but there was no room to save it: download it now, or make room and save it again. "
                "It is gone when the app ends."
            )
            return {"message": message, "unsaved": encode_video(clip.frames, clip.fps, clip.settings), "kept": clip}
        try:
            _write(job.poster, _jpeg(Image.fromarray(clip.frames[0])))
            write_frames(job.frames, clip.frames, clip.fps)
            before = self.chain(job.parent) if job.parent else []
            if before:
                frames = stitch([self.frames(before[-1])[0], clip.frames])
                links = [*(link.settings for link in before), clip.settings]
                write_video(job.folder / "film.mp4", frames, clip.fps, clip.settings | {"links": links})
        except (OSError, UserError, ValueError) as error:
            log.warning("job %s: %s", job.id, error)
            return {"message": f"The clip is saved, but not all that goes with it: {error}", "kept": clip}
        return {}


def device() -> str:
    """What clips are made on, for people."""
    import torch

    if torch.cuda.is_available():
        free, total = (value / 2**30 for value in torch.cuda.mem_get_info())
        return f"{torch.cuda.get_device_name().removeprefix('NVIDIA ')} · {free:.0f} of {total:.0f} GB free"
    return "Apple GPU" if torch.backends.mps.is_available() else "CPU"


def _work(request: VideoRequest, phase: str) -> float:
    """A measure of what a phase costs, good for comparing two requests of the same version."""
    area = (request.height or 1) * (request.width or 1)
    frames = request.frames or 1
    if phase == "load":
        return 1.0
    if phase == "sample":
        evaluations = 2 if request.sampler in ("heun_edm", "dpmpp_2s_ancestral") else 1
        return float(area * frames * (request.steps or 1) * evaluations)
    return float(area if phase == "encode" else area * frames)


def _jpeg(image: Image.Image) -> bytes:
    image.thumbnail((480, 480))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _save(job: Job) -> None:
    """Write job.json anew. Raises OSError."""
    content = {name: getattr(job, name) for name in _SAVED} | {"request": job.request.settings()}
    _write(job.folder / "job.json", json.dumps(content, indent=1).encode())


def _write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises OSError."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


_SAVED = ("state", "name", "created", "seconds", "message", "settings", "owner", "parent", "phases")


def _save_or_log(job: Job) -> None:
    """For changes of a job that goes on in memory even if its folder is full or gone."""
    try:
        _save(job)
    except OSError as error:
        log.warning("the state of job %s could not be written: %s", job.id, error)


def _restored(folder: Path) -> list[Job]:
    """The jobs of earlier runs of the server, the oldest first: those that waited still do.

    What is not a job, or cannot be read as one, is left alone; what a killed server left half-written is removed.
    """
    jobs = []
    for place in folder.iterdir() if folder.is_dir() else ():
        if place.name.startswith(".") and _ID.fullmatch(place.name[1:]):
            shutil.rmtree(place, ignore_errors=True)
        if not _ID.fullmatch(place.name) or not (place / "job.json").is_file():
            continue
        try:
            saved = json.loads((place / "job.json").read_text(encoding="utf-8"))
            request = VideoRequest(**saved.pop("request"))
            job = Job(id=place.name, folder=place, request=request, **saved)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s is left out of the history: %s", place, error)
            continue
        if job.active:
            for left in (*place.glob("*.tmp"), *place.glob(".*")):
                with contextlib.suppress(OSError):
                    left.unlink()
        if job.state == "running":
            job.state, job.message = "interrupted", "The server was stopped before the clip was finished."
            _save_or_log(job)
        elif job.state == "done" and not job.clip.is_file():
            job.state, job.message = "failed", "The clip's file is no longer on the server."
        jobs.append(job)
    return sorted(jobs, key=lambda job: job.created)


_table: Table | None = None
_table_lock = threading.Lock()


def table() -> Table:
    """The process's one table. It lives in this module, which Streamlit imports once, so reruns and reloads keep it."""
    global _table
    with _table_lock:
        if _table is None:
            _table = Table(Path(os.environ.get("SGM_OUTPUTS") or "outputs").resolve())
        return _table
