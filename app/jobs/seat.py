"""Seats: the workers' places in the table, each with its runner, until its device fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.jobs.runner import FunctionRunner, Make, Runner

NONE_LEFT = "No device is left to make clips, and the line waits: {}. Mend that, and start the program again."
ALL_AWAY = "No device makes clips at present, and the line waits: {}. It goes on by itself once that is mended."


@dataclass
class Seat:
    """A worker: its runner, its thread once there was a job, and why it was taken out, or "". away: for a while."""

    runner: Runner
    thread: threading.Thread | None = None
    reason: str = ""
    away: bool = False
    busy: bool = False

    def start(self, work: Callable[[Seat], None]) -> None:
        """Start the thread, which calls `work(self)`, unless it has been."""
        if self.thread is None:
            self.thread = threading.Thread(target=work, args=(self,), name="clips", daemon=True)
            self.thread.start()


@dataclass(frozen=True)
class DeviceState:
    """What page and API say of a worker. about: the device, for people; reason: why it is out of work, or ""."""

    device: str
    about: str
    busy: bool
    reason: str


class Seats(list[Seat]):
    """The seats of all workers. Whoever calls it holds the table's lock."""

    @classmethod
    def of(cls, runners: Make | Sequence[Make]) -> Seats:
        """A seat for each runner or function that makes clips."""
        listed = runners if isinstance(runners, Sequence) else [runners]
        return cls(Seat(runner if isinstance(runner, Runner) else FunctionRunner(runner)) for runner in listed)

    def at_work(self) -> int:
        """How many make clips; 1 where all were taken out, for estimates."""
        return max(1, sum(not seat.reason for seat in self))

    def none_left(self) -> str:
        """What to say where all were taken out; else ""."""
        reasons = dict.fromkeys(seat.reason.rstrip(".") for seat in self)
        text = ALL_AWAY if any(seat.away for seat in self) else NONE_LEFT
        return "" if "" in reasons else text.format("; ".join(reasons))

    def loaded(self) -> list[str | None]:
        """The versions that are loaded; None where none needs to be."""
        return [seat.runner.version for seat in self if not seat.reason]
