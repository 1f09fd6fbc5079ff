"""A batch on several devices: one thread opens pictures and writes videos, in order; workers make them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sgm.cli.batch import tell_failure
from sgm.cli.console import echo_stderr, progress_bar
from sgm.process import reuse_freed_memory

if TYPE_CHECKING:
    from PIL import Image

    from sgm import Clip, ClusterWorker, DeviceFailed, Progress, Worker
    from sgm.cli.batch import Batch, Source


T = TypeVar("T")
_MOST_LOST = 3  # times that a clip is made again whose machine went away


class _Stopped(Exception):
    """Raised in a worker's thread when the batch has ended."""


class Spread:
    """The clips of a batch, each made by the worker that is free first. A worker whose device fails is taken out."""

    def __init__(self, batch: Batch, workers: Sequence[Worker | ClusterWorker], many: int) -> None:
        self.batch, self.many = batch, many
        self._workers, self._free = len(workers), list(workers)
        self._changed = threading.Condition()  # guards the above
        self._stopping = threading.Event()
        self._shares: dict[int, float] = {}  # number of a clip -> share of it that is made

    def run(self, sources: list[Source]) -> Iterator[bool]:
        """Make the videos; yields for each, in order, whether it was made. Errors of loading end the batch.

        Raises UserError where the disk is full, and where no device is left.
        """
        ahead = 2 * self._workers  # clips in the making or waiting for those before them
        line: deque[tuple[str, str, Image.Image | None, Future[Clip]]] = deque()
        with progress_bar() as show, ThreadPoolExecutor(self._workers) as pool:
            try:
                # Not in this thread: the OpenMP threads that it loaded with would stay, and slow the workers'.
                _result(pool.submit(self._free[0].load, self.batch.request.version, partial(self._loading, show)))
                for number, (stem, source) in enumerate(sources):
                    while len(line) >= ahead:
                        yield self._finish(*line.popleft())
                    name, shown, made = source.name if isinstance(source, Path) else stem, None, Future[Any]()
                    try:
                        image, shown = self.batch.open(source, name)
                        made = pool.submit(self._make, number, image, show)
                    except Exception as error:
                        made.set_exception(error)
                    line.append((name, stem, shown, made))
                while line:
                    yield self._finish(*line.popleft())
            finally:
                self._stopping.set()
                pool.shutdown(cancel_futures=True)

    def _loading(self, show: Any, share: float) -> None:
        self._check()
        show("load", share)

    def _finish(self, name: str, stem: str, shown: Image.Image | None, made: Future[Clip]) -> bool:
        """Wait for a clip and write it, or tell why there is none. Raises the errors that end the batch."""
        try:
            self.batch.write(_result(made), shown, stem)
        except Exception as error:
            if not self._workers:
                raise
            tell_failure(error, name)
            return False
        return True

    def _make(self, number: int, image: Image.Image, show: Any) -> Clip:
        """A clip, by a worker that is free; once more, by another one, where its device fails."""
        from sgm import DeviceAway, DeviceFailed

        def follow(progress: Progress) -> None:
            if progress.note:
                self._tell(progress.note)
            self._shares[number] = progress.fraction
            done = sum(self._shares.values())
            show(f"{int(done)}/{self.many} clips", done / self.many)

        for again in range(_MOST_LOST, -1, -1):
            worker, out = self._take(), False
            try:
                with reuse_freed_memory():
                    job = self.batch.request, image, follow, self._check, self.batch.low_memory, self.batch.last
                    return worker.generate(*job)
            except DeviceAway as failure:  # it comes back
                if not again:
                    raise
                self._tell(f"{str(failure).rstrip('.')}.")
            except DeviceFailed as failure:
                out = self._take_out(failure)
                if not out or again < _MOST_LOST:
                    raise
            finally:
                self._shares[number] = 1.0
                if not out:
                    self._give_back(worker)
        raise AssertionError

    def _take(self) -> Worker | ClusterWorker:
        """A worker, once one is free. Raises DeviceFailed where all were taken out."""
        from sgm import DeviceFailed

        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._free or not self._workers)
                if not self._workers:
                    raise DeviceFailed("No device is left to make clips: see above.")
                worker = self._free.pop(0)
            if not (missing := worker.missing()):
                return worker
            self._tell(f"{missing.rstrip('.')}: clips wait for it.")
            self._give_back(worker)
            self._check()
            self._stopping.wait(0.2)

    def _tell(self, note: str) -> None:
        """Print a note, unless it has been."""
        if note not in self.batch.notes:
            self.batch.notes.add(note)
            echo_stderr(note)

    def _give_back(self, worker: Worker | ClusterWorker) -> None:
        with self._changed:
            self._free.append(worker)
            self._changed.notify()

    def _take_out(self, failure: DeviceFailed) -> bool:
        """Note that a worker's device failed. -> whether it is out: where memory is lacking, the last one stays."""
        with self._changed:
            if not failure.for_good and self._workers == 1:
                return False
            self._workers -= 1
            self._changed.notify_all()
        echo_stderr(f"{failure} {self._workers or 'No'} devices go on.")
        return True

    def _check(self) -> None:
        if self._stopping.is_set():
            raise _Stopped


def _result(work: Future[T]) -> T:
    """What a worker's thread gives, or raises, waited for so that Ctrl-C ends it on every system."""
    while not work.done():
        wait([work], 0.5)
    return work.result()
