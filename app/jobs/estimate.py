"""How long jobs take: the phases of a job, what they cost, and the time left, judged by what finished jobs took."""

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
    """A phase of a job, as it is told, and its usual share of the time once the model is loaded.

    The texts may hold {step} and {total}.
    """

    doing: str  # while it runs
    stopped: str  # where it was cancelled
    share: float = 0.0


# In their order. How the time of each grows with a request: see `cost`.
PHASES = {
    "load": Phase("Loading the model, {step} %", "Stopped while loading the model."),
    "encode": Phase("Reading the picture", "Stopped while reading the picture.", 0.03),
    "sample": Phase("Step {step} of {total}", "Stopped at step {step} of {total}.", 0.77),
    "decode": Phase("Painting the frames", "Stopped while painting the frames.", 0.2),
    "save": Phase("Saving", "Stopped while saving."),
}
_ALIKE = 5  # finished jobs of a version by which the next is judged


def cost(request: VideoRequest, phase: str) -> float:
    """A measure of what a phase costs, good for comparing two requests of the same version."""
    area = request.height * request.width
    if phase == "load":
        return 1.0
    if phase == "sample":
        return float(area * request.frames * request.steps * SAMPLERS[request.sampler].evaluations)
    return float(area if phase == "encode" else area * request.frames)


def learned_phases(newest_first: Iterable[Job], request: VideoRequest) -> dict[str, float]:
    """Seconds a phase of a request, judged by the latest finished jobs of its version; {} where there are none."""
    alike = (
        job for job in newest_first if job.state == "done" and job.phases and job.request.version == request.version
    )
    seen: dict[str, list[float]] = {}
    for job in islice(alike, _ALIKE):
        for phase, seconds in job.phases.items():
            seen.setdefault(phase, []).append(seconds * cost(request, phase) / cost(job.request, phase))
    return {phase: statistics.median(seconds) for phase, seconds in seen.items()}


def seconds_loaded(learned: dict[str, float]) -> float | None:
    """What a job takes once its model is loaded; None where nothing was learned."""
    return sum(seconds for phase, seconds in learned.items() if phase != "load") if learned else None


def seconds_left(job: Job, learned: dict[str, float]) -> float | None:
    """Seconds until a running job ends; None while there is no telling."""
    now = time.monotonic()
    at = job.progress
    if at is None:
        return max(0.0, sum(learned.values()) - (now - job.started)) if learned else None
    pace = _seconds_a_step(job)
    if pace is not None:
        left = pace * (at.total - job.latest_step[1]) - (now - job.latest_step[0])
    elif job.phase in learned:
        left = learned[job.phase] - (now - job.phase_started)
    else:
        return None
    later = list(PHASES)[list(PHASES).index(job.phase) + 1 :] if job.phase in PHASES else []
    if learned:
        return max(0.0, left) + sum(learned.get(phase, 0.0) for phase in later)
    if pace is None or job.phase not in PHASES or PHASES[job.phase].share < 0.1:  # too short to judge the others by
        return None
    whole = pace * at.total / PHASES[job.phase].share
    return max(0.0, left) + whole * sum(PHASES[phase].share for phase in later)


def seconds_queued(running: Sequence[float | None], line: Sequence[float | None], workers: int) -> float | None:
    """Seconds until the last of a line ends, if each worker that becomes free takes the next; None if any is None.

    running: what each running job still takes. line: what each queued one takes, in their order.
    """
    free = [seconds for seconds in running if seconds is not None]
    waiting = [seconds for seconds in line if seconds is not None]
    if len(free) < len(running) or len(waiting) < len(line):
        return None
    free += [0.0] * (workers - len(free))
    heapq.heapify(free)
    end = 0.0
    for seconds in waiting:
        end = heapq.heappop(free) + seconds
        heapq.heappush(free, end)
    return end


def fraction_done(job: Job, left: float | None) -> float:
    """Share of a running job that is done, 0 to 1: by time where it can be told, else by steps and usual shares."""
    at = job.progress
    if at is None:
        return 0.0
    if left is not None:
        ran = time.monotonic() - job.started
        return min(1.0, ran / max(ran + left, 1e-6))
    before = sum(phase.share for phase in list(PHASES.values())[: list(PHASES).index(at.phase)])
    return before + PHASES[at.phase].share * at.step / at.total


def doing(job: Job) -> str:
    """What a running job is at, for people."""
    at = job.progress
    return PHASES[job.phase].doing.format(step=at.step, total=at.total) if at else "Loading the model"


def stopped(job: Job) -> str:
    """Where a running job was cancelled, for people."""
    at = job.progress or Progress(job.phase, 0, 0)
    return PHASES[job.phase].stopped.format(step=at.step, total=at.total)


def _seconds_a_step(job: Job) -> float | None:
    """This very job's pace in its phase, between the phase's first step and its latest."""
    (start, first), (latest, step) = job.first_step, job.latest_step
    return (latest - start) / (step - first) if step > first else None
