"""The table of all jobs: the queue of those that wait, in fair order, and the workers that run them."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.jobs import estimate
from app.jobs.record import Job, new_id, open_stored, save_or_log
from app.jobs.runner import EngineRunner, Runner, run
from app.jobs.store import Store, film_frames, is_lossless
from sgm import JOIN, Clip, UserError, VideoRequest, read_frames
from sgm.process import freeze_objects

LONGEST_CHAIN = 4  # clips, each going on from the one before; by then little of the picture is left


class Table:
    """All jobs that lie in `folder`, which the table owns until `close`; `workers` of them run at a time.

    address: where the page is served, for whoever meets the folder's lock. Raises FolderInUse if the folder has an
    owner already, and touches nothing in it; UserError if it cannot be written.
    """

    def __init__(self, folder: Path, runner: Runner | None = None, workers: int = 1, address: str = "") -> None:
        self._store = Store(folder, address)
        self._runner = runner or EngineRunner()
        self._changed = threading.Condition()  # guards everything below
        self._jobs = {job.id: job for job in self._store.jobs()}
        self._served: dict[str, float] = {}  # owner -> when a job of theirs last began
        self._workers = workers
        self._threads: list[threading.Thread] = []  # started with the first job
        self._closed = False
        with self._changed:
            if self._line():  # left waiting when the server went down
                self._start()

    @property
    def folder(self) -> Path:
        return self._store.folder

    def submit(
        self, request: VideoRequest, picture: Image.Image, name: str = "picture", owner: str = "", parent: str = ""
    ) -> Job:
        """Put a job into the queue; owners take turns. Raises UserError if the outputs folder cannot be written."""
        job_id = new_id()
        job = Job(job_id, self.folder / job_id, request, name, owner=owner, parent=parent)
        self._store.add(job, picture)
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
        request = job.request.replace(seed=(job.request.seed + 1) % 2**31)
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
        # An object stands on its white already.
        request = job.request.replace(fit="crop") if job.request.fit == "object" else job.request
        return self.submit(request, Image.fromarray(frames[JOIN]), job.name, owner, parent=job.id)

    def save_again(self, job_id: str) -> Job | None:
        """Write a finished clip for which there was no room before; the job's message is empty if all is saved now."""
        job = self.get(job_id)
        if job is None or job.unwritten is None:
            return job
        saved = replace(job, **{"message": "", "unsaved": b"", "unwritten": None} | self._write(job, job.unwritten))
        with self._changed:
            if job_id not in self._jobs:  # deleted meanwhile
                return None
            self._jobs[job_id] = saved
        save_or_log(saved)
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
        return is_lossless(self.chain(job.id))

    def frames(self, job: Job) -> tuple[np.ndarray, float]:
        """A finished job's film, uint8 (T, H, W, 3), and frames a second: without loss where all of that was kept.

        Raises UserError if its files are gone.
        """
        return film_frames(job, self.chain(job.id))

    def delete(self, job_id: str) -> None:
        """Remove an ended job and its files. Raises UserError for one that is active, OSError from the disk."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None:
                return
            if job.active:
                raise UserError("This clip is still being made: cancel it first.")
            hidden = self._store.hide(job)
            del self._jobs[job_id]
        shutil.rmtree(hidden, ignore_errors=True)

    def get(self, job_id: str) -> Job | None:
        """The job as it is now, or None for an id that is not known here, or is none at all."""
        with self._changed:
            job = self._jobs.get(job_id)
            return job and self._estimated(job)

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        with self._changed:
            return sorted((replace(job) for job in self._jobs.values()), key=lambda job: job.created, reverse=True)

    def waiting(self) -> int:
        """How many jobs wait."""
        with self._changed:
            return len(self._line())

    def ahead(self, job_id: str) -> int:
        """How many jobs end before a queued one starts, the running ones included; 0 for every other job."""
        with self._changed:
            line = [job.id for job in self._line()]
            if job_id not in line:
                return 0
            return max(0, len(self._running()) + line.index(job_id) - self._workers + 1)

    def seconds_for(self, request: VideoRequest) -> float | None:
        """What a request takes once its model is loaded, judged by finished ones of its version; None if none is."""
        with self._changed:
            return estimate.seconds_loaded(self._learned(request))

    def cancel(self, job_id: str) -> None:
        """Take a job out of the queue, or stop it at the next block of a network. One that has ended stays as it is."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or not job.active:
                return
            job.stopping = True
            if job.state == "running":
                return
            job.state, job.message = "cancelled", "Taken out of the queue."
            self._changed.notify_all()
        save_or_log(job)

    def wait(self, job_id: str, timeout: float | None = None) -> Job | None:
        """The job once it has ended, or as it is after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not (job_id in self._jobs and self._jobs[job_id].active), timeout)
        return self.get(job_id)

    def close(self) -> None:
        """Stop what runs at its next block, leave the others queued, end the workers and give the folder up."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.stopping = job.stopping or job.state == "running"
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._store.close()

    # With the lock held.

    def _line(self) -> list[Job]:
        """Those that wait, in the order in which they will run: one of each owner, then the next of each."""
        turns = Counter(job.owner for job in self._running())
        line = []
        for job in self._jobs.values():  # as they came
            if job.state == "queued":
                turn = turns[job.owner]
                turns[job.owner] += 1
                line.append((turn, self._served.get(job.owner, 0.0) if job.owner else 0.0, job))
        return [job for *_, job in sorted(line, key=lambda entry: entry[:2])]

    def _running(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.state == "running"]

    def _estimated(self, job: Job) -> Job:
        """A copy with `seconds_left` and `fraction`."""
        if job.state == "running":
            if job.phase == "load":
                freeze_objects()  # what was imported and loaded by now; the runner collects at the load's end
            left = estimate.seconds_left(job, self._learned(job.request))
            return replace(job, seconds_left=left, fraction=estimate.fraction_done(job, left))
        if job.state == "queued":
            line = self._line()
            line = line[: line.index(job) + 1]
            running = [estimate.seconds_left(other, self._learned(other.request)) for other in self._running()]
            waiting = [estimate.seconds_loaded(self._learned(other.request)) for other in line]
            return replace(job, seconds_left=estimate.seconds_queued(running, waiting, self._workers))
        return replace(job)

    def _learned(self, request: VideoRequest) -> dict[str, float]:
        return estimate.learned_phases(reversed(self._jobs.values()), request)

    def _start(self) -> None:
        while len(self._threads) < self._workers:
            self._threads.append(threading.Thread(target=self._work, name="clips", daemon=True))
            self._threads[-1].start()

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
                job.start()
                self._served[job.owner] = job.started
            save_or_log(job)
            outcome = run(job, self._runner, self._write, self._changed)
            ended = replace(job, seconds=time.monotonic() - job.started, preview=b"", **outcome)
            save_or_log(ended)  # before anybody hears of it: who sees the end finds it on disk, too
            with self._changed:
                self._jobs[job.id] = ended
                self._changed.notify_all()

    def _write(self, job: Job, clip: Clip) -> dict[str, Any]:
        return self._store.write_clip(job, clip, self.chain(job.parent) if job.parent else [])
