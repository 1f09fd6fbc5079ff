"""Driver: talks to Ray, in a process of its own, which ends with the program, or when the cluster is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.managers import BaseManager
from typing import Any

from sgm.cluster.maker import Unfit
from sgm.errors import UserError, printable

_HEAD_GONE_AFTER = 15  # seconds without the head, after which Ray ends this process; unless told, 60
_RETRY_UNFIT = 30.0  # seconds, after which a node that was unfit is tried again
_STOP_WITHIN = 20.0  # seconds, in which a job that is to stop does so; else its actor is ended
_ANSWER_WITHIN = 10.0  # seconds, for an actor; loading weights may hold one up
_NODE_GONE = "A node of the Ray cluster is gone"


class Lost(Exception):
    """Raised where an actor is gone: a job that ran there can be made by another."""


class NoCluster(UserError):
    """Raised where "auto" finds no cluster: "local" then starts one, in a process that has not looked for any."""


@dataclass
class _Slot:
    """A place for an actor. number: of its latest job; unfit: why it makes no clips, until `again`."""

    actor: Any = None
    versions: Any = None  # the answer that is waited for when it has been made
    about: dict[str, str] | None = None
    job: Any = None
    number: int = -1
    unfit: str = ""
    again: float = 0.0

    def set_unfit(self, reason: str) -> None:
        self.unfit, self.again = reason, time.monotonic() + _RETRY_UNFIT


class Driver:
    """A cluster's actors, one a slot. Arguments and results are plain values and bytes."""

    _ray: Any = None
    _own = False  # whether the cluster was started here

    def connect(self, address: str, slots: int | None, versions: dict[str, str], maker: str) -> dict[str, Any]:
        """Connect this process, once. -> the cluster's "address", number of "slots", torch's "kind" of its devices.

        address: "HOST:PORT" of the head; "auto", for the cluster that runs on this machine; or "local", to start one
        here, for this machine alone. slots: how many; None for as many as there are GPUs or,
        without any, cores. versions: that nodes must have. maker: "module:class" of the actor. Raises NoCluster, and
        UserError where the cluster cannot be used or has nothing that makes clips.
        """
        self._own = address == "local"
        if self._own:  # out of other machines' and users' reach
            os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_AUTH_MODE="token")
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(_HEAD_GONE_AFTER))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # no cluster of its own once this one is gone
        os.environ.setdefault("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
        try:
            ray = import_module("ray")
            self._errors = import_module("ray.exceptions")
        except ImportError as error:
            raise UserError(f'--ray needs Ray ({error}): python -m pip install "sgm-video[ray]".') from None
        self._ray, self._versions = ray, versions
        self._address = _connect(ray, address)
        module, _, name = maker.partition(":")
        self._maker = getattr(import_module(module), name)
        resources = ray.cluster_resources()
        self._kind = "GPU" if resources.get("GPU") else "CPU"
        count = slots or int(resources.get(self._kind, 0))
        if not count:
            raise UserError(
                f"The Ray cluster at {self._address} has neither a GPU nor a core for clips: start a node (ray start "
                f"--address={self._address}), or say with --ray-actors how many devices are to come."
            )
        self._slots = [_Slot() for _ in range(count)]
        threading.Thread(target=self._end_with_node, daemon=True).start()
        return {"address": self._address, "slots": count, "kind": "cuda" if self._kind == "GPU" else "cpu"}

    def leave(self) -> None:
        """Leave the cluster, which ends the actors; one that was started here ends with this process."""
        if self._ray and not self._own:
            with contextlib.suppress(Exception):
                self._ray.shutdown()

    def missing(self, index: int) -> str:
        """Why a slot's actor cannot make a clip now, or ""; makes the actor where there is none."""
        slot = self._slots[index]
        if slot.unfit and time.monotonic() < slot.again:
            return slot.unfit
        try:
            if slot.actor is None:
                room = {"num_cpus": 1, "num_gpus": int(self._kind == "GPU"), "scheduling_strategy": "SPREAD"}
                slot.actor = self._ray.remote(self._maker).options(max_concurrency=2, **room).remote()
                slot.versions = slot.actor.versions.remote()
            if not self._ray.wait([slot.versions], timeout=1)[0]:
                return f"The Ray cluster at {self._address} has no {self._kind} free"
            if slot.about is None:
                self._check_versions(self._ray.get(slot.versions))
                slot.about = self._ray.get(slot.actor.about.remote())
            self._ray.get(slot.actor.stop.remote(slot.number), timeout=_ANSWER_WITHIN)  # whoever is gone is silent
        except self._errors.GetTimeoutError:
            return "A node of the Ray cluster does not answer"
        except (self._errors.RayError, UserError) as error:
            self.drop(index)
            reason = _sentence(error)
            if reason != _NODE_GONE:
                slot.set_unfit(reason)
            return reason
        slot.unfit = ""
        return ""

    def about(self, index: int) -> dict[str, str]:
        """As `Maker.about`; {} where there is no actor."""
        return self._slots[index].about or {}

    def start(self, index: int, job: bytes) -> None:
        """Have a slot's actor, which must have none, make a clip. Raises Lost."""
        slot = self._slots[index]
        if slot.actor is None:
            raise Lost(_NODE_GONE)
        slot.number += 1
        slot.job = slot.actor.make.remote(slot.number, job)

    def follow(self, index: int, seconds: float) -> tuple[bytes, bytes | None]:
        """Wait for a slot's job, so long at most. -> its news, b"" where there is no answer; its clip once it is made.

        Raises Lost where the actor is gone, and what `Maker.make` raised.
        """
        slot, news = self._slots[index], b""
        try:
            done, _ = self._ray.wait([slot.job], timeout=seconds)
            with contextlib.suppress(self._errors.GetTimeoutError):
                news = self._ray.get(slot.actor.news.remote(), timeout=_ANSWER_WITHIN)
            return news, self._ray.get(slot.job) if done else None
        except self._errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, Unfit):
                slot.set_unfit(str(cause))
                self.drop(index)
            if isinstance(cause, (OSError, EOFError)):  # which would look like one of the connection to this process
                raise RuntimeError(f"{type(cause).__name__}: {cause}") from None
            raise cause from None
        except self._errors.RayError as error:
            self.drop(index)
            raise Lost(_sentence(error)) from None

    def stop(self, index: int) -> None:
        """Stop a slot's job, and wait until it has ended; an actor that goes on is ended itself."""
        slot = self._slots[index]
        try:
            slot.actor.stop.remote(slot.number)
            ended = self._ray.wait([slot.job], timeout=_STOP_WITHIN)[0]
        except (self._errors.RayError, AttributeError):  # it is gone
            ended = []
        if not ended:
            self.drop(index)

    def drop(self, index: int) -> None:
        """End a slot's actor."""
        slot = self._slots[index]
        if slot.actor is not None:
            with contextlib.suppress(self._errors.RayError):
                self._ray.kill(slot.actor)  # also where it is out of reach for a while: it must not go on
        slot.actor = slot.versions = slot.about = slot.job = None

    def _check_versions(self, there: dict[str, str]) -> None:
        if other := [name for name in self._versions if there.get(name) != self._versions[name]]:
            theirs, ours = (
                " and ".join(f"{name} {has.get(name)}" for name in other) for has in (there, self._versions)
            )
            raise UserError(f"A node of the Ray cluster has {theirs}, this machine {ours}: install the same on both")

    def _end_with_node(self) -> None:
        """End this process when this machine's node of the cluster is gone. When the head is, Ray does so."""
        own = self._ray.get_runtime_context().get_node_id()
        while True:
            time.sleep(3)
            with contextlib.suppress(Exception):  # the head does not answer
                if own not in {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}:
                    _end()


def serve() -> None:
    """Serve a Driver until stdin ends, by multiprocessing's protocol. stdin: the key; stdout: the address, a line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    driver = Driver()
    BaseManager.register("driver", lambda: driver)
    server = BaseManager(authkey=sys.stdin.buffer.readline().strip()).get_server()
    print(repr(server.address), flush=True)
    os.dup2(2, 1)  # nobody reads on, and Ray prints

    def end_with_program() -> None:
        sys.stdin.buffer.read()
        driver.leave()
        _end()

    threading.Thread(target=end_with_program, daemon=True).start()
    server.serve_forever()


def _end() -> None:
    """End this process, and what is left of a cluster that it started."""
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)  # the group is its own, see `Cluster`
    os._exit(1)


def _connect(ray: Any, address: str) -> str:
    """Connect this process to a cluster, or start one. Returns its address. Raises UserError."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    try:
        context = ray.init(address, **quiet)
    except Exception as error:  # Ray raises many kinds
        if address == "auto" and isinstance(error, ConnectionError):
            raise NoCluster("No Ray cluster runs on this machine.") from None
        where = "The Ray cluster of this machine" if address in ("auto", "local") else f"The Ray cluster at {address}"
        if "ersion mismatch" in str(error):
            raise UserError(f"{where} is of another version: {printable(' '.join(str(error).split()), 500)}") from None
        raise UserError(
            f"{where} cannot be used: {_sentence(error)}. This machine must be a node of it, as by ray start "
            "--address=HOST:PORT --num-cpus=0"
        ) from None
    return context.address_info["gcs_address"]


def _sentence(error: Exception) -> str:
    """An error of Ray's in a few words; of those of a node's own, the last line says what happened."""
    kind = type(error).__name__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [kind]
    if isinstance(error, UserError):
        return str(error)
    if "creation task" in lines[0] or kind.startswith("RayTaskError"):
        return printable(f"A node of the Ray cluster cannot make clips ({lines[-1]}): install the same there", 300)
    if kind in ("ActorDiedError", "ActorUnavailableError", "RayActorError", "NodeDiedError", "ObjectLostError"):
        return _NODE_GONE
    return printable(lines[0].rstrip("."), 300)
