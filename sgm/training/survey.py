"""A survey of clips before training: what each is, what speaks against it, and what training would make of it."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Event

import cv2
import numpy as np

from sgm.conditioning.camera import motion_bucket
from sgm.errors import UserError
from sgm.media.reading import open_video
from sgm.training.checks import copies, look, retimed, thinned
from sgm.training.clips import facts_of, fitted
from sgm.training.shards import clips_and_shards, samples

_WIDTH = 320  # pixels at which clips are looked at, as motion is
_MARKED = 0.1, 0.5, 0.9  # where in a clip the frames lie whose hashes are compared
_NEAR = 20  # bits of 192 in which the hashes of two near copies differ at most
_FLAT = 4.0  # standard deviation, levels of 255, below which a frame's hash says nothing


@dataclass
class Row:
    """What is known of a clip.

    clip: its path in the folder; seconds, frames: its length; fps: by the time stamps; variable: whether frames come
    unevenly, so that training takes the nearest ones of an even rate; cuts: seconds at which another scene begins;
    black, frozen: frames; motion: percent of the width a frame, and its bucket; samples: without common frames, that
    training could take; left_out: a kind of `sgm.training.checks.REASONS`, or "" for a clip that is trained on; error:
    why it cannot be read; copy_of, like: another clip that is equal, or looks the same.
    """

    clip: str
    bytes: int
    width: int = 0
    height: int = 0
    hdr: bool = False
    seconds: float = 0.0
    frames: int = 0
    fps: float = 0.0
    variable: bool = False
    motion: float | None = None
    bucket: float | None = None
    cuts: list[float] = field(default_factory=list)
    black: int = 0
    frozen: int = 0
    samples: int = 0
    left_out: str = ""
    error: str = ""
    copy_of: str = ""
    like: str = ""


def survey(
    place: Path,
    frames: int,
    size: tuple[int, int],
    seconds: float,
    say: Callable[[str], object],
    show: Callable[[str, float], object] = lambda phase, share: None,
) -> list[Row]:
    """Look at all clips of a folder, or of shards: a row for each, by name.

    frames, size: of a sample, (height, width). seconds: how much of each clip is decoded; of a longer one, the number
    of samples is that of this part, extended. say: is told in one line what else lies there. show: a phase and the
    share that is done. Raises UserError where there are no clips.
    """
    paths, shards = clips_and_shards(place, say)
    total = sum(path.stat().st_size for path in paths or shards)
    done: dict[str, float] = {}  # bytes of each clip that have been looked at
    rows: list[Row] = []
    marks: list[tuple[Row, np.ndarray]] = []
    stop = Event()

    def looked(row: Row, source: Path | bytes) -> np.ndarray | None:
        def passed(share: float) -> None:
            if stop.is_set():
                raise CancelledError
            done[row.clip] = min(share, 1.0) * row.bytes

        mark = _look_at(row, source, frames, size, seconds, passed)
        done[row.clip] = row.bytes
        return mark

    with ThreadPoolExecutor(threads := min(8, os.cpu_count() or 1)) as pool:
        waiting: deque[tuple[Row, Future[np.ndarray | None]]] = deque()

        def take() -> None:
            """Wait for the clip that has been looked at longest."""
            row, future = waiting.popleft()
            finished = False
            while not finished:
                finished = bool(wait([future], 0.2).done)
                show(f"clip {len(rows) - len(waiting)}", sum(done.copy().values()) / max(total, 1))
            if (mark := future.result()) is not None and not row.left_out:
                marks.append((row, mark))

        try:
            for row, source in _sources(place, paths, shards, say):
                rows.append(row)
                if source is not None:
                    waiting.append((row, pool.submit(looked, row, source)))
                if len(waiting) > 2 * threads:  # those of shards are in memory
                    take()
            while waiting:
                take()
        finally:
            stop.set()  # of Ctrl-C
    _find_near(sorted(marks, key=lambda pair: (-pair[0].width * pair[0].height, pair[0].clip)))
    return sorted(rows, key=lambda row: row.clip)


def _sources(
    place: Path, paths: Sequence[Path], shards: Sequence[Path], say: Callable[[str], object]
) -> Iterator[tuple[Row, Path | bytes | None]]:
    """A row for each clip, and its file or its content; None of one that is equal to another, which needs no look."""
    twins = copies(paths)
    for path in paths:
        row = Row(path.relative_to(place).as_posix(), path.stat().st_size)
        if path in twins:
            row.left_out, row.copy_of = "copy", twins[path].relative_to(place).as_posix()
        yield row, None if row.copy_of else path
    first: dict[bytes, str] = {}
    for shard in shards:
        for sample in samples(shard, say):
            row, content = Row(sample.name, sample.size), sample.read()
            original = first.setdefault(hashlib.sha256(content).digest(), sample.name)
            if original != sample.name:
                row.left_out, row.copy_of = "copy", original
            yield row, None if row.copy_of else content


def _look_at(
    row: Row,
    source: Path | bytes,
    frames: int,
    size: tuple[int, int],
    seconds: float,
    passed: Callable[[float], object],
) -> np.ndarray | None:
    """Fill in the row of a clip. -> the bits by which near copies are found, (192,), -1 or 1; None without any."""
    try:
        facts = facts_of(source, row.clip)
    except UserError as error:
        row.left_out, row.error = "unreadable", str(error)
        return None
    (row.width, row.height), row.hdr = facts.size, facts.hdr
    row.frames, row.fps, row.seconds = facts.count, facts.rate, facts.count / facts.rate
    every = thinned(facts.rate)
    if not every:
        row.left_out = "slow"
        return None
    height = max(16, round(_WIDTH * size[0] / size[1]))
    scale = max(_WIDTH / row.width, height / row.height)
    small = max(_WIDTH, round(row.width * scale)), max(height, round(row.height * scale))
    times: list[float] = []
    mark: list[np.ndarray] = []
    marked = [int(share * min(facts.count, seconds * facts.rate) / every) for share in _MARKED]
    whole = True

    def shown() -> Iterator[np.ndarray]:
        nonlocal whole
        with open_video(source, row.clip) as video:
            for time, pixels in islice(video.timed(size=small), 0, None, every):
                if time >= seconds:
                    whole = False
                    return
                if len(times) in marked:
                    mark.append(pixels)
                times.append(time)
                passed(len(times) * every / min(facts.count, seconds * facts.rate))
                yield fitted(pixels, (height, _WIDTH))

    try:
        seen = look(shown())
    except UserError as error:
        row.left_out, row.error = "unreadable", str(error)
        return None
    if len(times) > 1:
        order, rate = retimed(times)
        row.variable = bool((order != np.arange(len(times))).any())
        if whole:
            row.frames, row.fps, row.seconds = len(times) * every, rate * every, len(times) / rate
        steps = seen.motion[~seen.cut]
        row.motion = float(steps.mean()) if len(steps) else 0.0
        row.bucket = float(motion_bucket(row.motion))
        row.cuts = [round(times[i + 1], 4) for i in np.flatnonzero(seen.cut)]
    row.black, row.frozen = int(seen.black.sum()), int(seen.still.sum())
    row.samples = len(seen.samples(frames)) if whole else len(seen.samples(frames)) * row.frames // (len(times) * every)
    row.left_out = seen.against(frames)
    return _bits(mark) if len(mark) == len(_MARKED) else None


def _bits(frames: Sequence[np.ndarray]) -> np.ndarray | None:
    """Perceptual hashes of frames: the signs of the lowest 8×8 frequencies about their median. None of flat frames."""
    found: list[np.ndarray] = []
    for frame in frames:
        grey = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
        if grey.std() < _FLAT:
            return None
        low = cv2.dct(grey.astype(np.float32))[:8, :8].ravel()
        found.append(np.where(low > np.median(low), 1, -1))
    return np.concatenate(found).astype(np.float32)


def _find_near(marks: Sequence[tuple[Row, np.ndarray]]) -> None:
    """Note at each clip the first one before it that looks the same. marks: the largest frames first."""
    if not marks:
        return
    bits = np.stack([mark for _, mark in marks])
    for number, (row, mark) in enumerate(marks):
        near = np.flatnonzero(bits[:number] @ mark >= len(mark) - 2 * _NEAR)
        if len(near):
            row.like = marks[near[0]][0].clip
