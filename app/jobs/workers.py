"""The workers: threads that make the clips of a line, each with a runner, until its device fails."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import Any

from app.jobs import estimate
from app.jobs.forecast import Forecast
from app.jobs.line import Line
from app.jobs.record import Job, ViewsClip, save_or_log, sizes, stored_picture
from app.jobs.runner import run
from app.jobs.seat import DeviceState, Seat, Seats
from app.jobs.store import Store
from sgm import Clip, DeviceAway, DeviceFailed, ViewsRequest, Withheld, filtered

log = logging.getLogger(__name__)

MOST_LOST = 3  # times that a job is made again whose machine went away: it may be the one to bring them down
_LOOK_AGAIN = 1.0  # seconds, at which a device that is away is looked for


class Workers:
    """A worker for each seat, which makes jobs of a line and stores their clips.

    changed: the lock of them all. watermark, safety: as of `Table`.
    """

    def __init__(
        self,
        seats: Seats,
        line: Line,
        forecast: Forecast,
        store: Store,
        changed: threading.Condition,
        watermark: bool,
        safety: str,
    ) -> None:
        self.seats, self._line, self._forecast = seats, line, forecast
        self._store, self._changed, self._watermark, self._safety = store, changed, watermark, safety
        self._closed = False

    def start(self) -> None:
        """Start the threads, unless they have been. Called with the lock held."""
        for seat in self.seats:
            seat.start(self._work)

    def devices(self) -> list[DeviceState]:
        """The state of each worker's device."""
        with self._changed:
            seats = [replace(seat) for seat in self.seats]
        return [
            DeviceState(seat.runner.device, seat.reason or seat.runner.about(), seat.busy, seat.reason)
            for seat in seats
        ]

    def close(self) -> None:
        """Stop running jobs at their next check, leave the others queued, and end the threads."""
        with self._changed:
            self._closed = True
            for job in self._line.running():
                job.stopping = True
            self._changed.notify_all()
        for seat in self.seats:
            if seat.thread:
                seat.thread.join()

    def write(self, job: Job, clip: Clip) -> dict[str, Any]:
        """Store a job's clip, unless the filter withholds it. Returns the job's fields that describe the outcome."""
        picture, frames = None, clip.frames
        if isinstance(clip, ViewsClip):
            frames = clip.parts["walk"].frames  # which begins with the input, and shows all views
        elif self._safety != "off":
            picture = stored_picture(job)
        try:
            warning = filtered(self._safety, picture, frames)
        except Withheld as reason:
            return _of_withheld(reason)
        clip = clip if self._watermark else clip.unmarked()
        with self._changed:
            chain = self._line.chain(job.id)
        if not chain:
            warning = f"{warning} A clip before it has been deleted: this is the extension alone.".lstrip()
        return {"settings": clip.settings, "message": warning} | self._store.write_clip(job, clip, chain[:-1])

    def _withheld(self, job: Job) -> dict[str, Any]:
        """The outcome of a job whose picture alone the filter withholds, so that no clip is made; else {}."""
        if self._safety == "block" and not isinstance(job.request, ViewsRequest):
            try:
                filtered(self._safety, stored_picture(job), None)
            except Withheld as reason:
                return _of_withheld(reason)
            except Exception as error:  # of any kind: nothing passes `write` without the filter
                log.warning("job %s: its picture cannot be judged before: %s", job.id, error)
        return {}

    def _work(self, seat: Seat) -> None:
        while self._makes_clips(seat):
            with self._changed:
                self._changed.wait_for(lambda: self._line.queued() or self._closed)
                if self._closed:
                    return
                job = self._line.start_next(seat.runner.device)
                seat.busy = True
            save_or_log(job)
            try:
                outcome = self._withheld(job) or run(job, seat.runner, self.write, self._changed)
            except DeviceFailed as failure:
                outcome = self._taken_out(seat, job, failure)
            if not outcome:
                continue
            ended = replace(
                job,
                seconds=time.monotonic() - job.started,
                ended=time.time(),
                preview=b"",
                moving=b"",
                **{"files": sizes(job)} | outcome,
            )
            save_or_log(ended)  # first on disk, so that nobody sees an end that is not stored
            with self._changed:
                self._line.jobs[job.id] = ended
                self._line.changed()
                self._forecast.clear()
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
            if failure.for_good or self.seats.at_work() > 1:
                seat.reason, seat.away, seat.busy = str(failure), away, False
                log.error("a worker is taken out: %s", failure)
            self._forecast.clear()
            if job.stopping:
                return {"state": "cancelled", "message": estimate.stopped(job)}
            job.lost += away
            if job.lost > MOST_LOST:
                return {"state": "failed", "message": f"Given up after {job.lost} times: {failure}"}
            if (job.resumed and not away) or not seat.reason:
                return {"state": "failed", "message": str(failure)}
            job.put_back(resumed=job.resumed or not away)
            save_or_log(job)
            self._line.changed()
            self._changed.notify_all()
            return {}


def _of_withheld(reason: Withheld) -> dict[str, Any]:
    """The outcome of a job whose clip the filter withholds."""
    return {"state": "failed", "message": str(reason), "filtered": True, "settings": {}}
