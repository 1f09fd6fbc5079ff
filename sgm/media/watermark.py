"""The invisible watermark: 48 bits in a clip's colours, which say that a model made it; Stability's own bits and place.

A frame's U of BT.601 is taken as means of 2 × 2 pixels, the approximation band of one level of Haar wavelets, in blocks
of 4 × 4 values. Block number n carries bit n mod 48: the value of largest magnitude, the first one left out, is about
36 · (k + 1/4) for a 0 and 36 · (k + 3/4) for a 1, with any whole k. The invisible-watermark package
reads it, as "dwtDct". Its own embedder keeps k, so that a value that it lowers may no longer be the largest and the bit
be read wrong; here, k is the one that changes the block least, and values that would compete are lowered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from math import comb, inf
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

BITS = 48
PATTERN = np.array([int(bit) for bit in f"{0xB3EC907BB19E:048b}"])
MARKED, LIKELY = 1e-6, 1e-4  # the chance at most, that a file without the mark is called so
_STEP = 36.0  # of a block's values
_AHEAD = 1.0  # how far the carrying value is above the others of its block
# Share of the value's lead that is added, and the most, since an encoder takes some away.
_OVER, _MOST_OVER = 0.15, 2.0
_TO_U, _LUMA = 0.492, np.array([0.299, 0.587, 0.114], np.float32)
_GREEN, _BLUE = -0.395, 2.032  # what a step of U alone changes in RGB; red stays
_GRID = 8  # sizes of models are multiples of so many blocks of 8 × 8 pixels
_MOST_READ, _MOST_PIXELS = 16, 16 << 20  # frames, and pixels of all, that are read
_MOST_SEARCHED, _LARGEST = 3 << 20, 2048  # pixels of all frames, and of a side, in which more than one way is tried
_SCALES = 0.4, 2.6  # in which a clip that was scaled is looked for
# How a file that was encoded again is read: the lead of the largest value, over the second or the median, is taken so
# many times.
_SECOND, _MEDIAN = -2, 7  # of the 15 values, sorted
_FADED = (_SECOND, 1.0), (_SECOND, 1.5), (_SECOND, 2.0), (_SECOND, 3.0), (_MEDIAN, 2.0), (_MEDIAN, 3.0)


class Reading(NamedTuple):
    """What is read of the watermark. verdict: "marked", "likely" or "no". matched: of 48 bits.

    chance: that so many match where there is no mark, with all that was tried. altered: "", "scaled" or "cropped".
    """

    verdict: str
    matched: int
    chance: float
    altered: str = ""

    def __str__(self) -> str:
        return f"{self.verdict}: {self.matched} of {BITS} bits" + (f", {self.altered}" if self.altered else "")


def is_marked(settings: Mapping[str, Any] | None) -> bool:
    """Whether a recipe says that its clip's files carry the watermark. Recipes of earlier programs say nothing."""
    mark = (settings or {}).get("sgm")
    return isinstance(mark, Mapping) and mark.get("watermark") is True


def embed_watermark(frame: np.ndarray) -> np.ndarray:
    """A copy of a frame, uint8 RGB (h, w, 3), with the watermark: to be the last change before it is encoded.

    Whole blocks of 8 × 8 pixels carry a bit each; what is left over at the right and at the bottom stays as it is.
    """
    values = _blocks(_u(frame))
    rows, columns = values.shape[:2]
    levels = _STEP * (0.25 + 0.5 * PATTERN[np.arange(rows * columns) % BITS].reshape(rows, columns, 1))
    place = values[..., 1:].argmax(axis=2)[..., None] + 1
    largest = np.take_along_axis(values, place, axis=2)
    second = np.partition(values[..., 1:], _SECOND, axis=2)[..., _SECOND, None]
    k = np.floor((largest - levels) / _STEP)
    options = []
    for wanted in (_STEP * k + levels, _STEP * (k + 1) + levels):
        change = np.minimum(wanted - _AHEAD - values, 0)
        change[..., 0] = 0
        over = np.clip(_OVER * (wanted - second), 0, _MOST_OVER)
        np.put_along_axis(change, place, wanted + over - largest, axis=2)
        options.append(change)
    down, up = options
    cheaper = ((up**2).sum(axis=2) < (down**2).sum(axis=2))[..., None]
    change = np.where(cheaper, up, down).reshape(rows, columns, 4, 4).swapaxes(1, 2).reshape(4 * rows, 4 * columns)
    change = (change / 2).repeat(2, axis=0).repeat(2, axis=1)  # a value is twice the mean of its pixels
    marked = frame.copy()
    carrying = marked[: 8 * rows, : 8 * columns]
    for channel, share in ((1, _GREEN), (2, _BLUE)):
        carrying[..., channel] = np.clip(np.rint(carrying[..., channel] + share * change), 0, 255)
    return marked


def most_read(height: int, width: int) -> int:
    """How many frames of a size are read at most: of large ones, fewer, since each has more blocks."""
    return max(1, min(_MOST_READ, _MOST_PIXELS // max(1, height * width)))


def most_rows(width: int) -> int:
    """How many rows of a frame are read at most: from its top, since blocks are counted from there."""
    return _MOST_PIXELS // width


def read_watermark(frames: Sequence[np.ndarray] | np.ndarray, search: bool = True) -> Reading:
    """What frames of a clip, or a picture as one, hold of the watermark: uint8 RGB, (h, w, 3) each.

    All blocks of some frames vote for their bit, as they were written, frames that agree with the others the more.
    search: where these say no, some seconds more go into sizes from which the clip may have been scaled, then into each
    place at which it may have been cropped. The more is tried, the more bits must match.
    """
    frames = list(frames[:: -(-len(frames) // most_read(*frames[0].shape[:2]))])
    tries, best = 0, Reading("no", 0, inf)
    for altered, way in (("", _as_written), ("scaled", _scaled), ("cropped", _cropped))[: None if search else 1]:
        for matched, tried in way(frames):
            tries += tried
            if (chance := tries * _tail(matched)) < best.chance:
                best = Reading("no", matched, chance, altered)
        if best.chance <= MARKED:
            return best._replace(verdict="marked")
    return best._replace(verdict="likely") if best.chance <= LIKELY else best._replace(altered="")


def _as_written(frames: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    """(bits that match, how many ways of reading were tried to find them)."""
    planes = [_u(frame[: most_rows(frame.shape[1])]) for frame in frames]
    votes = np.stack([_votes_of(_blocks(plane)) for plane in planes], axis=1)  # (ways, frames, rows, columns)
    numbers = np.arange(votes[0, 0].size) % BITS
    sums = [np.stack([np.bincount(numbers, frame.ravel(), BITS) for frame in each]) for each in votes]
    yield max(_matches(_agreed(each)) for each in sums), len(votes)


def _agreed(sums: np.ndarray) -> np.ndarray:
    """The votes (frames, bits) in one, each frame's by how far it agrees with all: encoders spare but some of them."""
    weights = np.linalg.eigh(sums @ sums.T)[1][:, -1]
    return np.maximum(weights * np.sign(weights.sum()), 0) @ sums


def _scaled(frames: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    """As `_as_written`, in each size on the grid that has this shape, as far as whole pixels can have it."""
    frames, step = _few(frames), 8 * _GRID
    height, width = frames[0].shape[:2]
    for wide in range(step, min(int(width * _SCALES[1]), _LARGEST) + 1, step):
        scale = wide / width
        high = round(height * scale / step) * step
        if scale < _SCALES[0] or wide == width or abs(high / scale - height) > 2 + 2 * height / width:
            continue
        pictures = (Image.fromarray(frame) for frame in frames)
        yield from _as_written([np.asarray(each.resize((wide, high), Image.Resampling.BICUBIC)) for each in pictures])


def _cropped(frames: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    """As `_as_written`, for each place of the blocks, each width on the grid, and each first bit."""
    planes = [_u(frame[:_LARGEST, :_LARGEST]) for frame in _few(frames)]
    firsts = (np.arange(BITS)[:, None] + np.arange(BITS)) % BITS
    for top in range(8):
        for left in range(8):
            votes = _votes([plane[top:, left:] for plane in planes])
            rows, columns = (np.arange(length) for length in votes[0].shape)
            for width in range(0, BITS, _GRID):
                numbers = (rows[:, None] * width + columns) % BITS
                for each in votes:
                    sums = np.bincount(numbers.ravel(), each.ravel(), BITS)
                    yield int(((sums[firsts] > 0) == PATTERN).sum(axis=1).max()), BITS


def _few(frames: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """As many of the frames as a search takes some seconds for."""
    height, width = frames[0].shape[:2]
    return frames[:: -(-len(frames) // max(1, _MOST_SEARCHED // (height * width)))]


def _votes(planes: Sequence[np.ndarray]) -> np.ndarray:
    """The mean vote of each block, from -1, a 0, to 1, a 1, in each way of `_FADED`: (ways, rows, columns)."""
    return np.mean([_votes_of(_blocks(plane)) for plane in planes], axis=0)


def _votes_of(values: np.ndarray) -> np.ndarray:
    values = np.sort(values[..., 1:], axis=2)
    ways = [values[..., of] + times * (values[..., -1] - values[..., of]) for of, times in _FADED]
    # A block of one colour carries nothing: in white, there is no room.
    return np.where(np.stack(ways) % _STEP > _STEP / 2, 1.0, -1.0) * (values[..., -1] - values[..., _MEDIAN] >= 1)


def _matches(sums: np.ndarray) -> int:
    return int(((sums > 0) == PATTERN).sum())


@cache
def _tail(matched: int) -> float:
    """The chance that at least so many of 48 fair bits match."""
    return sum(comb(BITS, count) for count in range(matched, BITS + 1)) / 2**BITS


def _u(frame: np.ndarray) -> np.ndarray:
    """U of BT.601, float32 (h, w), 128 for grey."""
    pixels = frame.astype(np.float32)
    return 128 + _TO_U * (pixels[..., 2] - pixels @ _LUMA)


def _blocks(plane: np.ndarray) -> np.ndarray:
    """Twice the means of 2 × 2 pixels, the approximation band of Haar wavelets, by blocks: (rows, columns, 16)."""
    rows, columns = (side // 8 for side in plane.shape)
    plane = plane[: 8 * rows, : 8 * columns]
    pairs = plane[0::2] + plane[1::2]
    band = (pairs[:, 0::2] + pairs[:, 1::2]) / 2
    return band.reshape(rows, 4, columns, 4).swapaxes(1, 2).reshape(rows, columns, 16)
