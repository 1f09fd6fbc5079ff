"""The table of all jobs: the queue, in fair order among browser sessions, and the workers."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.jobs import estimate
from app.jobs.record import Input, Job, new_id, save_or_log, sizes, stored_input
from app.jobs.runner import EngineRunner, Make, run
from app.jobs.seat import ALL_AWAY, NONE_LEFT, DeviceState, Seat, seats_for
from app.jobs.store import Store, clip_frames, film_frames, film_video, is_lossless
from sgm import JOIN, Clip, DeviceAway, DeviceFailed, UserError, VideoRequest, typical_seconds
from sgm.process import freeze_objects

log = logging.getLogger(__name__)

MOST_LOST = 3  # times that a job is made again whose machine went away: it may be the one to bring them down
_LOOK_AGAIN = 1.0  # seconds, at which a device that is away is looked for
LONGEST_CHAIN = 4  # clips, each an extension of the one before: quality falls with every extension


class Table:
    """All jobs in `folder`, which the table owns until `close`; one runs at a time with each runner.

    runners: runners or functions (default: an EngineRunner). address: of the page, for the message to a second
    process. Raises FolderInUse, before any change, if the folder has an owner already; UserError if it cannot be
    written.
    """

    def __init__(self, folder: Path, runners: Make | Sequence[Make] | None = None, address: str = "") -> None:
        self._store = Store(folder, address)
        self._seats = seats_for(runners or EngineRunner())
        self._changed = threading.Condition()  # guards the attributes below
        try:
            self._jobs = {job.id: job for job in self._store.jobs()}  # in order of submission
        except BaseException:
            self._store.close()
            raise
        self._last_started: dict[
            str, float
        ] = {}  # owner or group -> when one of its jobs last started, by the monotonic clock
        self._estimates: dict[Any, dict[str, float]] = {}  # kind of request -> seconds of phases, until a job ends
        self._closed = False
        with self._changed:
            if self._queued():  # jobs that were queued when the server was stopped
                self._start()

    @property
    def folder(self) -> Path:
        return self._store.folder

    @property
    def left_out(self) -> dict[str, str]:
        """Folder names of jobs of earlier runs that cannot be read -> the reason."""
        return self._store.left_out

    def submit(
        self, request: VideoRequest, picture: Input, name: str = "picture", owner: str = "", parent: str = ""
    ) -> Job:
        """Queue a job; owners take turns. Raises UserError if the outputs folder cannot be written."""
        job_id = new_id()
        job = Job(job_id, self.folder / job_id, request, name, owner=owner, parent=parent)
        self._add_all([job], picture)
        return self._existing(job_id)

    def submit_group(
        self,
        requests: Sequence[VideoRequest],
        picture: Image.Image,
        name: str = "picture",
        owner: str = "",
        axes: Sequence[str] = (),
        order: Sequence[int] | None = None,
        finish: Mapping[str, Any] | None = None,
    ) -> str:
        """Queue the cells of a sweep, all or none, as one group, which takes turns like an owner. Returns its id.

        axes: what varies, as text, for people. order: in which the cells run, by their numbers. finish: settings that
        make finished clips of drafts. Raises UserError if the outputs folder cannot be written.
        """
        group, now = new_id(), time.time()
        jobs = []
        for i, number in enumerate(order or range(len(requests))):
            job_id = new_id()
            job = Job(job_id, self.folder / job_id, requests[number], name, created=now + i / 1e4, owner=owner)
            job.group, job.cell, job.axes, job.finish = group, number, list(axes), dict(finish or {})
            jobs.append(job)
        self._add_all(jobs, picture)
        return group

    def complete_group(self, group: str) -> None:
        """Queue the cells of a group anew that have ended without a clip, in place of these.

        Raises UserError as `again` does.
        """
        ended = [job for job in self.group(group) if not job.active and job.state != "done"]
        for job in ended:
            job_id = new_id()
            fresh = Job(job_id, self.folder / job_id, job.request, job.name, owner=job.owner)
            fresh.group, fresh.cell, fresh.axes, fresh.finish = job.group, job.cell, job.axes, job.finish
            self._add_all([fresh], stored_input(job))
            self.delete(job.id)

    def group(self, group: str) -> list[Job]:
        """The jobs of a group, by the numbers of their cells; [] for an unknown one."""
        jobs = {job.cell: job for job in reversed(self.jobs()) if job.group == group and group}
        return [jobs[cell] for cell in sorted(jobs)]

    def seconds_left_of(self, group: str) -> float:
        """About how many seconds the rest of a group takes, but for what goes between."""
        with self._changed:
            jobs = [job for job in self._jobs.values() if job.group == group]
            running = [self._left(job) for job in jobs if job.state == "running"]
            queued = [self._seconds_for(job.request) for job in jobs if job.state == "queued"]
            return max([*running, estimate.seconds_queued(running, queued, self._workers())], default=0.0)

    def groups(self) -> list[str]:
        """The ids of all groups, the newest first."""
        return list(dict.fromkeys(job.group for job in self.jobs() if job.group))

    def cancel_group(self, group: str) -> None:
        """Cancel what is left of a group; what is made stays."""
        for job in reversed(self.group(group)):  # the running one last, so that no other starts
            self.cancel(job.id)

    def again(self, job_id: str, owner: str = "") -> Job:
        """Queue a job like an ended one. Raises UserError if it, or its picture, has been deleted."""
        job = self._existing(job_id)
        return self.submit(job.request, stored_input(job), job.name, owner, job.parent)

    def new_take(self, job_id: str, owner: str = "") -> Job:
        """Queue a job like an ended one, with the next seed. Raises UserError as `again` does."""
        job = self._existing(job_id)
        return self.submit(next_seed(job.request), stored_input(job), job.name, owner, job.parent)

    def extend(self, job_id: str, owner: str = "") -> Job:
        """Queue an extension of a clip, with its settings, from the frame JOIN: the very last frames drift furthest.

        Raises UserError for a clip that has been deleted, is too short, or is the last of LONGEST_CHAIN.
        """
        job = self._existing(job_id)
        if job.parts:
            raise UserError("Views of another clip cannot be gone on from: make those of a longer clip.")
        if len(self.chain(job_id)) >= LONGEST_CHAIN:
            raise UserError(f"This film has {LONGEST_CHAIN} clips already, and more would drift off. Start a new one.")
        frames, _ = clip_frames(job)
        if len(frames) <= -JOIN:
            raise UserError(f"A clip needs more than {-JOIN} frames to be gone on from; this one has {len(frames)}.")
        # The frame of an object has its white background already.
        request = job.request.replace(fit="crop") if job.request.fit == "object" else job.request
        return self.submit(request, Image.fromarray(frames[JOIN]), job.name, owner, parent=job.id)

    def save_again(self, job_id: str) -> Job | None:
        """Write a finished clip again after a full disk; the returned job's message is empty if all was written."""
        job = self.get(job_id)
        if job is None or job.unwritten is None:
            return job
        saved = replace(job, **{"message": "", "unsaved": b"", "unwritten": None} | self._write(job, job.unwritten))
        saved.files = sizes(saved)
        with self._changed:
            if job_id not in self._jobs:  # deleted meanwhile
                return None
            self._jobs[job_id] = saved
        save_or_log(saved)
        return saved

    def chain(self, job_id: str) -> list[Job]:
        """The clips that make up a job's film, the first one first; [] if one of them has been deleted."""
        chain: list[Job] = []
        while job_id:
            job = self.get(job_id)
            if job is None or len(chain) > LONGEST_CHAIN:
                return []
            chain.insert(0, job)
            job_id = job.parent
        return chain

    def lossless(self, job: Job) -> bool:
        """Whether the result of `frames` is lossless."""
        return is_lossless(self.chain(job.id))

    def frames(self, job: Job) -> tuple[np.ndarray, float]:
        """A finished job's film, uint8 (T, H, W, 3), and frames a second: lossless if `lossless`, else from the MP4.

        Raises UserError if its files have been deleted.
        """
        return film_frames(job, self.chain(job.id))

    def video(self, job: Job) -> bytes:
        """A finished job's film as an MP4: its file or, where that is damaged, its frames encoded anew.

        b"" where only frames could be kept, for want of an encoder. Raises UserError if all its files have been deleted
        or are damaged.
        """
        return film_video(job, self.chain(job.id))

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
        """A copy of the job with its present state; None for an unknown id."""
        with self._changed:
            job = self._jobs.get(job_id)
            return job and self._estimated(job)

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        with self._changed:
            return [replace(job) for job in reversed(self._jobs.values())]

    def waiting(self) -> int:
        """The number of queued jobs that wait for another to end."""
        with self._changed:
            return max(0, len(self._queued()) + len(self._running()) - self._workers())

    def jobs_before(self, job_id: str) -> int:
        """How many jobs, running ones included, must end before a queued one starts; 0 for a job that is not queued."""
        with self._changed:
            queue = [job.id for job in self._queued()]
            if job_id not in queue:
                return 0
            return max(0, len(self._running()) + queue.index(job_id) - self._workers() + 1)

    def devices(self) -> list[DeviceState]:
        """The state of each worker's device."""
        with self._changed:
            seats = [replace(seat) for seat in self._seats]
        return [
            DeviceState(seat.runner.device, seat.reason or seat.runner.about(), seat.busy, seat.reason)
            for seat in seats
        ]

    def none_left(self) -> str:
        """What to say where every worker was taken out, so that no clip is made; else ""."""
        with self._changed:
            return self._none_left()

    def seconds_for(self, request: VideoRequest) -> float:
        """About how many seconds a request takes once it runs: with loading, where another model is loaded or none."""
        with self._changed:
            return self._seconds_for(request)

    def seconds_for_all(self, requests: Iterable[VideoRequest]) -> float:
        """About how many seconds requests take, by as many workers as there are; each loads a model once."""
        with self._changed:
            expected = [(request.version, self._expected(request)) for request in requests]
            workers = self._workers()
        load = {version: phases.pop("load") for version, phases in expected}
        for version in self._loaded():
            load.pop(version or "", 0)
        work = [sum(phases.values()) for _, phases in expected]
        return sum(load.values()) + estimate.seconds_queued([], work, workers)

    def cancel(self, job_id: str) -> None:
        """Take a job out of the queue, or stop it at its next check. Jobs that have ended are not changed."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or not job.active:
                return
            job.stopping = True
            if job.state == "running":
                return
            job.state, job.message, job.ended = "cancelled", "Taken out of the queue.", time.time()
            self._changed.notify_all()
        save_or_log(job)

    def wait(self, job_id: str, timeout: float | None = None) -> Job | None:
        """The job once it has ended, or as it is after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not (job_id in self._jobs and self._jobs[job_id].active), timeout)
        return self.get(job_id)

    def close(self) -> None:
        """Stop running jobs at their next check, leave the others queued, end the workers and release the folder."""
        with self._changed:
            self._closed = True
            for job in self._jobs.values():
                job.stopping = job.stopping or job.state == "running"
            self._changed.notify_all()
        for seat in self._seats:
            if seat.thread:
                seat.thread.join()
        self._store.close()

    # Called with the lock held.

    def _queued(self) -> list[Job]:
        """The queued jobs in the order in which they will run: one of each owner and group, then the next of each."""
        turns = Counter(_taker(job) for job in self._running())
        queue = []
        for job in self._jobs.values():  # in order of submission
            if job.state == "queued":
                turn, taker = turns[_taker(job)], _taker(job)
                turns[taker] += 1
                queue.append((turn, self._last_started.get(taker, 0.0) if taker else 0.0, job))
        return [job for *_, job in sorted(queue, key=lambda entry: entry[:2])]

    def _running(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.state == "running"]

    def _estimated(self, job: Job) -> Job:
        """A copy, with `seconds_left` and `fraction` up to date."""
        if job.state == "running":
            if job.phase == "load":
                freeze_objects()  # modules and weights so far; the runner collects garbage when the model is loaded
            job.seconds_left = self._left(job)
            job.fraction = estimate.fraction_done(job, job.seconds_left, time.monotonic())
        elif job.state == "queued":
            queue = self._queued()
            waiting = [self._seconds_for(other.request) for other in queue[: queue.index(job) + 1]]
            running = [self._left(other) for other in self._running()]
            job.seconds_left = estimate.seconds_queued(running, waiting, self._workers())
            if none_left := self._none_left():
                return replace(job, message=none_left, seconds_left=None)
        return replace(job)

    def _workers(self) -> int:
        """How many workers there are; 1 where all were taken out, for estimates."""
        return max(1, sum(not seat.reason for seat in self._seats))

    def _none_left(self) -> str:
        """What to say where all workers were taken out; else ""."""
        reasons = dict.fromkeys(seat.reason.rstrip(".") for seat in self._seats)
        text = ALL_AWAY if any(seat.away for seat in self._seats) else NONE_LEFT
        return "" if "" in reasons else text.format("; ".join(reasons))

    def _loaded(self) -> list[str | None]:
        """The versions that are loaded; None where none needs to be."""
        return [seat.runner.version for seat in self._seats if not seat.reason]

    def _left(self, job: Job) -> float:
        return estimate.seconds_left(job, self._expected(job.request), time.monotonic())

    def _seconds_for(self, request: VideoRequest) -> float:
        expected = self._expected(request)
        if {None, request.version} & set(self._loaded()):
            expected.pop("load")
        return sum(expected.values())

    def _expected(self, request: VideoRequest) -> dict[str, float]:
        runner = self._seats[0].runner  # all are of one kind
        kind = _kind(request, runner.kind, runner.cores)
        if kind not in self._estimates:
            finished = reversed(self._jobs.values())
            self._estimates[kind] = estimate.expected(finished, request, runner.kind, runner.cores)
        return dict(self._estimates[kind])

    def _start(self) -> None:
        for seat in self._seats:
            seat.start(self._work)

    # Called without the lock.

    def _add_all(self, jobs: Sequence[Job], picture: Input) -> None:
        """Store jobs of one picture and queue them; none of them where one cannot be stored, which raises UserError."""
        try:
            for job in jobs:
                self._store.add(job, picture if job is jobs[0] else jobs[0].picture)
        except UserError:
            for job in jobs:
                shutil.rmtree(job.folder, ignore_errors=True)
            raise
        with self._changed:
            self._jobs |= {job.id: job for job in jobs}
            self._start()
            self._changed.notify_all()

    def _existing(self, job_id: str) -> Job:
        job = self.get(job_id)
        if job is None:
            raise UserError("This clip is no longer on the server. Start a new one.")
        return job

    def _work(self, seat: Seat) -> None:
        while self._makes_clips(seat):
            with self._changed:
                self._changed.wait_for(lambda: self._queued() or self._closed)
                if self._closed:
                    return
                job = self._queued()[0]
                job.start(seat.runner.device)
                self._last_started[_taker(job)] = job.started
                seat.busy = True
            save_or_log(job)
            try:
                outcome = run(job, seat.runner, self._write, self._changed)
            except DeviceFailed as failure:
                outcome = self._taken_out(seat, job, failure)
            if not outcome:
                save_or_log(job)
                continue
            ended = replace(
                job,
                seconds=time.monotonic() - job.started,
                ended=time.time(),
                preview=b"",
                **{"files": sizes(job)} | outcome,
            )
            save_or_log(ended)  # first on disk, so that nobody sees an end that is not stored
            with self._changed:
                self._jobs[job.id] = ended
                self._estimates.clear()
                seat.busy = False
                self._changed.notify_all()

    def _makes_clips(self, seat: Seat) -> bool:
        """Wait while a worker's device is away. False where it is out for good, and where the table is closed."""
        while not self._closed and (seat.away or not seat.reason):
            missing = seat.runner.missing()
            with self._changed:
                seat.reason, seat.away = missing, bool(missing)
                if not missing:
                    return True
                self._changed.wait_for(lambda: self._closed, timeout=_LOOK_AGAIN)
        return False

    def _taken_out(self, seat: Seat, job: Job, failure: DeviceFailed) -> dict[str, Any]:
        """Take out the worker whose device failed, and put its job back in line: once, and unless it was cancelled.

        Returns the outcome of a job that does not go back. Where memory is lacking, the last worker stays: other
        programs may end. One that is away comes back, and its job goes in line some times: machines come and go.
        """
        away = isinstance(failure, DeviceAway)
        with self._changed:
            if failure.for_good or self._workers() > 1:
                seat.reason, seat.away, seat.busy = str(failure), away, False
                log.error("a worker is taken out: %s", failure)
            self._estimates.clear()
            if job.stopping:
                return {"state": "cancelled", "message": estimate.stopped(job)}
            job.lost += away
            if job.lost > MOST_LOST:
                return {"state": "failed", "message": f"Given up after {job.lost} times: {failure}"}
            if (job.resumed and not away) or not seat.reason:
                return {"state": "failed", "message": str(failure)}
            job.put_back(resumed=job.resumed or not away)
            self._changed.notify_all()
            return {}

    def _write(self, job: Job, clip: Clip) -> dict[str, Any]:
        return self._store.write_clip(job, clip, self.chain(job.parent) if job.parent else [])


def next_seed(request: VideoRequest, steps: int = 1) -> VideoRequest:
    """A request with a seed some steps on; after the highest comes the lowest."""
    field = request.fields()["seed"]
    return request.replace(seed=(request.seed + steps) % (int(field.high) + 1))


@lru_cache(1 << 14)  # a poll asks it of each job in line
def _kind(request: VideoRequest, device: str, cores: int) -> tuple[Any, ...]:
    """What requests have in common that take as long."""
    return request.version, tuple(typical_seconds(request, device, cores).items())


def _taker(job: Job) -> str:
    """Whose turn a job takes: its group's, so that single clips of the same person go between, or its owner's."""
    return job.group or job.owner
