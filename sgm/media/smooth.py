"""Smoother clips and slow motion: frames in between the model's own, along the motion, by FFmpeg's `minterpolate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import av
import av.error
import numpy as np

from sgm.errors import UserError, shown
from sgm.media.filters import filter_graph
from sgm.media.reading import MAX_DECODED, MAX_FRAMES

TIMES = (1, 2, 4)  # as many frames, 1: the model's own alone
_SMALLEST = 32  # pixels of either side, two of the filter's blocks: with fewer it does not work
_RATE = 25  # frames a second that the filter is told; it does not look at it
_KEYS = "smooth", "slow_motion"  # in recipes


class Smoothing(NamedTuple):
    """How a clip becomes smoother: `times` as many frames in the same time or, `slow`, at the same frame rate."""

    times: int = 1
    slow: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Smoothing:
        """That of a recipe: `smooth`, `slow_motion`. Raises UserError for values that there are not."""
        times, slow = settings.get(_KEYS[0], 1), settings.get(_KEYS[1], False)
        if type(times) is not int or times not in TIMES:
            raise UserError(f"smooth must be one of {', '.join(map(str, TIMES))}; got {shown(times)}.")
        if type(slow) is not bool:
            raise UserError(f"slow_motion must be true or false; got {shown(slow)}.")
        return cls(times, slow)

    def settings(self) -> dict[str, Any]:
        """What a recipe says of it; {} where no frame is added."""
        return {} if self.times == 1 else dict(zip(_KEYS, self, strict=True))

    def length(self, frames: int) -> int:
        """How many frames become of so many: none follows the last."""
        return (frames - 1) * self.times + 1

    def check(self, frames: int, width: int, height: int) -> None:
        """Raise UserError for a clip that cannot be made smoother, or only to more than can be read again."""
        if self.times == 1:
            return
        if frames < 2:
            raise UserError("A clip of 1 frame cannot be made smoother: there is nothing in between. Take 2 or more.")
        if min(width, height) < _SMALLEST:
            raise UserError(
                f"Frames of {width}×{height} pixels are too small to be made smoother: motion is found in those of "
                f"{_SMALLEST}×{_SMALLEST} or more."
            )
        length = self.length(frames)
        if length > MAX_FRAMES or length * width * height * 3 > MAX_DECODED:
            raise UserError(
                f"{self.times} times as many frames are {length} of {width}×{height} pixels, more than the {MAX_FRAMES}"
                f", or the {MAX_DECODED >> 30} GB, that a clip may have: add fewer, or take a shorter clip."
            )

    def apply(
        self,
        frames: np.ndarray,
        fps: float,
        settings: Mapping[str, Any],
        on_frame: Callable[[int, int], None] = lambda done, of: None,
    ) -> tuple[np.ndarray, Any, dict[str, Any]]:
        """The smoother clip of frames (t, h, w, 3), uint8: frames, frames a second, and recipe, which says so.

        Every `times`-th frame is one of the clip's own, bit by bit. Where the picture is cut, the frame before the cut
        is repeated. on_frame(done, of) is called after each frame. Raises UserError as `check` does.
        """
        if self.times == 1:
            return frames, fps, dict(settings)
        count, height, width, _ = frames.shape
        self.check(count, width, height)
        smoother = np.empty((self.length(count), height, width, 3), np.uint8)
        for number, between in enumerate(_interpolated(frames, self.times)):
            smoother[number] = between
            on_frame(number + 1, len(smoother))
        smoother[:: self.times] = frames  # which the filter's colours have rounded
        return smoother, fps * (1 if self.slow else self.times), {**settings, **self.settings()}


def _interpolated(frames: np.ndarray, times: int) -> Iterator[np.ndarray]:
    """The frames (h, w, 3) of a clip with `times` - 1 between each two, by motion compensation over blocks."""
    count, height, width, _ = frames.shape
    tick = Fraction(1, _RATE)
    with filter_graph() as graph:
        source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("yuv444p"), time_base=tick)
        between, sink = graph.add("minterpolate", fps=str(_RATE * times)), graph.add("buffersink")
        graph.link_nodes(source, between, sink)
        graph.configure()
        for time in range(count + 2):
            if time > count:
                graph.vpush(None)
            else:  # the last frame twice: the filter holds back what follows the last but one
                frame = av.VideoFrame.from_ndarray(frames[min(time, count - 1)], format="rgb24")
                frame = frame.reformat(format="yuv444p")
                frame.pts, frame.time_base = time, tick
                graph.vpush(frame)
            while True:
                try:
                    yield graph.vpull().to_ndarray(format="rgb24")  # pyright: ignore[reportAttributeAccessIssue]
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
