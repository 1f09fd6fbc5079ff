"""How much a clip moves, per frame and in all, and the motion bucket that this amounts to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from sgm.conditioning.camera import motion_bucket
from sgm.errors import UserError, printable
from sgm.media.reading import check_count, is_animation, open_video, read_frames

_WIDTH, _LOWEST = 320, 16  # pixels: the width at which motion is measured, and the least height for that


class Motion(NamedTuple):
    """A clip's motion. steps: (t - 1,), from each frame to the next, percent of the width.

    fps: frames a second, in the mean; seconds: (t - 1,), when each step ends, by the file's time stamps.
    """

    steps: np.ndarray
    fps: float
    seconds: np.ndarray

    @property
    def bucket(self) -> float:
        """The motion bucket of the whole clip: of its mean motion."""
        return float(motion_bucket(float(self.steps.mean())))

    @property
    def buckets(self) -> np.ndarray:
        """The motion bucket of each step, (t - 1,)."""
        return np.asarray(motion_bucket(self.steps))  # pyright: ignore[reportArgumentType]


def motion_steps(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Frames (h, w, 3), uint8 RGB -> (t - 1,), float32: mean displacement to the next frame, percent of the width.

    Mean length of the vectors of dense optical flow (DIS, Kroeger et al. 2016, arXiv:1603.03590), at 320 pixels' width.
    """
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    flows = (dis.calc(a, b, None) for a, b in pairwise(map(_small, frames)))  # pyright: ignore[reportCallIssue, reportArgumentType]
    return np.array([np.linalg.norm(flow, axis=-1).mean() for flow in flows], np.float32) * 100 / _WIDTH


def _small(frame: np.ndarray) -> np.ndarray:
    """A frame's grey, `_WIDTH` pixels wide."""
    size = _WIDTH, max(_LOWEST, round(_WIDTH * frame.shape[0] / frame.shape[1]))
    return cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size)


def measure_motion(
    clip: str | Path | bytes, name: str | None = None, on_frame: Callable[[int, int], None] = lambda done, of: None
) -> Motion:
    """The motion of a clip. clip: the path of a video, an animated GIF or WebP, or its content. name: in messages.

    No more than two frames of a video are in memory. on_frame(done, of) is called after each frame. Raises UserError
    for what is no clip, is damaged, or has a single frame.
    """
    name = printable(name or ("The file" if isinstance(clip, bytes) else clip))
    animated = is_animation(clip, name)

    times: list[float] = []

    def told(frames: Iterable[tuple[float, np.ndarray]], count: int) -> Iterator[np.ndarray]:
        for number, (time, frame) in enumerate(frames, 1):
            check_count(name, number)  # the file may hold more than it says
            times.append(time)
            yield frame
            on_frame(min(number, count), count)

    if animated:
        frames, fps = read_frames(clip)
        steps = motion_steps(told(((i / fps, frame) for i, frame in enumerate(frames)), len(frames)))
        return Motion(steps, fps, np.array(times[1:]))
    with open_video(clip, name) as video:
        steps = motion_steps(told(video.timed(), len(video)))
        if not len(steps):
            raise UserError(f"{name} has a single frame, which does not move: give a clip of 2 frames or more.")
        return Motion(steps, video.rate, np.array(times[1:]) - times[0])
