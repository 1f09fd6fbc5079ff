"""Estimates of how long jobs take and how much time is left.

The library's typical figures, scaled to the latest finished jobs of a version, those of about the same size first.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from app.jobs.record import Job
from sgm import Progress, VideoRequest, ViewsRequest, typical_seconds

_Typical = dict[str, tuple[float, float]]  # of `typical_seconds`


class Phase(NamedTuple):
    """Texts about a phase of a job, for people. They may contain {step} and {stage}, which says it with the total."""

    doing: str  # while it runs
    stopped: str  # where it was cancelled


PHASES = {  # in their order
    "load": Phase("Loading the model, {step} %", "Stopped while loading the model."),
    "encode": Phase("Reading the picture", "Stopped while reading the picture."),
    "sample": Phase("{stage}", "Stopped at {stage}."),
    "decode": Phase("Painting the frames", "Stopped while painting the frames."),
    "save": Phase("Saving", "Stopped while saving."),
}

_LATEST = 8  # finished jobs of a version that an estimate is based on, beside
_ALIKE, _LOOKED_AT = 3, 64  # as many of the same work among so many before them: drafts do not push them out
_STIFFNESS = 0.3  # how firmly the two parts of a phase keep the typical proportion; a job of the same work weighs 1
_SAME = 0.1  # how far two works may differ to be of one kind, as a power of two
_LEAST_LEFT = 0.03  # share of an expected phase that is left while it takes longer than that


def expected(newest_first: Iterable[Job], request: VideoRequest, device: str, cores: int = 1) -> dict[str, float]:
    """Phase -> seconds that it takes for a request, by the latest finished jobs of its version on such a device.

    device: torch's type of device. cores: used by jobs on a processor.
    """
    finished = list(
        islice(
            (
                job
                for job in newest_first
                if job.state == "done" and job.request.version == request.version and _device(job) in ("", device)
            ),
            _LOOKED_AT,
        )
    )
    typical = functools.partial(typical_seconds, device=device, cores=cores)
    asked = typical(request)
    alike = (job for job in finished[_LATEST:] if _is_alike(asked["sample"][1], typical(job.request)["sample"][1]))
    finished = [*finished[:_LATEST], *islice(alike, _ALIKE)]
    known = [(job, typical(job.request)) for job in finished]
    return {phase: _seconds(phase, known, np.array(parts)) for phase, parts in asked.items()}


def _is_alike(one: float, other: float) -> bool:
    """Whether two works are of one kind."""
    return abs(math.log2(one / other)) < _SAME


def _seconds(phase: str, finished: Sequence[tuple[Job, _Typical]], asked: np.ndarray) -> float:
    """Seconds of a phase: the mean of the latest jobs of this work or, without any, the line through the others.

    finished: jobs, and what is typical of them. asked: the two parts that are typical of what is asked for. The line is
    that of least squares of relative errors, with weights that fall with distance in work and with age.
    """
    same, rows = [], [np.array([_STIFFNESS, -_STIFFNESS, 0.0])]
    for job, typical in finished:
        if (took := job.phases.get(phase, 0.0)) > 1e-6:
            of = np.array(typical[phase])
            if _is_alike(of.sum(), asked.sum()):
                same.append(took * asked.sum() / of.sum())
            distance = math.log2(of.sum() / asked.sum())
            rows.append((0.9 ** len(rows) / (1 + distance**2)) ** 0.5 * np.append(of / took, 1.0))
    if same:
        return float(np.mean(same[:3]))
    if len(rows) == 1:  # never yet, or this way of making clips has no such phase
        return float(asked.sum()) if phase == "load" or not any(job.phases for job, _ in finished) else 0.0
    table = np.stack(rows)
    scales = np.linalg.lstsq(table[:, :2], table[:, 2], rcond=None)[0]
    if scales.min() < 0:  # too few to tell the two apart
        both = table[1:, :2].sum(axis=1)
        scales = np.full(2, both @ table[1:, 2] / (both @ both))
    return float(asked @ scales)


def _device(job: Job) -> str:
    """The type of device that made a job's clip; "" where its recipe does not say."""
    mark = job.settings.get("sgm")
    return str(mark.get("device", "")) if isinstance(mark, dict) else ""


def seconds_left(job: Job, expects: dict[str, float], now: float) -> float:
    """Seconds until a running job ends. now: by the monotonic clock.

    Its own steps correct what is expected, as soon as there are some: this machine may be busier than before.
    """
    order = list(PHASES)
    later = sum(expects[phase] for phase in order[order.index(job.phase) + 1 :]) if job.phase in order else 0.0
    progress, took = job.progress, now - job.phase_started
    if job.phase == "load":
        share = progress.step / progress.total if progress and progress.phase == "load" else 0.0
        load = (job.reported - job.phase_started) / share if share > 0.05 else expects["load"] if progress else 0.0
        return _rest(load, took) + later
    if job.phase != "sample" or progress is None or not progress.total:
        pace = _pace(job.phases.get("sample", 0.0), expects["sample"], 1.0)
        return pace * (_rest(expects.get(job.phase, 0.0), took / pace) + later)
    share = progress.step / progress.total
    pace = _pace(job.reported - job.phase_started, expects["sample"], share)
    ahead = expects["sample"] * (1 - share) - (now - job.reported) / pace  # of this phase
    return pace * (max(ahead, 0.0) + later)


def _pace(took: float, expects: float, share: float) -> float:
    """How much longer than expected a share of sampling took. The expectation counts like a tenth of all steps."""
    return (took + 0.1 * expects) / ((share + 0.1) * expects) if took and share and expects else 1.0


def _rest(expects: float, took: float) -> float:
    return max(expects - took, _LEAST_LEFT * expects)


def queue_ends(running: Sequence[float], queued: Sequence[float], workers: int) -> list[float]:
    """Seconds until each queued job ends, if each worker that becomes free takes the next.

    running: seconds left of each running job. queued: seconds that each queued job takes, in their order.
    """
    free = [*running, *[0.0] * (workers - len(running))]
    heapq.heapify(free)
    ends = []
    for seconds in queued:
        ends.append(heapq.heappop(free) + seconds)
        heapq.heappush(free, ends[-1])
    return ends


def fraction_done(job: Job, left: float, now: float) -> float:
    """Share of a running job that is done, 0 to 1, by the time that is `left`; never less than it was."""
    ran = now - job.started
    return max(job.fraction, min(0.99, ran / max(ran + left, 1e-6)))


def doing(job: Job) -> str:
    """A running job's phase and step, for people."""
    return _text(job, 0) if job.progress else "Loading the model"


def stopped(job: Job) -> str:
    """The phase and step at which a running job was cancelled, for people."""
    return _text(job, 1)


def _text(job: Job, kind: int) -> str:
    progress = job.progress or Progress(job.phase, 0, 0)
    step = progress.step if job.phase == "load" else max(progress.step, 1)  # the first step runs before it is reported
    stage = job.request.stage(step) if isinstance(job.request, ViewsRequest) else f"Step {step} of {progress.total}"
    stage = stage[0].lower() + stage[1:] if kind else stage
    return PHASES[job.phase][kind].format(step=step, stage=stage)
