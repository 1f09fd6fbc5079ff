"""Runners, which make a job's clip, and `run`, which follows one: progress, preview and outcome of the job.

The runner is the interface for other ways to make clips, such as another process or machine.
"""

from __future__ import annotations

import functools
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from PIL import Image

from app.jobs import estimate
from app.jobs.record import Job, ViewsClip, small_jpeg, stored_input, stored_last
from sgm import (
    EXPORTS,
    Clip,
    Cluster,
    ClusterWorker,
    DeviceFailed,
    Progress,
    UserError,
    ViewsRequest,
    Worker,
    choose_devices,
    describe_device,
    load_engine,
    workers_on,
)
from sgm.process import collect_and_freeze, reuse_freed_memory

log = logging.getLogger(__name__)

_PREVIEW_EVERY = 0.8  # seconds, less than the interval at which the page looks for a new one
_PREVIEW_SHARE = 0.02  # of a job's time, that drawing its previews may take
Make = Callable[[Job, Callable[[Progress], None], Callable[[], None]], Clip]  # as `Runner.__call__`


class Cancelled(Exception):
    """Raised in a runner's thread when its job has been cancelled."""


class Runner(ABC):
    """Makes clips, one at a time. The table has a worker, which is a thread, for each runner.

    device: its name, for people, noted with each job. kind: torch's type of device; cores: of the processor, that a job
    takes there: both for estimates.
    """

    device, kind, cores = "", "cpu", 1

    @property
    def version(self) -> str | None:
        """The version whose model is loaded; "" where there is none, None where none needs to be."""
        return None

    def about(self) -> str:
        """The device, as the page shows it."""
        return self.device

    def missing(self) -> str:
        """Why no clip can be made now, where that may pass, or "". Called before each job; may take seconds."""
        return ""

    @abstractmethod
    def __call__(self, job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        """Make a job's clip. `on_step` and `check`, to be called often, may raise: that ends the job.

        Raises DeviceFailed where this runner makes no more clips: the table takes its worker out, and the job goes back
        in line once; DeviceAway where it makes none until `missing` says so. UserError and any other error is the job's
        own.
        """


class FunctionRunner(Runner):
    """The runner of a function."""

    def __init__(self, make: Make) -> None:
        self._make = make

    def __call__(self, job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        return self._make(job, on_step, check)


class EngineRunner(Runner):
    """The runner with real models, which keeps the engine of the latest version loaded."""

    def __init__(self, worker: Worker | None = None, gpus: int = 1) -> None:
        self._gpus = gpus  # that compute each clip together
        self._worker = worker or workers_on(choose_devices()[:1], load_and_freeze)[0]
        self.device, self.kind = str(self._worker.device), self._worker.device.type
        self.cores = self._worker.threads

    @property
    def version(self) -> str:
        return self._worker.version

    def about(self) -> str:
        others = f" · with the {self._gpus - 1} after it" if self._gpus > 1 else ""
        return describe_device(self._worker.device) + others

    def __call__(self, job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        with reuse_freed_memory():
            return _made(self._worker, job, on_step, check)


class ClusterRunner(Runner):
    """The runner of a device of a Ray cluster."""

    def __init__(self, worker: ClusterWorker) -> None:
        self._worker = worker
        self.kind, self.cores = worker.kind, worker.threads

    @property
    def device(self) -> str:
        return self._worker.name

    @property
    def version(self) -> str:
        return self._worker.version

    def about(self) -> str:
        return self._worker.about()

    def missing(self) -> str:
        return self._worker.missing()

    def __call__(self, job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        return _made(self._worker, job, on_step, check)


def _made(
    worker: Worker | ClusterWorker, job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]
) -> Clip:
    """A job's clip by a worker; of a clip's views the grid, with all others."""
    request, given = job.request, stored_input(job)
    if not (isinstance(request, ViewsRequest) and isinstance(given, list)):
        assert not isinstance(given, list)
        return worker.generate(request, given, on_step, check, last=stored_last(job))
    made = worker.make_views(request, request.family.prepare_clip(given, request), on_step, check)
    grid = made.pop("grid")
    return ViewsClip(grid.frames, grid.fps, grid.settings, made)


def runners_of(cluster: Cluster) -> list[Runner]:
    """A runner for each worker of a Ray cluster."""
    return [ClusterRunner(worker) for worker in cluster.workers]


def runners_on(devices: str, gpus: int = 1) -> list[Runner]:
    """A runner for each device, or for each `gpus` of them. Both as for `sgm.choose_devices`; raises as that does."""
    load = functools.partial(load_and_freeze, gpus=gpus)
    return [EngineRunner(worker, gpus) for worker in workers_on(choose_devices(devices, gpus), load)]


def load_and_freeze(version: str, **options: Any) -> Any:
    """`sgm.load_engine`, with the garbage of the engine before collected, and the new one never searched for any."""
    collect_and_freeze()
    engine = load_engine(version, **options)
    collect_and_freeze()
    return engine


def run(
    job: Job,
    runner: Runner,
    write_clip: Callable[[Job, Clip], dict[str, Any]],
    changing: AbstractContextManager[Any],
) -> dict[str, Any]:
    """Run a job until it is done, failed or cancelled. Returns the job's fields that describe the outcome.

    Raises DeviceFailed as the runner does. write_clip: stores the clip; returns further fields. changing: a lock, held
    while the job's progress is changed.
    """
    drawn = spent = 0.0  # when the latest preview was drawn, and seconds that all took

    def check() -> None:
        if job.stopping:
            raise Cancelled

    def enter(phase: str, progress: Progress | None = None) -> None:
        with changing:
            if job.phase != "load" or job.progress:  # a model that was loaded already teaches nothing
                job.phases[job.phase] = time.monotonic() - job.phase_started
            job.enter(phase, progress)

    def draw(preview: Callable[[], Any]) -> None:
        nonlocal drawn, spent
        now = time.monotonic()
        if now - drawn > _PREVIEW_EVERY and spent <= _PREVIEW_SHARE * (now - job.started):
            try:
                frames = preview()  # which waits for the device
                start = time.monotonic()
                job.preview = small_jpeg(Image.fromarray(frames[len(frames) // 2]))
                job.moving = EXPORTS["WebP"][2](frames, job.request.fps) if len(frames) > 1 else b""
                job.preview_number += 1
                spent += time.monotonic() - start
            except Exception as error:  # of any kind: the clip does not depend on it
                log.warning("job %s has no preview: %s", job.id, error)
            drawn = time.monotonic()

    def on_step(progress: Progress) -> None:
        check()
        if progress.preview:
            draw(progress.preview)
        progress = replace(progress, preview=None)  # it holds tensors
        if (progress.phase, progress.step) == ("encode", progress.total):  # the first step has begun
            progress = replace(progress, phase="sample", step=0, total=job.request.total_steps)
        if progress.phase != job.phase:
            enter(progress.phase, progress)
        else:
            with changing:
                job.go_on(progress)

    try:
        clip = runner(replace(job), on_step, check)
        enter("save")
        outcome = write_clip(job, clip)
        job.phases["save"] = time.monotonic() - job.phase_started
        return {"state": "done", "settings": clip.settings, **outcome}
    except Cancelled:
        return {"state": "cancelled", "message": estimate.stopped(job)}
    except DeviceFailed:
        raise
    except UserError as error:
        return {"state": "failed", "message": str(error)}
    except BaseException as error:  # of any kind: the worker goes on with the next job
        log.exception("job %s failed", job.id)
        return {"state": "failed", "message": f"{type(error).__name__}: {error}. The server's log has the details."}
