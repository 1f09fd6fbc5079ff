"""Clips as what a model is shown: frames of a video, an animation or a folder, the object in them cut out as one."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sgm.errors import UserError
from sgm.media.image import PictureError, open_picture
from sgm.media.kinds import GIF, WEBP, files_of, kind_of
from sgm.media.object import BACKGROUND_MODEL, cut_out, has_transparency, place_object, visible_box
from sgm.media.reading import open_video, stills
from sgm.paths import is_folder

_WHITE = 250  # of 255: brighter pixels are the background of a clip that is white all around


class OpenedClip(NamedTuple):
    """The first frames of a clip, RGB, or RGBA where they are transparent; length: how many frames it has in all."""

    frames: list[Image.Image]
    length: int

    def described(self, name: str, wanted: int) -> str:
        """A sentence on how the clip's frames become the model's."""
        if self.length > wanted:
            return f"{name} has {self.length} frames: the first {wanted} are taken."
        if self.length < wanted:
            return f"{name} has {self.length} frames: they run back and forth to make {wanted}."
        return f"{name} has {wanted} frames, as many as are made."


def open_clip(source: Path, most: int, say: Callable[[str], object] = lambda line: None) -> OpenedClip:
    """The first `most` frames of a video, an animated GIF or WebP, or a folder of pictures in the order of their names.

    say: is told what is left out of a folder. Raises UserError for what is no clip or is damaged, PictureError for a
    picture of a folder that cannot be read.
    """
    if is_folder(source):
        files = files_of(source, "picture", say)
        return OpenedClip([open_picture(path, keep_alpha=True) for path in files[:most]], len(files))
    with open(source, "rb") if source.is_file() else io.BytesIO() as file:
        kind = kind_of(file)
        if kind in (GIF, WEBP):
            frames, length = [], 0
            for still in stills(file, str(source)):
                length += 1
                if length <= most:
                    frames.append(still.convert("RGBA" if still.has_transparency_data else "RGB"))
            return OpenedClip(frames, length)
    if kind.group == "picture":
        raise UserError(f"{source} is {kind.name}, which does not move: give a clip, or a folder of its frames.")
    with open_video(source) as video:
        frames = [Image.fromarray(pixels) for pixels in islice(video, most)]
        return OpenedClip(frames, max(len(frames), len(video)))


def cut_out_clip(
    frames: Sequence[Image.Image],
    model: str = BACKGROUND_MODEL,
    on_frame: Callable[[int, int], None] = lambda done, of: None,
) -> list[Image.Image]:
    """The object in each frame, as RGBA, all of one size: by transparency, by a white background, or by rembg.

    A clip has transparency where any of its frames has; it is on white where every frame's edge is. on_frame(done, of)
    is called after each frame of which rembg removes the background.
    """
    if any(map(has_transparency, frames)):
        return [frame.convert("RGBA") for frame in frames]
    if all(map(_is_on_white, frames)):
        return [_without_white(frame) for frame in frames]
    cut = []
    for number, frame in enumerate(frames, start=1):
        cut.append(cut_out(frame, model))
        on_frame(number, len(frames))
    return cut


def place_clip(
    frames: Sequence[Image.Image], width: int, height: int, image_frame_ratio: float = 0.9
) -> list[Image.Image]:
    """The object of RGBA frames on white, RGB of `width` x `height`, moving as it did: one crop for all of them.

    The box around the object in all frames is centred. image_frame_ratio: its longer side over the frame's shorter one.
    Raises PictureError where nothing is visible in any frame.
    """
    boxes = [box for frame in frames if (box := visible_box(frame))]
    if not boxes:
        raise PictureError("No object was found in the clip: give one whose background is transparent, white or plain.")
    left, top, right, bottom = zip(*boxes, strict=True)
    box = min(left), min(top), max(right), max(bottom)
    return [place_object(frame, width, height, image_frame_ratio, box) for frame in frames]


def frames_cut_off(frames: Sequence[Image.Image]) -> list[int]:
    """The numbers, from 1, of the RGBA frames in which the object reaches the edge, beyond which it may go on."""
    reaching = []
    for number, frame in enumerate(frames, start=1):
        box = visible_box(frame)
        if box and (min(box[:2]) == 0 or box[2] == frame.width or box[3] == frame.height):
            reaching.append(number)
    return reaching


def _is_on_white(frame: Image.Image) -> bool:
    pixels = np.asarray(frame.convert("RGB")).mean(axis=2)
    return all((edge > _WHITE).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))


def _without_white(frame: Image.Image) -> Image.Image:
    pixels = np.asarray(frame.convert("RGB"))
    alpha = np.where(pixels.mean(axis=2) > _WHITE, 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([pixels, alpha]))
