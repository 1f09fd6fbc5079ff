"""svd_tiny's family: image to video with a camera move. The network is conditioned on the moving camera's views."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sgm.conditioning.camera import (
    CAMERA_MOVES,
    camera_path,
    direction,
    identity_rays,
    motion_along,
    motion_bucket,
    motion_of_bucket,
    rays,
    render,
    seen_from,
    there_and_back,
)
from sgm.families.image import Batch, ImageFamily, Picture, conditioning_frames, per_frame, to_pixels
from sgm.fields import Field, Named

if TYPE_CHECKING:
    from sgm.request import VideoRequest

_SAME_PLACE = 1  # percent of the width, below which two pictures are of one place: the camera goes as in a loop
_COARSE = identity_rays(24, 40)  # which measures motion as well as any
_TITLES = {"auto": "Surprise me"}
CAMERA = Field(
    "camera",
    str,
    "Camera",
    "Where the camera goes. auto leaves it to the seed.",
    default="auto",
    choices=lambda: {name: Named(_TITLES.get(name, "")) for name in CAMERA_MOVES},
)
DEPTH = Field(
    "depth",
    float,
    "Depth",
    "How much more near things move than far ones, as guessed from the picture. 0: the picture is flat.",
    0,
    2,
    default=1.0,
    usual=(0, 2),
    step=0.05,
)


class CameraFamily(ImageFamily):
    """svd_tiny: as SVD, with a camera move through a picture with depth."""

    fields = (*ImageFamily.fields, CAMERA, DEPTH)
    corrections = 1  # of a small autoencoder: 1.7 dB; further ones a tenth each

    def drawn(self, request: VideoRequest) -> str:
        """Where the camera goes if the seed decides, such as "in to the lower left, rolling right"."""
        if request.camera != "auto" or request.takes_last:
            return ""
        # As in `batch`: the first numbers of the seed's generator.
        x, y, _, roll, *_ = direction("auto", generator=torch.Generator().manual_seed(request.seed))[0].tolist()
        far_x, far_y = abs(x) > 0.12, abs(y) > 0.12  # widths
        across = ("right" if x > 0 else "left") if far_x else ""
        along = (("lower" if y > 0 else "upper") if far_x else "bottom" if y > 0 else "top") if far_y else ""
        way = f"in to the {along} {across}".strip().replace("  ", " ") if far_x or far_y else "straight in"
        return f"{way}, rolling {'left' if roll > 0 else 'right'}" if abs(roll) > 0.1 else way

    def batch(self, picture: Picture, factor: int, generator: torch.Generator) -> Batch:
        """As SVD's, but cond_frames (t, 3, h, w) are the camera's views; camera: ray maps (t, 2, h / f, w / f)."""
        return self._seen(picture, self.path(picture.request, generator), factor, generator)

    def between(
        self, first: Picture, last: Picture | None, factor: int, generator: torch.Generator
    ) -> tuple[Batch, Batch]:
        """As SVD's. The camera goes from the first picture to what the last one shows of the same scene.

        Where they show nothing in common, or a move is chosen, it goes there; in a loop, half as far and back. Pictures
        of one scene tell how the camera moves, and between them the scene is taken to be flat.
        """
        path = self.path(first.request, generator)
        and_back = path[-1:] / 2 * there_and_back(len(path))
        if last is None:
            forward = self._seen(first, and_back, factor, generator)
            return forward, forward
        aimed = _aimed(first, last)
        goal = path[-1] if aimed is None else aimed
        way = goal * torch.linspace(0, 1, len(path))[:, None]
        if motion_along(way, _COARSE) * (len(path) - 1) < _SAME_PLACE:
            goal, way = torch.zeros_like(goal), and_back
        flat, backward = aimed is not None, seen_from(goal, way).flip(0)
        return (
            self._seen(first, way, factor, generator, flat),
            self._seen(last, backward, factor, generator, flat),
        )

    def doubt(self, first: Picture, last: Picture) -> str:
        if first.request.camera != "auto" or _aimed(first, last) is not None:
            return ""
        return "The two pictures show nothing in common that a camera could go along: the clip will jump between them."

    def finish(self, frames: np.ndarray, picture: Picture) -> np.ndarray:
        """The frames in the picture's colours: the small autoencoder fades what is evenly bright and saturated."""
        if picture.request.bounded:  # whose ends are two pictures'
            return frames
        from sgm.media.colours import match_colours  # imported here, since OpenCV's import takes a while

        return match_colours(frames, frames[:1], np.asarray(picture.frame())[None])

    @staticmethod
    def _seen(picture: Picture, path: Tensor, factor: int, generator: torch.Generator, flat: bool = False) -> Batch:
        """The inputs for a camera on a path (t, 6), through the picture's scene, or before the flat picture."""
        request = picture.request
        base = identity_rays(request.height // factor, request.width // factor)
        large = picture.frame(scale=2)
        if request.depth and not flat:
            from sgm.conditioning.scene import Scene  # imported here, since OpenCV's import takes a while

            scene = Scene.of(large).deep(torch.tensor([request.depth]), path[None], base)
            views, maps = scene.film(path), torch.cat([scene.rays(moves, base, True) for moves in path.split(1)])
        else:
            views, maps = render(to_pixels(large), path), rays(path, base)
        bucket = motion_bucket(motion_along(path, base)) if request.bounded else request.motion_bucket
        return {
            **per_frame(request, fps_id=request.fps - 1, motion_bucket_id=float(bucket)),
            **conditioning_frames(request, to_pixels(picture.frame()), views, generator),
            "camera": maps,
        }

    @staticmethod
    def path(request: VideoRequest, generator: torch.Generator | None = None) -> Tensor:
        """The camera's positions (frames, 6), as in `sgm.conditioning.camera`, which take a generator's first numbers.

        generator: as it is once seeded by the request, which is the default.
        """
        generator = generator or torch.Generator().manual_seed(request.seed)
        motion = torch.tensor([float(motion_of_bucket(request.motion_bucket))])
        move = direction(request.camera, generator=generator)
        return camera_path(move, motion, request.frames, request.height, request.width)[0]


def _aimed(first: Picture, last: Picture) -> Tensor | None:
    """The camera's position from which the first picture looks like the last one; None where it is not known."""
    if first.request.camera != "auto":
        return None
    from sgm.conditioning.aim import aim  # imported here, since OpenCV's import takes a while

    return aim(first.frame(), last.frame())
