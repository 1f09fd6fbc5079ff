"""Runners, which make a job's clip, and `run`, which follows one: progress, preview and outcome of the job.

The runner is the interface for other ways to make clips, such as another process or machine.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from PIL import Image

from app.jobs import estimate
from app.jobs.record import Job, small_jpeg, stored_picture
from sgm import Clip, Memo, Progress, UserError, choose_device, generate, load_engine
from sgm.process import collect_and_freeze, reuse_freed_memory

log = logging.getLogger(__name__)

# (job, on_step, check) -> clip. Both functions may raise; `check` is to be called often.
Runner = Callable[[Job, Callable[[Progress], None], Callable[[], None]], Clip]
_PREVIEW_EVERY = 0.8  # seconds, less than the interval at which the page looks for a new one


class Cancelled(Exception):
    """Raised in a runner's thread when its job has been cancelled."""


class EngineRunner:
    """The runner with real models, which keeps the engine of the latest version loaded."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._memo: Memo | None = None  # what the latest clips of a picture, as those of a sweep, have in common
        self._loading = threading.Lock()

    @property
    def version(self) -> str:
        """The version whose engine is loaded; "" where there is none."""
        return self._engine.version if self._engine else ""

    def __call__(self, job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        picture = stored_picture(job)
        with self._loading:
            engine, memo = self._loaded(job.request.version, on_step)
        check()
        with reuse_freed_memory():
            return generate(engine, job.request, picture, on_step, check, memo=memo)

    def _loaded(self, version: str, on_step: Callable[[Progress], None]) -> tuple[Any, Memo | None]:
        if self._engine is None or self._engine.version != version:
            self._engine = self._memo = None  # unload first: two models at once may not fit
            collect_and_freeze()
            on_step(Progress("load", 0, 100))
            self._engine = load_engine(
                version, on_progress=lambda share: on_step(Progress("load", math.floor(100 * share), 100))
            )
            self._memo = Memo(self._engine, most=4)
            collect_and_freeze()
        return self._engine, self._memo


def run(
    job: Job,
    runner: Runner,
    write_clip: Callable[[Job, Clip], dict[str, Any]],
    changing: AbstractContextManager[Any],
) -> dict[str, Any]:
    """Run a job until it is done, failed or cancelled. Returns the job's fields that describe the outcome.

    write_clip: stores the clip; returns further fields. changing: a lock, held while the job's progress is changed.
    """
    drawn = 0.0

    def check() -> None:
        if job.stopping:
            raise Cancelled

    def enter(phase: str, progress: Progress | None = None) -> None:
        with changing:
            if job.phase != "load" or job.progress:  # a model that was loaded already teaches nothing
                job.phases[job.phase] = time.monotonic() - job.phase_started
            job.enter(phase, progress)

    def draw(preview: Callable[[], Any]) -> None:
        nonlocal drawn
        if time.monotonic() - drawn > _PREVIEW_EVERY:
            try:
                job.preview = small_jpeg(Image.fromarray(preview()))
                job.preview_number += 1
            except Exception as error:  # of any kind: the clip does not depend on it
                log.warning("job %s has no preview: %s", job.id, error)
            drawn = time.monotonic()

    def on_step(progress: Progress) -> None:
        check()
        if progress.preview:
            draw(progress.preview)
        progress = replace(progress, preview=None)  # it holds tensors
        if (progress.phase, progress.step) == ("encode", progress.total):  # the first step has begun
            progress = replace(progress, phase="sample", step=0, total=job.request.steps)
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
    except UserError as error:
        return {"state": "failed", "message": str(error)}
    except BaseException as error:  # of any kind: the worker goes on with the next job
        log.exception("job %s failed", job.id)
        return {"state": "failed", "message": f"{type(error).__name__}: {error}. The server's log has the details."}


@functools.cache
def device_type() -> str:
    """torch's type of the device that makes clips: "cpu", "cuda" or "mps"."""
    return choose_device(None).type


def cores() -> int:
    """How many cores of a processor a job uses."""
    import torch

    return torch.get_num_threads()


def device() -> str:
    """The device that makes clips, and its free memory, for people."""
    import torch

    if torch.cuda.is_available():
        free, total = (value / 2**30 for value in torch.cuda.mem_get_info())
        return f"{torch.cuda.get_device_name().removeprefix('NVIDIA ')} · {free:.0f} of {total:.0f} GB free"
    return "Apple GPU" if torch.backends.mps.is_available() else "CPU"
