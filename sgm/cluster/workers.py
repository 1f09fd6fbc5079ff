"""Cluster and its workers: the program's side, which outlives the loss of nodes and of the head."""

from __future__ import annotations

import ast
import functools
import os
import pickle
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgm.cluster.driver import Lost, NoCluster
from sgm.cluster.maker import Unfit, versions
from sgm.devices import DeviceAway
from sgm.errors import UserError
from sgm.pipeline import Clip
from sgm.request import VideoRequest, ViewsRequest
from sgm.run import OnStep
from sgm.versions import checkpoint_folders

if TYPE_CHECKING:
    from PIL import Image

_LOOK_EVERY = 0.25  # seconds, at which a job is asked how it goes, and told to stop
_CONNECT_EVERY = 5.0  # seconds, at which a cluster is looked for that is gone


class Cluster:
    """A Ray cluster's devices, as `workers`.

    address: "HOST:PORT" of the cluster's head, of which this machine is a node, or "auto": the one that RAY_ADDRESS
    names or that runs on this machine, else one that is started here, for this machine alone. actors: how many devices;
    what is more than there are waits for nodes to come (None: all that there are now, GPUs or, in a cluster without
    any, cores). options: of `load_engine`, such as dtype and checkpoint, a path on the nodes. maker: "module:class"
    that takes the place of `sgm.cluster.maker.Maker`. Raises UserError where Ray is not installed, where there is no
    such cluster, and where nothing in it makes clips.
    """

    def __init__(
        self,
        address: str = "auto",
        actors: int | None = None,
        options: dict[str, Any] | None = None,
        maker: str = "sgm.cluster.maker:Maker",
    ) -> None:
        self.address, self.kind, self.options = address, "cpu", options or {}
        self._asked, self._actors, self._maker = address, actors, maker
        self._connecting = threading.Lock()
        self._refused, self._refused_at = "", 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._driver: Any = None
        self._connect()
        self.workers = [ClusterWorker(self, index) for index in range(self._actors or 0)]

    def close(self) -> None:
        """End the actors, and a cluster that was started here."""
        with self._connecting:
            self._end()

    def ask(self, question: str, *args: Any) -> Any:
        """The answer of the driver's method of that name. Raises DeviceAway where actor, node or head is gone."""
        driver = self._driver
        try:
            if driver is not None:
                return getattr(driver, question)(*args)
        except (Lost, Unfit) as error:
            raise DeviceAway(str(error)) from error
        except (EOFError, OSError):  # of the connection: a job's own errors are of other kinds, or come as they are
            with self._connecting:
                if driver is self._driver:
                    self._end()
        raise DeviceAway(f"The Ray cluster at {self.address} is gone.")

    def reconnect(self) -> str:
        """Connect anew where the cluster was lost. Returns why that cannot be done, or ""."""
        with self._connecting:
            if self._driver is None and time.monotonic() - self._refused_at > _CONNECT_EVERY:
                try:
                    self._connect()
                except UserError as error:
                    self._refused, self._refused_at = str(error), time.monotonic()
            return "" if self._driver is not None else self._refused

    def _connect(self) -> None:
        address = os.environ.get("RAY_ADDRESS") or "auto" if self._asked == "auto" else self._asked
        if address != "auto":
            _check_reachable(address)
        try:
            self._start(address)
        except NoCluster:
            self._start("local")

    def _start(self, address: str) -> None:
        """Start the driver, and have it connect. Raises UserError, NoCluster."""
        key = secrets.token_hex().encode()
        root = str(Path(__file__).parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
            "SGM_CHECKPOINTS": str(checkpoint_folders()[0]),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sgm.cluster"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Ray has logs of its own
            env=environment,
            cwd=root,  # Ray and its actors import from the folder that they are started in
            start_new_session=True,  # Ctrl-C is for the program
        )
        try:
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.write(key + b"\n")
            self._process.stdin.flush()
            manager = _Service(ast.literal_eval(self._process.stdout.readline().decode()), key)
            manager.connect()
            driver = manager.driver()  # pyright: ignore[reportAttributeAccessIssue]
            found = driver.connect(address, self._actors, versions(), self._maker)
        except BaseException as error:
            self._end()
            if isinstance(error, (EOFError, OSError, SyntaxError)):
                raise UserError(f"Ray ended while it connected to {address}: look at its logs.") from error
            raise
        self._driver, self.address = driver, found["address"]
        self._actors, self.kind = found["slots"], found["kind"]

    def _end(self) -> None:
        process, self._process, self._driver = self._process, None, None
        if process is None or process.stdin is None or process.stdout is None:
            return
        with suppress(OSError):
            process.stdin.close()  # upon which it ends
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class _Service(BaseManager):
    """The driver's process, as reached from here."""


_Service.register("driver")


def _check_reachable(address: str) -> None:
    """Raise UserError where nothing listens at an address: Ray would wait for it."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()) or "/" in host:
        raise UserError(f"The address of a Ray cluster is HOST:PORT of its head, as 10.0.0.1:6379; got '{address}'.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"No Ray cluster answers at {address} ({reason}): start its head there (ray start --head --port={port}), "
            "or give another address."
        ) from None


@functools.cache
def cluster_at(address: str, actors: int | None = None) -> Cluster:
    """The process's cluster at an address, as of `Cluster`: the same for all who ask."""
    return Cluster(address, actors)


class ClusterWorker:
    """Makes clips by an actor of a cluster, one at a time, as `sgm.Worker` does here. Made by `Cluster`.

    version: of the model that the actor has loaded, or "". threads: of a processor, that a clip takes there.
    """

    threads = 1

    def __init__(self, cluster: Cluster, index: int) -> None:
        self._cluster, self._index = cluster, index
        self._about: dict[str, str] = {}
        self.version = ""

    @property
    def name(self) -> str:
        """The device, for people."""
        return self._about.get("name", "ray")

    @property
    def kind(self) -> str:
        """torch's type of the device."""
        return self._cluster.kind

    def about(self) -> str:
        """The device and its machine, for people."""
        return self._about.get("about", f"Ray at {self._cluster.address}")

    def missing(self) -> str:
        """Why no clip can be made now, or "" where one can. Takes some seconds where an actor is to be started."""
        try:
            reason = self._cluster.reconnect() or self._cluster.ask("missing", self._index)
            if not reason:
                self._about = self._cluster.ask("about", self._index)
            return reason
        except UserError as error:
            return str(error)
        except Exception as error:  # of any kind: the worker's thread looks again
            return f"{type(error).__name__}: {error}"

    def load(self, version: str, on_progress: Callable[[float], None]) -> None:
        """Nothing: an actor loads a model with its first clip, as it may be another's by then."""

    def generate(
        self,
        request: VideoRequest,
        image: Image.Image,
        on_step: OnStep = lambda progress: None,
        check: Callable[[], None] = lambda: None,
        low_memory: bool = False,
        last: Image.Image | None = None,
    ) -> Clip:
        """As `sgm.Worker.generate`, where `missing` is "". Raises DeviceAway where the actor, or its device, fails.

        What `on_step` and `check` raise ends the job there at its next check, and is raised when it has ended.
        """
        return self._made(request, on_step, check, image.copy(), low_memory, last and last.copy())

    def make_views(
        self,
        request: ViewsRequest,
        clip: Sequence[Image.Image],
        on_step: OnStep = lambda progress: None,
        check: Callable[[], None] = lambda: None,
        low_memory: bool = False,
    ) -> dict[str, Clip]:
        """As `sgm.Worker.make_views`, and as `generate`."""
        return self._made(request, on_step, check, [frame.copy() for frame in clip], low_memory, None)

    def _made(self, request: VideoRequest, on_step: OnStep, check: Callable[[], None], *job: Any) -> Any:
        """What the actor makes of a request and a job's other values."""
        self.version = ""
        self._cluster.ask("start", self._index, pickle.dumps((request, *job, self._cluster.options), protocol=5))
        while True:
            news, made = self._cluster.ask("follow", self._index, _LOOK_EVERY)
            try:
                check()
                for progress, preview in pickle.loads(news) if news else []:
                    draw = None if preview is None else functools.partial(lambda drawn: drawn, preview)
                    on_step(replace(progress, preview=draw))
            except BaseException:
                with suppress(DeviceAway):
                    self._cluster.ask("stop", self._index)
                raise
            if made is not None:
                self.version = request.version
                return pickle.loads(made)
