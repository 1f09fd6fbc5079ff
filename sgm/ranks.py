"""Leader and Follower: the processes that compute clips together, each with the whole engine on a device of its own.

The leader starts the followers, which load the same weights and wait for its jobs. Each follower makes all of a job's
calls, with the same noise; at every gate (before each block of a network) it waits for the leader's word to go on.
Words and jobs go through pipes, tensors through a torch.distributed process group, on this machine only.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist

from sgm.errors import UserError, printable
from sgm.fast.shard import Ranks

_GO, _STOP = True, False


class Stopped(Exception):
    """Raised in a follower where its leader ended the job."""


class FollowersLost(Exception):
    """Raised in the leader when a follower is gone, or no longer in step: this and later clips are the leader's."""


def devices(first: torch.device, count: int) -> list[torch.device]:
    """`count` devices, from `first` on. Raises UserError where there are not so many."""
    if first.type == "cpu":
        return [first] * count
    start = first.index or 0
    there = torch.cuda.device_count() if first.type == "cuda" else 1
    if start + count > there or not dist.is_available():
        raise UserError(f"{count} GPUs from {first.type}:{start} on are asked for; here are {there}. Take fewer.")
    return [torch.device(first.type, start + i) for i in range(count)]


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


class Leader(Ranks):
    """Rank 0, which starts the others and gives them their jobs. One job at a time: a second one waits."""

    def __init__(self, on: list[torch.device], load: Mapping[str, Any]) -> None:
        """Start the followers. on: a device for each process, this one's first. load: arguments of `load_engine`."""
        super().__init__(0, len(on))
        self._device = on[0]
        self._lock = threading.RLock()
        self._folder = tempfile.TemporaryDirectory(prefix="sgm-ranks-")
        self._meeting_point = str(Path(self._folder.name, "store"))
        self._ready: queue.Queue[bool] = queue.Queue()
        self._connected = self._together = False
        root = str(Path(__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self._followers: list[subprocess.Popen[bytes]] = []
        atexit.register(self.close)  # while Python still runs: an exchange taken down later waits for ever
        for rank, device in enumerate(on[1:], 1):
            with open(Path(self._folder.name, f"{rank}.log"), "wb") as log:
                follower = subprocess.Popen(
                    [sys.executable, "-m", "sgm.follower"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=self._folder.name,
                    env=environment,
                )
            self._followers.append(follower)
            start = {"rank": rank, "size": len(on), "device": str(device), "meeting_point": self._meeting_point}
            self._tell(follower, {**start, "load": dict(load)})
            threading.Thread(target=self._listen, args=(follower, rank), daemon=True).start()

    def join(self) -> None:
        """Wait until the followers have their engines, and become a group. Raises UserError where one cannot."""
        for _ in self._followers:
            if not self._ready.get():
                raise UserError(f"Not all devices can be used together. {self.lost}")
        _connect(0, self.size, self._device, self._meeting_point)
        self.group()
        self._connected = True

    def begin(self, *job: Any) -> None:
        self._tell_all(job)

    def gate(self, check: Callable[[], None]) -> Callable[[], None]:
        def go_on() -> None:
            together, self._together = self._together, False
            check()
            if self.lost:
                raise FollowersLost
            self._tell_all(_GO)
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
            if self.lost:
                raise FollowersLost
            self._together = False
            try:
                yield
            except BaseException as error:
                if self._together:  # the followers wait for what this process will not send
                    self._lose(f"{type(error).__name__}: {error}")
                else:
                    self._tell_all(_STOP)
                if self.lost and isinstance(error, Exception):
                    raise FollowersLost from error
                raise

    def close(self) -> None:
        """End the followers."""
        atexit.unregister(self.close)
        self._lose("They were ended.")

    def _tell_all(self, word: Any) -> None:
        for follower in self._followers:
            self._tell(follower, word)

    def _tell(self, follower: subprocess.Popen[bytes], word: Any) -> None:
        assert follower.stdin
        with suppress(OSError, ValueError):  # its end is `_listen`'s to tell
            pickle.dump(word, follower.stdin)
            follower.stdin.flush()

    def _listen(self, follower: subprocess.Popen[bytes], rank: int) -> None:
        """Wait for a follower's words: that it is ready; why it failed, or its end."""
        assert follower.stdout
        reason = ""
        with suppress(EOFError, OSError, pickle.UnpicklingError):
            while not reason:
                reason = pickle.load(follower.stdout)
                self._ready.put(not reason)
        if not self.lost:
            self._lose(f"The process of device {rank} ended{f': {reason}' if reason else self._last_line(rank)}")

    def _last_line(self, rank: int) -> str:
        with suppress(OSError):
            lines = Path(self._folder.name, f"{rank}.log").read_text(errors="replace").strip().splitlines()
            return f": {printable(lines[-1], 300)}" if lines else "."
        return "."

    def _lose(self, reason: str) -> None:
        """End the followers, and every exchange with them that this process waits for."""
        self.lost = self.lost or reason
        self._ready.put(False)
        for follower in self._followers:
            follower.kill()
        if self._connected:
            self._connected = False
            with suppress(Exception):
                abort = getattr(dist.distributed_c10d, "_abort_process_group", dist.destroy_process_group)
                abort()


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
