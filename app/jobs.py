"""The jobs of the app: one table, one queue, one worker thread that owns the loaded model. Knows no Streamlit.

A job outlives the page that started it, and the server, too: `<outputs>/<id>/` holds `input.png`, the picture that the
model sees, `job.json`, what was asked for and what became of it, and `clip.mp4`. The folder is `$SGM_OUTPUTS`, else
`./outputs`. The runner is the seam: today a thread with an engine, later perhaps a process or another machine.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from sgm import Clip, Progress, UserError, VideoRequest, generate, load_engine, open_picture, write_video

log = logging.getLogger(__name__)

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")


class Cancelled(Exception):
    """Raised from a runner's `on_step` when somebody has cancelled its job."""


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
    progress: Progress | None = None
    stopping: bool = False
    _steps: tuple[tuple[float, float], ...] = ()  # (time, fraction) of the first and the latest step

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
    def seconds_left(self) -> float | None:
        """Until the running job ends at its present pace; None while there is no telling."""
        if not self._steps:
            return None
        (start, first), (latest, fraction) = self._steps
        if fraction <= first:
            return None
        at_latest = (latest - start) * (1 - fraction) / (fraction - first)
        return max(0.0, at_latest - (time.monotonic() - latest))


Runner = Callable[[Job, Callable[[Progress], None]], Clip]


class EngineRunner:
    """Makes clips with the real models, of which it keeps the latest loaded."""

    def __init__(self) -> None:
        self._engine: Any = None

    def __call__(self, job: Job, on_step: Callable[[Progress], None]) -> Clip:
        if self._engine is None or self._engine.version != job.request.version:
            self._engine = None  # unload first: two models at once may not fit
            gc.unfreeze()
            _settle()
            self._engine = load_engine(job.request.version)
            _settle()
        return generate(self._engine, job.request, open_picture(job.picture), on_step)


def _settle() -> None:
    """Take all that lives now out of the search for garbage.

    Streamlit searches after every script run, so at each look at a job's progress. With torch and a model to search,
    that stopped the worker for more than half of the time.
    """
    gc.collect()
    gc.freeze()


class Table:
    """All jobs that lie in `folder`, the queue of those that wait, and the worker that runs one after the other."""

    def __init__(self, folder: Path, runner: Runner | None = None) -> None:
        self.folder = folder
        self._runner = runner or EngineRunner()
        self._changed = threading.Condition()  # guards everything below
        self._jobs = {job.id: job for job in _restored(folder)}
        self._queue: deque[Job] = deque()
        self._worker: threading.Thread | None = None
        self._closed = False

    def submit(self, request: VideoRequest, picture: Image.Image, name: str = "picture") -> Job:
        """Put a job at the end of the queue. Raises UserError if the outputs folder cannot be written."""
        job_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        job = Job(job_id, self.folder / job_id, request, name)
        try:
            job.folder.mkdir(parents=True)
            temporary = job.picture.with_suffix(".tmp")
            picture.save(temporary, format="PNG")
            os.replace(temporary, job.picture)
            _save(job)
        except OSError as error:
            raise UserError(
                f"The clip cannot be stored in {self.folder}: {error.strerror or error}. "
                "Free some space there, or name another folder in SGM_OUTPUTS and start the app again."
            ) from error
        with self._changed:
            self._jobs[job.id] = job
            self._queue.append(job)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="clips", daemon=True)
                self._worker.start()
            self._changed.notify_all()
            return replace(job)

    def get(self, job_id: str) -> Job | None:
        """The job as it is now, or None for an id that is not known here, or is none at all."""
        with self._changed:
            job = self._jobs.get(job_id)
            return job and replace(job)

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        with self._changed:
            return sorted((replace(job) for job in self._jobs.values()), key=lambda job: job.created, reverse=True)

    def ahead(self, job_id: str) -> int:
        """How many jobs end before a queued one starts, the running one included; 0 for every other job."""
        with self._changed:
            waiting = [job.id for job in self._queue]
            if job_id not in waiting:
                return 0
            return waiting.index(job_id) + any(job.state == "running" for job in self._jobs.values())

    def seconds_for(self, request: VideoRequest) -> float | None:
        """What a request takes, judged by the latest finished one of its version; None if there was none."""
        for job in self.jobs():
            if job.state == "done" and job.seconds and job.request.version == request.version:
                return job.seconds * _work_in(request) / _work_in(job.request)
        return None

    def cancel(self, job_id: str) -> None:
        """Take a job out of the queue, or stop it at its next step. One that has ended stays as it is."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or not job.active:
                return
            job.stopping = True
            if job.state == "running":
                return
            self._queue.remove(job)
            job.state, job.message = "cancelled", "Taken out of the queue."
            self._changed.notify_all()
        _save_or_log(job)

    def wait(self, job_id: str, timeout: float | None = None) -> Job | None:
        """The job once it has ended, or as it is after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not (job_id in self._jobs and self._jobs[job_id].active), timeout)
        return self.get(job_id)

    def close(self) -> None:
        """Stop the running job at its next step, leave the others queued and end the worker."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.stopping = job.stopping or job.state == "running"
            self._changed.notify_all()
        if self._worker is not None:
            self._worker.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                job = self._queue.popleft()
                job.state = "running"
            _save_or_log(job)
            start = time.monotonic()
            outcome = self._run(job)
            ended = replace(job, seconds=time.monotonic() - start, **outcome)
            _save_or_log(ended)  # before anybody hears of it: who sees the end finds it on disk, too
            with self._changed:
                self._jobs[job.id] = ended
                self._changed.notify_all()

    def _run(self, job: Job) -> dict[str, Any]:
        """Run a job; the fields that say how it ended."""

        def on_step(progress: Progress) -> None:
            now = time.monotonic(), progress.fraction
            with self._changed:
                if job.stopping:
                    raise Cancelled
                job.progress = progress
                job._steps = (job._steps[0] if job._steps else now, now)

        try:
            clip = self._runner(replace(job), on_step)
            write_video(job.clip, clip.frames, clip.fps, clip.settings)
            return {"state": "done", "settings": clip.settings}
        except Cancelled:
            at = job.progress
            return {"state": "cancelled", "message": f"Stopped at step {at.step} of {at.total}." if at else "Stopped."}
        except UserError as error:
            return {"state": "failed", "message": str(error)}
        except Exception as error:  # whatever it was, the worker lives on for the next job
            log.exception("job %s failed", job.id)
            if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
                message = "This needs more memory than there is. Take fewer frames, or decode fewer of them at once."
            else:
                message = f"{type(error).__name__}: {error}. The server's log has the details."
            return {"state": "failed", "message": message}


def _work_in(request: VideoRequest) -> int:
    """A measure of what a request costs, good for comparing two of the same version."""
    return math.prod(size or 1 for size in (request.steps, request.frames, request.height, request.width))


def _save(job: Job) -> None:
    """Write job.json anew, whole or not at all. Raises OSError."""
    content = {
        "state": job.state,
        "name": job.name,
        "created": job.created,
        "seconds": job.seconds,
        "message": job.message,
        "request": job.request.settings(),
        "settings": job.settings,
    }
    temporary = job.folder / "job.tmp"
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, job.folder / "job.json")


def _save_or_log(job: Job) -> None:
    """For changes of a job that goes on in memory even if its folder is full or gone."""
    try:
        _save(job)
    except OSError as error:
        log.warning("the state of job %s could not be written: %s", job.id, error)


def _restored(folder: Path) -> list[Job]:
    """The jobs of earlier runs of the server. What is not a job, or cannot be read as one, is left alone."""
    jobs = []
    for place in folder.iterdir() if folder.is_dir() else ():
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
            job.state, job.message = "interrupted", "The server was stopped before the clip was finished."
        elif job.state == "done" and not job.clip.is_file():
            job.state, job.message = "failed", "The clip has been deleted from the server."
        jobs.append(job)
    return jobs


_table: Table | None = None
_table_lock = threading.Lock()


def table() -> Table:
    """The process's one table. It lives in this module, which Streamlit imports once, so reruns and reloads keep it."""
    global _table
    with _table_lock:
        if _table is None:
            _table = Table(Path(os.environ.get("SGM_OUTPUTS") or "outputs").resolve())
        return _table
