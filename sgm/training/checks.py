"""What speaks against training on a clip, or on a part of it: the one place that `sgm train` and `sgm data` ask."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import NamedTuple

import cv2
import numpy as np

from sgm.media.kinds import listed
from sgm.media.quality import is_black, stands_still
from sgm.motion import motion_steps

SLOWEST, FASTEST = 1.0, 120.0  # frames a second
# Kind -> why clips of it are left out. "{frames}": of a sample.
REASONS = {
    "unreadable": "they cannot be read",
    "short": "they have fewer than {frames} frames",
    "slow": f"they have fewer than {SLOWEST:g} frames a second",
    "copy": "they are copies of others, byte for byte",
    "black": "they are black",
    "frozen": "they stand still",
    "cut": "cuts or black frames leave less than {frames} frames in one piece",
    "foreign": "they are no clips",
}
_CHANGE, _SPIKE = 20.0, 3.0  # levels of 255 by which a cut changes the frame, and how many times its neighbours' change
_THUMB = 32, 18  # pixels
_NEAR = 4  # steps on either side of a cut, with which it is compared


class Seen(NamedTuple):
    """What is seen of t frames in a row.

    motion: (t - 1,), from each frame to the next, percent of the width; cut, still: (t - 1,), whether there is a cut in
    between, or no change at all; black: (t,).
    """

    motion: np.ndarray
    cut: np.ndarray
    still: np.ndarray
    black: np.ndarray

    def starts(self, frames: int, stride: int = 1) -> np.ndarray:
        """The indices at which samples may start: every `stride`th frame, `frames` of them.

        No cut and no black frame is inside, and at most half of its steps stand still.
        """
        steps = (frames - 1) * stride
        at = np.arange(max(len(self.black) - steps, 0))

        def inside(what: np.ndarray, length: int) -> np.ndarray:
            total = np.concatenate([[0], np.cumsum(what)])
            return total[at + length] - total[at]

        good = (inside(self.black, steps + 1) == 0) & (inside(self.cut, steps) == 0)
        return at[good & (2 * inside(self.still, steps) <= steps)]

    def samples(self, frames: int) -> list[int]:
        """Where samples start that follow each other and share no frame."""
        found: list[int] = []
        for start in self.starts(frames):
            if not found or start >= found[-1] + frames:
                found.append(int(start))
        return found

    def against(self, frames: int) -> str:
        """The kind of REASONS for which no sample of `frames` frames can be taken; "" where one can."""
        if len(self.black) < frames:
            return "short"
        if len(self.starts(frames)):
            return ""
        if self.black.mean() > 0.5:
            return "black"
        return "frozen" if 2 * self.still.sum() > len(self.still) else "cut"


def look(frames: Iterable[np.ndarray]) -> Seen:
    """What is seen of frames, uint8 RGB (h, w, 3), of which no more than two are kept."""
    black: list[bool] = []
    still: list[bool] = []
    changes: list[float] = []
    around: list[float] = []  # from the frame before the last one to the next one
    thumbs: list[np.ndarray] = []
    last: np.ndarray | None = None

    def noted() -> Iterator[np.ndarray]:
        nonlocal last
        for frame in frames:
            grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            black.append(is_black(grey))
            thumbs.append(cv2.resize(frame, _THUMB, interpolation=cv2.INTER_AREA).astype(np.float32))
            if last is not None:
                still.append(stands_still(last, grey))
                changes.append(float(np.abs(thumbs[-1] - thumbs[-2]).mean()))
                around.append(float(np.abs(thumbs[-1] - thumbs[0]).mean()) if len(thumbs) == 4 else np.inf)
            last = grey
            del thumbs[:-3]
            yield frame

    motion = motion_steps(noted())
    return Seen(motion, _cuts(changes, around[1:]), np.array(still, bool), np.array(black, bool))


def _cuts(changes: Sequence[float], around: Sequence[float]) -> np.ndarray:
    """Whether each step is a cut: a change that is large, alone, and lasts, as that of a flash does not.

    around: the change from the frame before each step to the one behind it; of the last step, nothing.
    """
    cuts = np.zeros(len(changes), bool)
    for i, change in enumerate(changes):
        near = [*changes[max(i - _NEAR, 0) : i], *changes[i + 1 : i + 1 + _NEAR]]
        lasts = i >= len(around) or around[i] >= change / 2
        cuts[i] = change >= _CHANGE and lasts and change >= _SPIKE * (median(near) if near else 0)
    return cuts


def thinned(rate: float) -> int:
    """Every how many of a clip's frames are taken, that they are at most FASTEST a second; 0 for less than SLOWEST."""
    return 0 if rate < SLOWEST * (1 - 1e-3) else max(int(np.ceil(rate / FASTEST * (1 - 1e-3))), 1)


def retimed(times: Sequence[float]) -> tuple[np.ndarray, float]:
    """The nearest frame to each tick of the mean rate, as indices, and that rate, frames a second.

    times: seconds, of two frames or more. Of a constant rate, each frame is its own.
    """
    given = np.asarray(times, np.float64)
    ticks = np.linspace(given[0], given[-1], len(given))
    right = np.searchsorted(given, ticks).clip(1, len(given) - 1)
    nearest = right - (ticks - given[right - 1] <= given[right] - ticks)
    return nearest, float((len(given) - 1) / max(given[-1] - given[0], 1e-9))


def copies(paths: Iterable[Path]) -> dict[Path, Path]:
    """Files that are another one byte for byte -> that with the shortest name. Only those of the same size are read."""
    found: dict[Path, Path] = {}

    def size(path: Path) -> int:
        return path.stat().st_size

    for _, same in groupby(sorted(paths, key=lambda path: (size(path), len(path.name), path)), key=size):
        if len(alike := list(same)) > 1:
            first: dict[bytes, Path] = {}
            for path in alike:
                if (original := first.setdefault(_digest(path), path)) != path:
                    found[path] = original
    return found


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.digest()


def left_out(kind: str, names: Sequence[str], frames: int, place: object) -> str:
    """The line that says which clips of `place` are left out, for a reason of REASONS."""
    comma = "; " if kind == "unreadable" else ", "
    reason = REASONS[kind].format(frames=frames)
    return f"Left out, since {reason}: {listed(names, comma).rstrip('.')}. More: sgm data {place}"


class LeftOut:
    """Says which clips are left out: in one line for each kind when it is first met, as clips are met one by one."""

    def __init__(self, place: object, say: Callable[[str], object]) -> None:
        self.place, self.say = place, say
        self._met: set[str] = set()

    def note(self, kind: str, name: str, frames: int) -> None:
        """A clip, met while training, of which nothing could be taken."""
        if kind not in self._met:
            self._met.add(kind)
            self.say(left_out(kind, [name, "…"], frames, self.place))
