"""A clip seen from several sides: which times and views are sampled together, and what the network is shown.

SV4D (Xie et al. 2024, arXiv:2407.17470) and SV4D 2.0 (Yao et al. 2025, arXiv:2503.16396). All pictures stand in a
matrix of times and views, whose first view is the input clip. The network makes the v other views at t times in one
pass; the rows of its frames have the time first: the frame of new view j at the pass's time i has index i v + j.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pass:
    """One sampling run over some times, rising.

    shown: the time whose views, made before, the network is shown; None: none are. alternating: the steps take turns
    between the times in reverse and in order, in reverse first, and each shows the views of its own first time.
    """

    times: tuple[int, ...]
    shown: int | None = None
    alternating: bool = False

    @property
    def directions(self) -> list[tuple[tuple[int, ...], int | None]]:
        """The orders of the times that its steps take turns with, and the time whose views are shown in each."""
        if not self.alternating:
            return [(self.times, self.shown)]
        return [(times, times[0]) for times in (self.times[::-1], self.times)]


def dense_passes(times: int) -> list[Pass]:
    """SV4D's passes over times (times - 1) + 1 frames, where all views of frame 0 are there.

    First the anchors, `times` frames far apart; then the windows from one anchor to the next, both of which are made
    again with it: the next window begins with what the one before made of their common anchor.
    """
    stride = times - 1
    anchors = range(stride, times * stride + 1, stride)
    windows = (range(last - stride, last + 1) for last in anchors)
    return [Pass(tuple(anchors), shown=0), *(Pass(tuple(window), alternating=True) for window in windows)]


def window_passes(frames: int, times: int) -> list[Pass]:
    """SV4D 2.0's passes: windows of `times` frames, each shown the views that the one before made of its first frame.

    Windows share one frame; the last one ends with the clip and shares more. The original's windows are the same where
    it can make them all, of 12 to 23 frames with 4 views and of 4 k + 1 with 8. Raises ValueError for fewer frames than
    a window has.
    """
    if frames < times:
        raise ValueError(f"frames must be {times} or more, a window's; got {frames}.")
    starts = [*range(0, frames - times, times - 1), frames - times]
    return [Pass(tuple(range(t, t + times)), shown=t if t else None) for t in starts]


def view_angles(
    elevations: Sequence[float], azimuths: Sequence[float], relative_elevation: bool
) -> tuple[Tensor, Tensor]:
    """Polar and azimuth angles of the new views, radians, (v,) each, from degrees of all views, the input's first.

    Azimuths count from the input's view. With relative_elevation (SV4D 2.0), so do elevations: at the input's own one
    the polar angle is 90 degrees, whatever that is.
    """
    polars, azimuths_ = 90 - torch.tensor(elevations), torch.tensor(azimuths)
    if relative_elevation:
        polars = polars - polars[0] + 90
    return torch.deg2rad(polars[1:]), torch.deg2rad((azimuths_[1:] - azimuths_[0]) % 360)


def views_batch(
    clip: Tensor,
    views: Tensor,
    angles: tuple[Tensor, Tensor],
    noise: Callable[[str, Tensor], Tensor],
    cond_aug: float = 1e-5,
) -> dict[str, Tensor]:
    """The conditioner's inputs of a pass, by name.

    clip: the input's pictures at the pass's times (t, 3, h, w), views: those of all new views at one time (v, 3, h, w),
    all in [-1, 1]. angles: see `view_angles`. noise(name, pictures): standard normal noise of the pictures' shape, of
    which cond_aug times as much is added to all that are encoded; the level that the network is told is always 1e-5.
    """
    t, v = len(clip), len(views)
    pictures = {"cond_frames": clip.repeat_interleave(v, 0), "cond_view": views, "cond_motion": clip}
    return {
        "cond_frames_without_noise": clip,
        **{name: x + cond_aug * noise(name, x) for name, x in pictures.items()},
        "polar_rad": angles[0].repeat(t),
        "azimuth_rad": angles[1].repeat(t),
    }
