"""Workers: clips made on several devices at once, or on the processor's threads, with an engine for each device."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch

from sgm.conditioning.memo import Memo
from sgm.devices import watched
from sgm.engine import DiffusionEngine, load_engine
from sgm.pipeline import Clip, generate
from sgm.request import VideoRequest, ViewsRequest
from sgm.run import OnStep, Progress
from sgm.views import make_views

if TYPE_CHECKING:
    from PIL import Image

Load = Callable[..., DiffusionEngine]  # as `load_engine`: (version, *, device, on_progress)


class _Engines:
    """The engines of a device by version, shared by its workers, each kept as long as one of them holds it."""

    def __init__(self, device: torch.device, load: Load) -> None:
        self.device, self._load = device, load
        self._held: WeakValueDictionary[str, DiffusionEngine] = WeakValueDictionary()
        self._loading = threading.Lock()

    def get(self, version: str, on_progress: Callable[[float], None]) -> DiffusionEngine:
        with self._loading:
            if (engine := self._held.get(version)) is None:
                on_progress(0.0)
                engine = self._held[version] = self._load(version, device=str(self.device), on_progress=on_progress)
            return engine


class Worker:
    """Makes clips on a device, one at a time; keeps the engine of its latest clip's version. Made by `workers_on`.

    device: torch's. threads: of the processor, that a clip made there takes.
    """

    def __init__(self, engines: _Engines, threads: int) -> None:
        self.device, self.threads = engines.device, threads
        self._engines = engines
        self._engine: DiffusionEngine | None = None
        self._memo: Memo | None = None  # what the latest clips of a picture, as those of a sweep, have in common

    def missing(self) -> str:
        """Why no clip can be made now, where that may pass; always "" of a device of this machine."""
        return ""

    @property
    def version(self) -> str:
        """The version whose engine is loaded; "" where there is none."""
        return self._engine.version if self._engine else ""

    def generate(
        self,
        request: VideoRequest,
        image: Image.Image,
        on_step: OnStep = lambda progress: None,
        check: Callable[[], None] = lambda: None,
        low_memory: bool = False,
        last: Image.Image | None = None,
    ) -> Clip:
        """`sgm.generate` with this worker's engine, which is loaded first where it is another's.

        A clip has the same bits as one made by `sgm.generate` with as many threads. Raises DeviceFailed where the
        device makes no more clips, and what `load_engine` and `sgm.generate` raise.
        """
        if self.device.type == "cpu" and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)  # of this thread
        engine, memo = self.load(request.version, lambda share: on_step(Progress("load", math.floor(100 * share), 100)))
        check()
        with watched(self.device):
            return generate(engine, request, image, on_step, check, low_memory, memo, last)

    def make_views(
        self,
        request: ViewsRequest,
        clip: Sequence[Image.Image],
        on_step: OnStep = lambda progress: None,
        check: Callable[[], None] = lambda: None,
        low_memory: bool = False,
    ) -> dict[str, Clip]:
        """`sgm.make_views` with this worker's engine, as `generate`."""
        if self.device.type == "cpu" and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)

        def load(version: str, on_progress: Callable[[float], None]) -> DiffusionEngine:
            engine = self.load(version, on_progress)[0]
            check()
            return engine

        with watched(self.device):
            return make_views(request, clip, load, on_step, check, low_memory)

    def load(self, version: str, on_progress: Callable[[float], None]) -> tuple[DiffusionEngine, Memo]:
        """The engine of a version, and its memo. Raises what `load_engine` raises, and DeviceFailed."""
        if self._engine is None or self._memo is None or self._engine.version != version:
            self._engine = self._memo = None  # unload first: two models at once may not fit
            with watched(self.device):
                self._engine = self._engines.get(version, on_progress)
            self._memo = Memo(self._engine, most=4)
        return self._engine, self._memo


def workers_on(devices: Sequence[torch.device], load: Load = load_engine) -> list[Worker]:
    """A worker for each device, as `choose_devices` gives them.

    Workers on the processor share its engines, and torch's threads. load: `load_engine` or what takes its place, called
    with a version and the keywords `device` and `on_progress`.
    """
    engines = {device: _Engines(device, load) for device in devices}
    threads = max(1, torch.get_num_threads() // max(1, sum(device.type == "cpu" for device in devices)))
    return [Worker(engines[device], threads) for device in devices]
