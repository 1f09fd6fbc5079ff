"""Maker: what an actor does on a node of the cluster. It has one job at a time, and can be asked about it meanwhile."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sgm import __version__
from sgm.errors import UserError

if TYPE_CHECKING:
    from sgm.engine import DiffusionEngine
    from sgm.run import Progress

_PREVIEW_EVERY = 0.8  # seconds


class Stopped(Exception):
    """Raised in a job that nobody waits for any more."""


class Unfit(UserError):
    """Raised where a node cannot make clips, which another may: its device fails, or it lacks the weights."""


def versions() -> dict[str, str]:
    """What must be the same on every machine: name -> version, without the build's kind, such as +cu128."""
    return {"sgm-video": __version__, "torch": version("torch").partition("+")[0]}


class Maker:
    """The actor: keeps an engine loaded, makes clips one at a time, tells how they go, and stops.

    One of its two threads is for `make`. Jobs, news and clips are pickled at both ends, so that the driver, which
    passes them on, needs no torch.
    """

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._news: list[tuple[Progress, Any]] = []  # with a preview, if there is a new one
        self._stopped = -1  # the latest job that is to stop
        self._worker: Any = None
        self._options: dict[str, Any] = {}

    def versions(self) -> dict[str, str]:
        """As the function."""
        return versions()

    def about(self) -> dict[str, str]:
        """The device, for people: its "name", and "about" it."""
        from sgm import choose_devices, describe_device

        device, host = choose_devices()[0], socket.gethostname()
        # An actor sees its own GPU alone, as cuda:0.
        number = f":{os.environ.get('CUDA_VISIBLE_DEVICES', '0')}" if device.type == "cuda" else ""
        return {"name": f"{host} {device.type}{number}", "about": f"{describe_device(device)} · {host}"}

    def make(self, number: int, job: bytes) -> bytes:
        """Make a clip, or all of a clip's views. number: of the job, higher than those before.

        Raises Stopped, Unfit, and as `sgm.generate`.
        """
        request, given, low_memory, last, options = pickle.loads(job)
        drawn = 0.0

        def check() -> None:
            if number <= self._stopped:
                raise Stopped

        def on_step(progress: Progress) -> None:
            nonlocal drawn
            check()
            preview = None
            if progress.preview and time.monotonic() - drawn > _PREVIEW_EVERY:
                preview, drawn = progress.preview(), time.monotonic()
            with self._changing:
                if not self._news or self._news[-1] != (progress, preview):  # the weights' tensors are many
                    self._news.append((replace(progress, preview=None), preview))

        with self._changing:
            self._news.clear()
        job_of = request, given, on_step, check, low_memory, last
        return pickle.dumps(self._generate(options, *job_of), protocol=5)

    def news(self) -> bytes:
        """The progress since the last call: pickled (Progress, preview as uint8 (n, h, w, 3) or None), in order."""
        with self._changing:
            news, self._news = self._news, []
        return pickle.dumps(news)

    def stop(self, number: int) -> None:
        """Stop a job, and those before, at its next check."""
        self._stopped = number

    def _generate(self, options: dict[str, Any], *job: Any) -> Any:
        """What this node's worker makes, whose engines are loaded with these options of `load_engine`."""
        from sgm import DeviceFailed, ViewsRequest, choose_devices, workers_on
        from sgm.process import reuse_freed_memory

        if self._worker is None or options != self._options:
            self._worker = None  # unload first: two models at once may not fit
            self._worker, self._options = workers_on(choose_devices()[:1], partial(_load, options))[0], options
        try:
            with reuse_freed_memory():
                if isinstance(job[0], ViewsRequest):
                    return self._worker.make_views(*job[:-1])  # which has no last picture
                return self._worker.generate(*job)
        except DeviceFailed as error:
            raise Unfit(f"{socket.gethostname()}: {error}") from error


def _load(options: dict[str, Any], version: str, **more: Any) -> DiffusionEngine:
    """`sgm.load_engine`. Raises Unfit where it raises UserError."""
    from sgm import load_engine

    try:
        return load_engine(version, **{**more, **options})
    except UserError as error:
        raise Unfit(f"{socket.gethostname()}, a node of the Ray cluster, cannot load {version}: {error}") from error
