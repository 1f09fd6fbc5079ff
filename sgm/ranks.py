"""Leader and Follower: the processes that compute clips together, each with the whole engine on a device of its own.

The leader starts the followers, which load the same weights and wait for its jobs. Each follower makes all of a job's
calls, with the same noise; at every gate (before each block of a network) it waits for the leader's word to go on.
Words and jobs go through pipes, tensors through a torch.distributed process group, on this machine only.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist

from sgm.errors import printable
from sgm.fast.shard import Ranks

logger = logging.getLogger(__name__)
_GO, _STOP = True, False


class Stopped(Exception):
    """Raised in a follower where its leader ended the job."""


class FollowersLost(Exception):
    """Raised in the leader when a follower is gone, or no longer in step: this and later clips are the leader's."""


def start_ranks(first: torch.device, count: int, load: Mapping[str, Any]) -> Ranks:
    """The processes of `count` devices, from `first` on: this one's rank. load: arguments of `load_engine`, for others.

    Where there are not so many devices, this process's alone, with the reason as `lost`.
    """
    index, there = first.index or 0, torch.cuda.device_count() if first.type == "cuda" else 1
    if count == 1:
        return Ranks()
    if not dist.is_available():
        return Ranks(lost="this torch is built without torch.distributed.")
    if first.type == "cpu":
        logger.warning("There is no GPU: %d processes share the processor, which takes longer than one.", count)
        return Leader(count * [first], load)
    if index + count > there:
        return Ranks(lost=f"{count} GPUs from {first.type}:{index} on were asked for, here are {there}.")
    return Leader([torch.device(first.type, index + i) for i in range(count)], load)


def _connect(rank: int, size: int, device: torch.device, meeting_point: str) -> None:
    """Make the processes a group. All call this at the same time."""
    for backend in ("NCCL", "GLOO"):
        os.environ.setdefault(f"{backend}_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")  # a lost process ends the exchange, not this program
    gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        init_method=Path(meeting_point).as_uri(),
        rank=rank,
        world_size=size,
        timeout=timedelta(minutes=10),
        device_id=device if gpu else None,
    )


class _Followers:
    """The followers' processes, seen from the leader's. lost: why they are no longer there."""

    def __init__(self, on: list[torch.device], load: Mapping[str, Any]) -> None:
        self.lost, self.connected = "", False
        self._ready: queue.Queue[bool] = queue.Queue()
        self._folder = tempfile.TemporaryDirectory(prefix="sgm-ranks-")
        self.meeting_point = str(Path(self._folder.name, "store"))
        paths = [str(Path(__file__).resolve().parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank, device in enumerate(on[1:], 1):
            with open(self._log(rank), "wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "sgm.follower"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=self._folder.name,  # Python imports from there
                    env=environment,
                )
            self.processes.append(process)
            start = {"rank": rank, "size": len(on), "device": str(device), "meeting_point": self.meeting_point}
            self._tell(process, {**start, "load": dict(load)})
            threading.Thread(target=self._listen, args=(process, rank), daemon=True).start()

    def ready(self) -> bool:
        """Wait until all have their engines; False if one failed."""
        return all(self._ready.get() for _ in self.processes)

    def tell(self, word: Any) -> None:
        for process in self.processes:
            self._tell(process, word)

    def lose(self, reason: str) -> None:
        """End the processes, and every exchange with them that this one waits for."""
        self.lost = self.lost or reason
        self._ready.put(False)
        for process in self.processes:
            process.kill()
        connected, self.connected = self.connected, False
        if connected:
            with suppress(Exception):
                getattr(dist.distributed_c10d, "_abort_process_group", dist.destroy_process_group)()

    def _tell(self, process: subprocess.Popen[bytes], word: Any) -> None:
        assert process.stdin
        with suppress(OSError, ValueError):  # its end is `_listen`'s to tell
            pickle.dump(word, process.stdin)
            process.stdin.flush()

    def _listen(self, process: subprocess.Popen[bytes], rank: int) -> None:
        """Wait for a process's words: that it is ready; why it failed, or its end."""
        assert process.stdout
        reason = ""
        with suppress(EOFError, OSError, pickle.UnpicklingError):
            while not reason:
                reason = pickle.load(process.stdout)
                self._ready.put(not reason)
        if not self.lost:
            said = self._log(rank).read_text(errors="replace").strip().rpartition("\n")[2]
            self.lose(f"the process of device {rank} ended. {reason or printable(said, 300)}".strip())

    def _log(self, rank: int) -> Path:
        return Path(self._folder.name, f"{rank}.log")


class Leader(Ranks):
    """Rank 0, which starts the others and gives them their jobs. One job at a time: a second one waits."""

    def __init__(self, on: list[torch.device], load: Mapping[str, Any]) -> None:
        """Start the followers. on: a device for each process, this one's first. load: arguments of `load_engine`."""
        super().__init__(0, len(on))
        self._device, self._lock, self._together = on[0], threading.RLock(), False
        self._followers = _Followers(on, load)
        # At the latest while Python still runs: an exchange that is taken down later waits for ever.
        weakref.finalize(self, self._followers.lose, "they were ended.")

    @property
    def lost(self) -> str:
        return self._followers.lost

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """The followers', rank 1 first."""
        return self._followers.processes

    def join(self) -> None:
        if self._followers.ready():
            _connect(0, self.size, self._device, self._followers.meeting_point)
            self._followers.connected = True
            self.group()

    def begin(self, *job: Any) -> None:
        self._followers.tell(job)

    def gate(self, check: Callable[[], None]) -> Callable[[], None]:
        def go_on() -> None:
            together, self._together = self._together, False
            check()
            if self.lost:
                raise FollowersLost
            self._followers.tell(_GO)
            self._together = together

        return go_on

    @contextmanager
    def together(self) -> Iterator[None]:
        self._together = True
        yield
        self._together = False

    @contextmanager
    def job(self) -> Iterator[None]:
        with self._lock:
            self._together = False
            try:
                yield
            except BaseException as error:
                if self._together:  # the followers wait for what this process will not send
                    self._followers.lose(f"{type(error).__name__}: {error}")
                else:
                    self._followers.tell(_STOP)
                if self.lost and isinstance(error, Exception):
                    raise FollowersLost from error
                raise


class Follower(Ranks):
    """A rank above 0. words: what its leader says, read by a thread, so that a leader's end ends this process."""

    def __init__(self, rank: int, size: int, device: str, meeting_point: str, words: BinaryIO) -> None:
        super().__init__(rank, size)
        self.device = torch.device(device)
        self._meeting_point = meeting_point
        self._words: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._read, args=(words,), daemon=True).start()

    def join(self) -> None:
        _connect(self.rank, self.size, self.device, self._meeting_point)
        self.group()

    def next_job(self) -> tuple[Any, ...]:
        """The leader's next job; words about the one before are skipped."""
        while not isinstance(word := self._words.get(), tuple):
            pass
        return word

    def gate(self, check: Callable[[], None]) -> Callable[[], None]:
        def wait() -> None:
            if not self._words.get():
                raise Stopped

        return wait

    def wait_for_stop(self) -> bool:
        """Whether the leader ends the job, too, within half a minute."""
        with suppress(queue.Empty):
            while self._words.get(timeout=30):
                pass
            return True
        return False

    def _read(self, words: BinaryIO) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._words.put(pickle.load(words))
        os._exit(0)
