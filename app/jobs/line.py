"""The line: all jobs, and in which order those that wait will run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from app.jobs.record import Job
from sgm import UserError

LONGEST_CHAIN = 4  # clips, each an extension of the one before: quality falls with every extension


class Line:
    """All jobs by id, in order of submission. Those that wait take turns: one of each owner and group, and so on.

    Whoever calls it holds the table's lock.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.jobs = {job.id: job for job in jobs}
        self._last_started: dict[str, float] = {}  # taker -> when one of its jobs last did, by the monotonic clock
        self.changes = 0  # how many there were: what is known of the line holds until the next one
        self._queued: list[Job] | None = None  # until the next change
        self._running: list[Job] | None = None

    def changed(self) -> None:
        """Forget the line's order, after any change of a job's state, place or request."""
        self.changes += 1
        self._queued = self._running = None

    def queued(self) -> Sequence[Job]:
        """The jobs that wait, in the order in which they will run."""
        if self._queued is None:
            self._queued = self._in_order()
        return self._queued

    def running(self) -> Sequence[Job]:
        if self._running is None:
            self._running = [job for job in self.jobs.values() if job.state == "running"]
        return self._running

    def _in_order(self) -> list[Job]:
        turns = Counter(_taker(job) for job in self.running())
        queue = []
        for job in sorted((job for job in self.jobs.values() if job.state == "queued"), key=_place):
            turn, taker = turns[_taker(job)], _taker(job)
            turns[taker] += 1
            queue.append((turn, self._last_started.get(taker, 0.0) if taker else 0.0, job))
        return [job for *_, job in sorted(queue, key=lambda entry: entry[:2])]

    def start_next(self, device: str) -> Job:
        """The next job, which runs from now on, on a device."""
        job = self.queued()[0]
        job.start(device)
        self._last_started[_taker(job)] = job.started
        self.changed()
        return job

    def chain(self, job_id: str) -> list[Job]:
        """The clips that make up a job's film, the first one first; [] if one of them has been deleted.

        A film begins anew with a clip of another size, as earlier versions let a waiting one become.
        """
        chain: list[Job] = []
        while job_id:
            job = self.jobs.get(job_id)
            if job is None or len(chain) > LONGEST_CHAIN:
                return []
            if chain and chain[0].request.size != job.request.size:
                break
            chain.insert(0, job)
            job_id = job.parent
        return chain

    def waiting(self, job_id: str, owner: str) -> Job:
        """An owner's job that waits. Raises UserError for another's, and for one that does not wait any more."""
        job = self.jobs.get(job_id)
        if job is None or job.state != "queued":
            raise UserError("This clip does not wait any more: it is being made, or was taken out of the line.")
        if job.owner != owner:
            raise UserError("This clip is another visitor's, who alone can change its place and its settings.")
        return job

    def move(self, job: Job, by: int) -> list[Job]:
        """Move a job that waits by so many places among those of its taker, at most to an end. Returns these jobs."""
        mates = [other for other in self.queued() if _taker(other) == _taker(job)]
        places, at = list(map(_place, mates)), mates.index(job)
        mates.insert(max(0, at + by), mates.pop(at))
        for mate, place in zip(mates, places, strict=True):
            mate.place = place
        self.changed()
        return mates


def _taker(job: Job) -> str:
    """Whose turn a job takes: its group's, so that single clips of the same person go between, or its owner's."""
    return job.group or job.owner


def _place(job: Job) -> float:
    return job.place or job.created
