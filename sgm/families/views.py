"""SV4D's families: from a clip of an object, filmed by one camera, to clips of its motion seen by other cameras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from sgm.conditioning.views import Pass, dense_passes, view_angles, window_passes
from sgm.errors import UserError
from sgm.families.image import ImageFamily
from sgm.families.orbit import ELEVATION, LISTS
from sgm.media.clip import check_frames, cut_out_clip, needs_rembg, place_clip
from sgm.media.image import fit_picture, on_white

if TYPE_CHECKING:
    from sgm.request import VideoRequest

# Degrees around the object by the number of new views, the input's own first: those that the authors' program takes.
_AZIMUTHS = {4: (0, 60, 120, 180, 240), 8: (0, 30, 75, 120, 165, 210, 255, 300, 330)}


class ViewsFamily(ImageFamily):
    """SV4D 2.0: windows over a clip, each shown what the one before made; elevations and azimuths can be chosen."""

    fields = tuple(LISTS.values())
    bounded = False

    def check(self, request: VideoRequest) -> None:
        times, views = request.model.times, 1 + request.model.num_views
        if request.frames < times:
            raise UserError(f"frames must be {times} or more for {request.version}; got {request.frames}.")
        for name in LISTS:
            if (given := len(request.options[name])) not in (0, views):
                raise UserError(
                    f"{name} must be {views} numbers, one a view, the first of them the clip's own; got {given}."
                )

    def degrees(self, request: VideoRequest) -> tuple[Sequence[float], Sequence[float]]:
        """Elevations and azimuths of all views, the input's first."""
        views = request.model.num_views
        azimuths = _AZIMUTHS.get(views) or tuple(360 * i / (1 + views) for i in range(1 + views))
        return request.elevations or (0.0,) * (1 + views), request.azimuths or azimuths

    def angles(self, request: VideoRequest) -> tuple[torch.Tensor, torch.Tensor]:
        """Polar and azimuth angles of the new views, as the network is told them: radians, (v,) each."""
        return view_angles(*self.degrees(request), relative_elevation=True)

    def passes(self, request: VideoRequest) -> list[Pass]:
        """The sampling runs, in order."""
        return window_passes(request.frames, request.model.times)

    def pass_title(self, request: VideoRequest, number: int) -> str:
        """A pass, counted from 0, for people."""
        return f"Window {number + 1} of {len(self.passes(request))}"

    def walk(self, request: VideoRequest) -> list[int]:
        """The view of each frame of the walk through view and time, the input's being 0.

        While the clip goes on once, the walk goes once around the object, in the order of the azimuths from the input's
        own view, and stays as long at each.
        """
        azimuths = self.degrees(request)[1]
        around = sorted(range(len(azimuths)), key=lambda view: (azimuths[view] - azimuths[0]) % 360)
        return [around[time * len(around) // request.frames] for time in range(request.frames)]

    def check_clip(self, frames: Sequence[Image.Image], request: VideoRequest) -> None:
        """Raise what `prepare_clip` raises, as far as is known without removing a background, which is slow."""
        if request.fit != "object" or not needs_rembg(frames):
            self.prepare_clip(frames, request)
        else:
            check_frames(frames)

    def prepare_clip(
        self,
        frames: Sequence[Image.Image],
        request: VideoRequest,
        background_model: str | None = None,
        on_frame: Callable[[int, int], None] = lambda done, of: None,
        on_cut: Callable[[Sequence[Image.Image]], object] = lambda cut: None,
    ) -> list[Image.Image]:
        """A clip's frames as the model sees them, RGB of the request's size: as many as the request has.

        For a fit of "object", the object is cut out and placed by one crop for all frames, else each is fitted as a
        picture. Of a longer clip the first frames are taken, a shorter one runs back and forth. on_frame(done, of) is
        called while backgrounds are removed, which is slow, on_cut with the frames that are cut out, RGBA. Raises
        UserError for fewer than two frames and for frames of several sizes, PictureError where no object is found.
        """
        check_frames(frames)
        frames = frames[: request.frames]
        if request.fit == "object":
            cut = cut_out_clip(frames, *([background_model] if background_model else []), on_frame=on_frame)
            on_cut(cut)
            placed = place_clip(cut, *request.size, request.image_frame_ratio)
        else:
            how = request.fit, (request.crop_x, request.crop_y)
            placed = [fit_picture(on_white(frame), *request.size, *how) for frame in frames]
        back_and_forth = [*placed, *placed[-2:0:-1]]
        return [back_and_forth[i % len(back_and_forth)] for i in range(request.frames)]

    def matrix(self, clip: Sequence[Image.Image], request: VideoRequest, first: np.ndarray | None) -> torch.Tensor:
        """The pictures of all times and views before sampling, (t, v + 1, 3, h, w) in [-1, 1]: zeros where none is.

        first: see `generate_views`.
        """
        if first is not None:
            raise ValueError(f"{request.version} takes no first views.")
        return self._matrix(clip, request)

    def _matrix(self, clip: Sequence[Image.Image], request: VideoRequest) -> torch.Tensor:
        pictures = torch.zeros(request.frames, 1 + request.model.num_views, 3, request.height, request.width)
        pictures[:, 0] = _to_pixels(np.stack([np.asarray(frame) for frame in clip]))
        return pictures


class DenseViewsFamily(ViewsFamily):
    """SV4D: the views of the first frame come from SV3D's orbit, the others of few frames from these, then all."""

    fields = (ELEVATION,)
    # Of the orbit, beginning with the input's view: pictures, and numbers of all pictures.
    chosen, around = (0, 2, 5, 7, 9, 12, 14, 16, 19), 21

    def check(self, request: VideoRequest) -> None:
        times = request.model.times
        if request.frames != (frames := times * (times - 1) + 1):
            raise UserError(f"{request.version} makes {frames} frames, no more and no fewer; got {request.frames}.")

    def degrees(self, request: VideoRequest) -> tuple[Sequence[float], Sequence[float]]:
        chosen = self.chosen[: 1 + request.model.num_views]
        return (request.elevation,) * len(chosen), tuple(360 * number / self.around for number in chosen)

    def angles(self, request: VideoRequest) -> tuple[torch.Tensor, torch.Tensor]:
        return view_angles(*self.degrees(request), relative_elevation=False)

    def passes(self, request: VideoRequest) -> list[Pass]:
        return dense_passes(request.model.times)

    def pass_title(self, request: VideoRequest, number: int) -> str:
        return f"Stretch {number} of {request.model.times}" if number else "Anchors"

    def matrix(self, clip: Sequence[Image.Image], request: VideoRequest, first: np.ndarray | None) -> torch.Tensor:
        if first is None or first.shape != (self.around, request.height, request.width, 3):
            raise ValueError(
                f"{request.version} needs first views: {self.around} frames of {request.model.begins_with}."
            )
        pictures = self._matrix(clip, request)
        turned = np.roll(first, 1, axis=0)  # its last frame is the input's view
        pictures[0, 1:] = _to_pixels(turned[list(self.chosen[1 : pictures.shape[1]])])
        return pictures


def _to_pixels(frames: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) -> (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
