"""The table of all jobs: what can be asked of them, and done with them."""

from __future__ import annotations

import itertools
import logging
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.jobs.forecast import Forecast
from app.jobs.line import LONGEST_CHAIN, Line
from app.jobs.record import Input, Job, new_id, save_or_log, sizes, stored_input, stored_last
from app.jobs.runner import EngineRunner, Make
from app.jobs.seat import DeviceState, Seats
from app.jobs.store import Store, as_png, clip_frames, film_frames, film_video, is_lossless
from app.jobs.workers import Workers
from sgm import JOIN, UserError, VideoRequest, ViewsRequest, checked_ends

log = logging.getLogger(__name__)

_Part = tuple[Sequence[Job], Input, Image.Image | None]  # jobs of one picture or clip, and of one last picture


class Table:
    """All jobs in `folder`, which the table owns until `close`; one runs at a time with each runner.

    runners: runners or functions (default: an EngineRunner). address: of the page, for the message to a second
    process. watermark: whether the clips' files get the invisible one. safety: the filter, one of
    `sgm.safety.SAFETY`. Raises FolderInUse, before any change, if the
    folder has an owner already; UserError if it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        runners: Make | Sequence[Make] | None = None,
        address: str = "",
        watermark: bool = True,
        safety: str = "off",
    ) -> None:
        self._store = Store(folder, address)
        self._completing = threading.Lock()
        self._changed = threading.Condition()  # guards the attributes below
        try:
            self._line = Line(self._store.jobs())
        except BaseException:
            self._store.close()
            raise
        self._jobs = self._line.jobs
        self._seats = Seats.of(runners or EngineRunner())
        self._forecast = Forecast(self._line, self._seats)
        self._workers = Workers(self._seats, self._line, self._forecast, self._store, self._changed, watermark, safety)
        with self._changed:
            if self._line.queued():  # jobs that were queued when the server was stopped
                self._workers.start()

    @property
    def folder(self) -> Path:
        return self._store.folder

    @property
    def left_out(self) -> dict[str, str]:
        """Folder names of jobs of earlier runs that cannot be read -> the reason."""
        return self._store.left_out

    def submit(
        self,
        request: VideoRequest,
        picture: Input,
        name: str = "picture",
        owner: str = "",
        parent: str = "",
        last: Image.Image | None = None,
    ) -> Job:
        """Queue a job; owners take turns. last: the last picture, of a clip that ends at one.

        Raises UserError if the outputs folder cannot be written, and as `sgm.checked_ends`.
        """
        job_id, request = new_id(), checked_ends(request, picture, last)
        job = Job(job_id, self.folder / job_id, request, name, owner=owner, parent=parent)
        self._add_all([([job], picture, last)])
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
        last: Image.Image | None = None,
    ) -> str:
        """Queue the cells of a sweep, all or none, as one group, which takes turns like an owner. Returns its id.

        axes: what varies, as text, for people. order: in which the cells run, by their numbers. finish: settings that
        make finished clips of drafts. last: the last picture of those that end at one. Raises UserError if the outputs
        folder cannot be written, and where a last picture is lacking.
        """
        group, now = new_id(), time.time()
        jobs = []
        for i, number in enumerate(order or range(len(requests))):
            job_id, request = new_id(), requests[number]
            request = checked_ends(request, picture, last if request.takes_last else None)
            job = Job(job_id, self.folder / job_id, request, name, created=now + i / 1e4, owner=owner)
            job.group, job.cell, job.axes, job.finish = group, number, list(axes), dict(finish or {})
            jobs.append(job)
        self._add_all([(jobs, picture, last)])
        return group

    def submit_batch(self, pictures: Iterable[tuple[str, Image.Image, Sequence[VideoRequest]]], owner: str = "") -> str:
        """Queue clips of several pictures, all or none, as one group, as `submit_group` does. Returns its id.

        pictures: names, pictures and the requests of each; they are taken one by one, and need not be in memory
        together. What taking one raises ends it all.
        """
        group = new_id()

        def parts() -> Iterator[_Part]:
            cells = itertools.count()
            for name, picture, requests in pictures:
                ids = [new_id() for _ in requests]
                jobs = [
                    Job(job_id, self.folder / job_id, request, name, owner=owner, group=group, cell=next(cells))
                    for job_id, request in zip(ids, requests, strict=True)
                ]
                yield jobs, picture, None

        self._add_all(parts())
        return group

    def complete_group(self, group: str) -> None:
        """Queue the cells of a group anew that have ended without a clip, in place of these.

        Raises UserError as `again` does, once all others are queued.
        """
        refused: list[UserError] = []
        with self._completing:  # a second click finds what the first one has queued
            for job in [job for job in self.group(group) if not job.active and job.state != "done"]:
                job_id = new_id()
                fresh = Job(job_id, self.folder / job_id, job.request, job.name, owner=job.owner)
                fresh.group, fresh.cell, fresh.axes, fresh.finish = job.group, job.cell, job.axes, job.finish
                try:
                    self._add_all([([fresh], stored_input(job), stored_last(job))])
                    self.delete(job.id)
                except UserError as error:
                    refused.append(error)
                except OSError as error:  # the newer one of a cell counts
                    log.warning("job %s cannot be deleted: %s", job.id, error)
        if refused:
            raise refused[0]

    def group(self, group: str) -> list[Job]:
        """The jobs of a group, by the numbers of their cells; [] for an unknown one."""
        jobs = {job.cell: job for job in reversed(self.jobs()) if job.group == group and group}
        return [jobs[cell] for cell in sorted(jobs)]

    def seconds_left_of(self, group: str) -> float:
        """About how many seconds the rest of a group takes, but for what goes between."""
        with self._changed:
            return self._forecast.left_of_all(job for job in self._jobs.values() if job.group == group)

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
        return self.submit(job.request, stored_input(job), job.name, owner, job.parent, stored_last(job))

    def new_take(self, job_id: str, owner: str = "") -> Job:
        """Queue a job like an ended one, with the next seed. Raises UserError as `again` does."""
        job = self._existing(job_id)
        inputs = stored_input(job), stored_last(job)
        return self.submit(next_seed(job.request), inputs[0], job.name, owner, job.parent, inputs[1])

    def extend(self, job_id: str, owner: str = "", last: Image.Image | None = None) -> Job:
        """Queue an extension of a clip, with its settings, from the frame JOIN: the very last frames drift furthest.

        It is the film's frame, in whose colours the clips are matched. last: the picture at which the extension ends;
        anywhere without one. Raises UserError for a clip that has been deleted, is too short, or is the last of
        LONGEST_CHAIN, or of a film of which one has been deleted, and as `extension_of`.
        """
        job = self._existing(job_id)
        if job.parts:
            raise UserError("Views of another clip cannot be gone on from: make those of a longer clip.")
        links = len(self.chain(job_id))
        if not links:
            raise UserError("A clip of this film has been deleted: start a new one from its last frame.")
        if links >= LONGEST_CHAIN:
            raise UserError(f"This film has {LONGEST_CHAIN} clips already, and more would drift off. Start a new one.")
        if (count := job.request.frames) <= -JOIN:
            raise UserError(f"A clip needs more than {-JOIN} frames to be gone on from; this one has {count}.")
        request = extension_of(job.request, last is not None)
        frames, _ = self.frames(job) if links > 1 else clip_frames(job)
        return self.submit(request, Image.fromarray(frames[JOIN]), job.name, owner, parent=job.id, last=last)

    def save_again(self, job_id: str) -> Job | None:
        """Write a finished clip again after a full disk; the returned job's `unwritten` is None if all was."""
        job = self.get(job_id)
        if job is None or job.unwritten is None:
            return job
        saved = replace(
            job, **{"message": "", "unsaved": b"", "unwritten": None} | self._workers.write(job, job.unwritten)
        )
        saved.files = sizes(saved)
        with self._changed:
            if job_id not in self._jobs:  # deleted meanwhile
                shutil.rmtree(job.folder, ignore_errors=True)
                return None
            self._jobs[job_id] = saved
        save_or_log(saved)
        return saved

    def chain(self, job_id: str) -> list[Job]:
        """The clips that make up a job's film, the first one first; [] if one of them has been deleted."""
        with self._changed:
            return [copy(job) for job in self._line.chain(job_id)]

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
        """Remove an ended job and its files. Raises OSError from the disk.

        Raises UserError for one that is active, and for one that an active job extends.
        """
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None:
                return
            if job.active:
                raise UserError("This clip is still being made: cancel it first.")
            active = (*self._line.running(), *self._line.queued())
            if any(job_id == link.id for other in active for link in self._line.chain(other.parent)):
                raise UserError("A clip that extends this one is still being made: cancel that first.")
            hidden = self._store.hide(job)
            del self._jobs[job_id]
        shutil.rmtree(hidden, ignore_errors=True)

    def get(self, job_id: str) -> Job | None:
        """A copy of the job with its present state; None for an unknown id."""
        with self._changed:
            job = self._jobs.get(job_id)
            return job and self._forecast.of(job)

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        with self._changed:
            return [copy(job) for job in reversed(self._jobs.values())]

    def waiting(self) -> int:
        """The number of queued jobs that wait for another to end."""
        with self._changed:
            return max(0, len(self._line.queued()) + len(self._line.running()) - self._seats.at_work())

    def jobs_before(self, job_id: str) -> int:
        """How many jobs, running ones included, must end before a queued one starts; 0 for a job that is not queued."""
        with self._changed:
            queue = [job.id for job in self._line.queued()]
            if job_id not in queue:
                return 0
            return max(0, len(self._line.running()) + queue.index(job_id) - self._seats.at_work() + 1)

    def devices(self) -> list[DeviceState]:
        """The state of each worker's device."""
        return self._workers.devices()

    def none_left(self) -> str:
        """What to say where every worker was taken out, so that no clip is made; else ""."""
        with self._changed:
            return self._seats.none_left()

    def seconds_for(self, request: VideoRequest) -> float:
        """About how many seconds a request takes once it runs: with loading, where another model is loaded or none."""
        with self._changed:
            return self._forecast.seconds_for(request)

    def seconds_for_all(self, requests: Iterable[VideoRequest]) -> float:
        """About how many seconds requests take, by as many workers as there are; each loads a model once."""
        with self._changed:
            return self._forecast.seconds_for_all(requests)

    def cancel(self, job_id: str) -> None:
        """Take a job out of the queue, or stop it at its next check. Jobs that have ended are not changed."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or not job.active:
                return
            job.stopping = True
            if job.state == "queued":
                self._take_out(job)

    def move(self, job_id: str, by: int, owner: str = "") -> None:
        """Move a job in line by so many places among its owner's, or its group's. Raises UserError as `edit` does."""
        with self._changed:
            job = self._line.waiting(job_id, owner)
            places = {other.id: other.place for other in self._line.queued()}
            for other in self._line.move(job, by):
                if other.place != places[other.id]:
                    save_or_log(other)

    def edit(self, job_id: str, request: VideoRequest, owner: str = "", last: Image.Image | None = None) -> None:
        """Change the settings of a job that waits. last: the last picture of a clip that ends at one; unless given, its
        own.

        Raises UserError for a cell of a sweep, another's job, one that does not wait any more, settings that it cannot
        have, and as `submit`.
        """
        job, content = self._existing(job_id), as_png(last) if last else b""  # before others have to wait
        if request.takes_last and last is None:
            last = stored_last(job)
        request = checked_ends(request, stored_input(job) if last else [], last)
        with self._changed:
            job = self._line.waiting(job_id, owner)
            if job.axes:
                raise UserError("The settings of a sweep's clips are what it compares: take it out, and start another.")
            if isinstance(request, ViewsRequest) != isinstance(job.request, ViewsRequest):
                raise UserError("A picture's clip cannot become views of a clip, nor these that: start another.")
            parent = self._jobs.get(job.parent)
            if parent and request.size != parent.request.size:
                (w, h), (width, height) = parent.request.size, request.size
                raise UserError(f"An extension is of its film's size, {w}×{h}, not {width}×{height}: set it back.")
            if content and request.takes_last:
                self._store.put_last(job, content)
            job.request = request
            self._line.changed()
            self._changed.notify_all()
            save_or_log(job)

    def empty(self, owner: str = "") -> int:
        """Take all of an owner's jobs out of the line; those that run go on. Returns how many there were."""
        with self._changed:
            waiting = [job for job in self._line.queued() if job.owner == owner]
            for job in waiting:
                self._take_out(job)
        return len(waiting)

    def wait(self, job_id: str, timeout: float | None = None) -> Job | None:
        """The job once it has ended, or as it is after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not (job_id in self._jobs and self._jobs[job_id].active), timeout)
        return self.get(job_id)

    def close(self) -> None:
        """Stop running jobs at their next check, leave the others queued, end the workers and release the folder."""
        self._workers.close()
        self._store.close()

    def _take_out(self, job: Job) -> None:
        """Take a job out of the line. Called with the lock held, so that nothing later is overwritten on disk."""
        job.state, job.message, job.ended = "cancelled", "Taken out of the queue.", time.time()
        self._line.changed()
        self._changed.notify_all()
        save_or_log(job)

    def _add_all(self, parts: Iterable[_Part]) -> None:
        """Store jobs, each part's of one picture, and queue them all; none where one cannot be stored.

        Raises UserError for that, and whatever taking a part raises.
        """
        stored: list[Job] = []
        try:
            for jobs, picture, last in parts:
                goal: Image.Image | Path | None = last
                for job in jobs:
                    ends = goal if job.request.takes_last else None
                    self._store.add(job, picture if job is jobs[0] else jobs[0].picture, ends)
                    goal = job.last if ends else goal
                    stored.append(job)
        except BaseException:
            for job in stored:
                shutil.rmtree(job.folder, ignore_errors=True)
            raise
        with self._changed:
            self._jobs.update({job.id: job for job in stored})
            self._line.changed()
            self._workers.start()
            self._changed.notify_all()

    def _existing(self, job_id: str) -> Job:
        job = self.get(job_id)
        if job is None:
            raise UserError("This clip is no longer on the server. Start a new one.")
        return job


def extension_of(request: VideoRequest, to_last: bool = False) -> VideoRequest:
    """The request that goes on from a clip: anywhere or, `to_last`, to a last picture, at which its camera is aimed.

    Raises UserError for a version, or guidance, that takes no last picture.
    """
    # The frame of an object has its white background already.
    choices: dict[str, Any] = {"fit": "crop"} if request.fit == "object" else {}
    if to_last:
        choices |= {"sampler": "bounded", "ends": "last"} | ({"camera": "auto"} if "camera" in request.options else {})
    elif request.bounded:
        choices["sampler"] = request.model.sampler
    return request.replace(**choices)


def next_seed(request: VideoRequest, steps: int = 1) -> VideoRequest:
    """A request with a seed some steps on; after the highest comes the lowest."""
    field = request.fields()["seed"]
    return request.replace(seed=(request.seed + steps) % (int(field.high) + 1))
