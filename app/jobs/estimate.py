"""Estimates of how long jobs take and how much time is left, from the times of finished jobs."""

from __future__ import annotations

import heapq
import statistics
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from app.jobs.record import Job
from sgm import SAMPLERS, Progress, VideoRequest


class Phase(NamedTuple):
    """A phase of a job: texts for people, and its typical share of the time after the model is loaded.

    The texts may contain {step} and {total}.
    """

    doing: str  # while it runs
    stopped: str  # where it was cancelled
    share: float = 0.0


# In their order. `cost` says how the time of each depends on a request.
PHASES = {
    "load": Phase("Loading the model, {step} %", "Stopped while loading the model."),
    "encode": Phase("Reading the picture", "Stopped while reading the picture.", 0.03),
    "sample": Phase("Step {step} of {total}", "Stopped at step {step} of {total}.", 0.77),
    "decode": Phase("Painting the frames", "Stopped while painting the frames.", 0.2),
    "save": Phase("Saving", "Stopped while saving."),
}
_SAMPLE_SIZE = 5  # the latest finished jobs of a version that an estimate is based on


def cost(request: VideoRequest, phase: str) -> float:
    """A number proportional to a phase's time, for requests of the same version."""
    area = request.height * request.width
    if phase == "load":
        return 1.0
    if phase == "sample":
        return float(area * request.frames * request.steps * SAMPLERS[request.sampler].evaluations)
    return float(area if phase == "encode" else area * request.frames)


def learned_phases(newest_first: Iterable[Job], request: VideoRequest) -> dict[str, float]:
    """Phase -> seconds that it takes for a request, from the latest finished jobs of its version; {} if none."""
    finished = (
        job for job in newest_first if job.state == "done" and job.phases and job.request.version == request.version
    )
    samples: dict[str, list[float]] = {}
    for job in islice(finished, _SAMPLE_SIZE):
        for phase, seconds in job.phases.items():
            samples.setdefault(phase, []).append(seconds * cost(request, phase) / cost(job.request, phase))
    return {phase: statistics.median(seconds) for phase, seconds in samples.items()}


def seconds_loaded(learned: dict[str, float]) -> float | None:
    """Seconds that a job takes after its model is loaded; None where nothing was learned."""
    return sum(seconds for phase, seconds in learned.items() if phase != "load") if learned else None


def seconds_left(job: Job, learned: dict[str, float]) -> float | None:
    """Seconds until a running job ends; None while they cannot be estimated."""
    now = time.monotonic()
    progress = job.progress
    if progress is None:
        return max(0.0, sum(learned.values()) - (now - job.started)) if learned else None
    pace = _seconds_a_step(job)
    if pace is not None:
        left = pace * (progress.total - job.latest_step[1]) - (now - job.latest_step[0])
    elif job.phase in learned:
        left = learned[job.phase] - (now - job.phase_started)
    else:
        return None
    later = list(PHASES)[list(PHASES).index(job.phase) + 1 :] if job.phase in PHASES else []
    if learned:
        return max(0.0, left) + sum(learned.get(phase, 0.0) for phase in later)
    if pace is None or job.phase not in PHASES or PHASES[job.phase].share < 0.1:  # too short to extrapolate from
        return None
    total = pace * progress.total / PHASES[job.phase].share
    return max(0.0, left) + total * sum(PHASES[phase].share for phase in later)


def seconds_queued(running: Sequence[float | None], queued: Sequence[float | None], workers: int) -> float | None:
    """Seconds until the last queued job ends, if each worker that becomes free takes the next; None if any is None.

    running: seconds left of each running job. queued: seconds that each queued job takes, in their order.
    """
    free = [seconds for seconds in running if seconds is not None]
    waiting = [seconds for seconds in queued if seconds is not None]
    if len(free) < len(running) or len(waiting) < len(queued):
        return None
    free += [0.0] * (workers - len(free))
    heapq.heapify(free)
    end = 0.0
    for seconds in waiting:
        end = heapq.heappop(free) + seconds
        heapq.heappush(free, end)
    return end


def fraction_done(job: Job, left: float | None) -> float:
    """Share of a running job that is done, 0 to 1: by the time `left` or, if None, by steps and typical shares."""
    progress = job.progress
    if progress is None:
        return 0.0
    if left is not None:
        ran = time.monotonic() - job.started
        return min(1.0, ran / max(ran + left, 1e-6))
    before = sum(phase.share for phase in list(PHASES.values())[: list(PHASES).index(progress.phase)])
    return before + PHASES[progress.phase].share * progress.step / progress.total


def doing(job: Job) -> str:
    """A running job's phase and step, for people."""
    progress = job.progress
    if progress is None:
        return "Loading the model"
    return PHASES[job.phase].doing.format(step=progress.step, total=progress.total)


def stopped(job: Job) -> str:
    """The phase and step at which a running job was cancelled, for people."""
    progress = job.progress or Progress(job.phase, 0, 0)
    return PHASES[job.phase].stopped.format(step=progress.step, total=progress.total)


def _seconds_a_step(job: Job) -> float | None:
    """Seconds for each step of this job's phase, from its first step to its latest; None before the second."""
    (start, first), (latest, step) = job.first_step, job.latest_step
    return (latest - start) / (step - first) if step > first else None
