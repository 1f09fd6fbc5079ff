"""Stable Video Diffusion's family: image to video, the picture cropped or padded, with a motion bucket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sgm.devices import host_buffers
from sgm.fields import Field, Named
from sgm.media.image import fit_picture
from sgm.media.object import cut_out, place_object

if TYPE_CHECKING:
    from sgm.request import VideoRequest

Batch = Mapping[str, Tensor | Callable[[], Tensor]]
_drawing = ThreadPoolExecutor(1, "noise")  # one thread, so that a generator's numbers come in the order of the calls

_CROP = {
    name: Field(name, float, label, about, 0, 1, default=0.5, step=0.05)
    for name, label, about in (
        ("crop_x", "Position, left to right", "Which part of a wider picture is used; where a padded one is. 0: left."),
        ("crop_y", "Position, top to bottom", "Which part of a taller picture is used; where a padded one is. 0: top."),
    )
}
IMAGE_FRAME_RATIO = Field(
    "image_frame_ratio",
    float,
    "Object's share of the frame",
    "The object's longer side against the frame's. SV3D and SV4D 2.0 were trained on about 0.9, SV4D on 0.917.",
    0.1,
    1,
    default=0.9,
    usual=(0.1, 1),
    step=0.05,
)
# How a picture is brought to the model's shape.
FITS: dict[str, Named] = {
    "crop": Named("Crop", _CROP),
    "pad": Named("Blurred edges", _CROP),
    "object": Named("Object on white", {"image_frame_ratio": IMAGE_FRAME_RATIO}),
}
MOTION_BUCKET = Field(
    "motion_bucket",
    int,
    "Motion",
    "Motion bucket id. Higher moves more, and tears sooner; 127 is usual, and training ended at 255.",
    0,
    511,
    usual=(1, 255),
    step=1,
)


@dataclass(frozen=True)
class Picture:
    """A conditioning picture: for a fit of "object" cut out, in RGBA. `frame` fits it to the clip's size."""

    image: Image.Image
    request: VideoRequest

    def frame(self, scale: int = 1) -> Image.Image:
        """The picture as the model sees it: RGB of the request's size, or `scale` times as large."""
        request, (width, height) = self.request, self.request.size
        if request.fit == "object":
            return place_object(self.image, scale * width, scale * height, request.image_frame_ratio)
        position = request.crop_x, request.crop_y
        return fit_picture(self.image, width, height, request.fit, position, scale)


class ImageFamily:
    """Stable Video Diffusion's family, and the base class of the others.

    fields: the family's own settings. input_frame: index of the frame that shows the input picture. orbits: whether the
    camera orbits an object, so that the clip can be looped as a turntable. bounded: whether a clip can be made between
    two pictures. corrections: of their latents, see `Run.latents`.
    """

    fields: tuple[Field, ...] = (MOTION_BUCKET,)
    input_frame: ClassVar[int] = 0
    orbits: ClassVar[bool] = False
    bounded: ClassVar[bool] = True
    corrections: ClassVar[int] = 0

    def check(self, request: VideoRequest) -> None:
        """Raise UserError where fields of this family contradict each other."""

    def drawn(self, request: VideoRequest) -> str:
        """What the seed has drawn of the camera's way, in words; "" where it is chosen."""
        return ""

    def prepare(self, image: Image.Image, request: VideoRequest, background_model: str | None = None) -> Picture:
        """The conditioning picture; for a fit of "object" its background is removed, which is slow.

        background_model: name of rembg's model, for pictures without transparency. Raises PictureError.
        """
        if request.fit == "object":
            image = cut_out(image, background_model) if background_model else cut_out(image)
        return Picture(image, request)

    def batch(self, picture: Picture, factor: int, generator: torch.Generator) -> Batch:
        """The conditioner's inputs by name: pictures (1, 3, h, w) in [-1, 1], scalars (t,); as `ready` gives them.

        factor: downsampling factor from pixels to latents. generator: draws the noise of `cond_aug`, by a thread of its
        own; it is not to be used before "cond_frames" is ready.
        """
        request, pixels = picture.request, to_pixels(picture.frame())
        return {
            **per_frame(request, fps_id=request.fps - 1, motion_bucket_id=request.motion_bucket),
            **conditioning_frames(request, pixels, pixels, generator),
        }

    def between(
        self, first: Picture, last: Picture | None, factor: int, generator: torch.Generator
    ) -> tuple[Batch, Batch]:
        """As `batch`, from either end of a clip between two pictures: from the first, and from the last backward.

        last: None for a loop, which ends where it began.
        """
        forward = self.batch(first, factor, generator)
        return forward, forward if last is None else self.batch(last, factor, generator)

    def doubt(self, first: Picture, last: Picture) -> str:
        """What speaks against a clip between two pictures, in a sentence; "" for nothing."""
        return ""

    def finish(self, frames: np.ndarray, picture: Picture) -> np.ndarray:
        """The decoded clip, uint8 (t, h, w, 3), with the family's changes. It may be changed in place."""
        return frames


def per_frame(request: VideoRequest, **scalars: float) -> Batch:
    """Scalars repeated for each frame, (t,) float32, by name."""
    return {name: torch.full((request.frames,), float(value)) for name, value in scalars.items()}


def conditioning_frames(request: VideoRequest, clean: Tensor, frames: Tensor, generator: torch.Generator) -> Batch:
    """Inputs of CLIP, `clean` (1, 3, h, w), and of the autoencoder, `frames` (n, 3, h, w) with noise of cond_aug.

    The noise of a large picture takes longer than launching the image tower, so it is drawn meanwhile. The thread does
    nothing else: what OpenMP computes in a thread keeps threads of its own, which slow those of the network.
    """
    noise = _drawing.submit(torch.randn, frames.shape, generator=generator)
    return {
        **per_frame(request, cond_aug=request.cond_aug),
        "cond_frames_without_noise": clean,
        "cond_frames": cache(lambda: frames + request.cond_aug * noise.result()),
    }


def ready(value: Tensor | Callable[[], Tensor]) -> Tensor:
    """A value of a batch, waited for where its noise is still being drawn."""
    return value if isinstance(value, Tensor) else value()


def to_pixels(picture: Image.Image) -> Tensor:
    """A picture as a tensor, (1, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Pictures (n, 3, h, w) in [-1, 1], which they may leave, as uint8 (n, h, w, 3)."""
    pixels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
    pixels = pixels.permute(0, 2, 3, 1).contiguous()  # laid out where that is fast
    if pixels.is_cuda:  # by way of pinned memory, a quarter of the time; the clone is in ordinary memory
        pixels = host_buffers([pixels.nbytes], pixels.device)[0].view(pixels.shape).copy_(pixels).clone()
    return pixels.numpy(force=True)
