"""The forecast: how long the jobs of a line take, and when they end, with as many workers as there are."""

from __future__ import annotations

import time
from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from functools import lru_cache
from typing import Any

from app.jobs import estimate
from app.jobs.line import Line
from app.jobs.record import Job
from app.jobs.seat import Seats
from sgm import VideoRequest, typical_seconds
from sgm.process import freeze_objects

_MOMENT = 0.25  # seconds: that an estimate of the whole line lasts


class Forecast:
    """Estimates for a line and the seats of its workers. Whoever calls it holds the table's lock."""

    def __init__(self, line: Line, seats: Seats) -> None:
        self._line, self._seats = line, seats
        self._expects: dict[Any, dict[str, float]] = {}  # kind of request -> seconds of phases, until a job ends
        self._ends: dict[str, float] = {}  # as of `_queue_ends`
        self._ends_known = (-1, 0.0)  # of which change of the line, and when

    def clear(self) -> None:
        """Forget what is known: a job has ended."""
        self._expects.clear()

    def of(self, job: Job) -> Job:
        """A copy of a job, with `seconds_left` and `fraction` up to date."""
        if job.state == "running":
            if job.phase == "load":
                freeze_objects()  # modules and weights so far; the runner collects garbage when the model is loaded
            job.seconds_left = self.left(job)
            job.fraction = estimate.fraction_done(job, job.seconds_left, time.monotonic())
        elif job.state == "queued":
            job.seconds_left = max(0.0, self._queue_ends()[job.id] - time.monotonic())
            if none_left := self._seats.none_left():
                return replace(job, message=none_left, seconds_left=None)
        return copy(job)

    def _queue_ends(self) -> dict[str, float]:
        """When each job that waits is expected to end, by the monotonic clock: as it was a moment ago, at most.

        All are worked out at once: where many wait, many ask, again and again.
        """
        now, (changes, then) = time.monotonic(), self._ends_known
        if changes != self._line.changes or now - then > _MOMENT:
            queue = self._line.queued()
            running = [self.left(job) for job in self._line.running()]
            seconds = [self.seconds_for(job.request) for job in queue]
            ends = estimate.queue_ends(running, seconds, self._seats.at_work())
            self._ends = {job.id: now + end for job, end in zip(queue, ends, strict=True)}
            self._ends_known = self._line.changes, now
        return self._ends

    def left(self, job: Job) -> float:
        """Seconds until a running job ends."""
        return estimate.seconds_left(job, self._expected(job.request), time.monotonic())

    def left_of_all(self, jobs: Iterable[Job]) -> float:
        """About how many seconds jobs take, but for what goes between."""
        jobs = list(jobs)
        running = [self.left(job) for job in jobs if job.state == "running"]
        queued = [self.seconds_for(job.request) for job in jobs if job.state == "queued"]
        return max([*running, *estimate.queue_ends(running, queued, self._seats.at_work())], default=0.0)

    def seconds_for(self, request: VideoRequest) -> float:
        """Seconds that a request takes once it runs: with loading, where another model is loaded or none."""
        expected = self._expected(request)
        if {None, request.version} & set(self._seats.loaded()):
            expected.pop("load")
        return sum(expected.values())

    def seconds_for_all(self, requests: Iterable[VideoRequest]) -> float:
        """Seconds that requests take, by as many workers as there are; each loads a model once."""
        expected = [(request.version, self._expected(request)) for request in requests]
        load = {version: phases.pop("load") for version, phases in expected}
        for version in self._seats.loaded():
            load.pop(version or "", 0)
        work = [sum(phases.values()) for _, phases in expected]
        return sum(load.values()) + max(estimate.queue_ends([], work, self._seats.at_work()), default=0.0)

    def _expected(self, request: VideoRequest) -> dict[str, float]:
        runner = self._seats[0].runner  # all are of one kind
        kind = _kind(request, runner.kind, runner.cores)
        if kind not in self._expects:
            finished = reversed(self._line.jobs.values())
            self._expects[kind] = estimate.expected(finished, request, runner.kind, runner.cores)
        return dict(self._expects[kind])


@lru_cache(1 << 14)  # a poll asks it of each job in line
def _kind(request: VideoRequest, device: str, cores: int) -> tuple[Any, ...]:
    """What requests have in common that take as long."""
    return request.version, tuple(typical_seconds(request, device, cores).items())
