"""Clips as what a model is shown: frames of a video, an animation or a folder, the object in them cut out as one."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sgm.errors import UserError
from sgm.media.image import PictureError, open_picture
from sgm.media.kinds import GIF, WEBP, files_of, kind_of, natural_order
from sgm.media.object import BACKGROUND_MODEL, cut_out, has_transparency, place_object, visible_box
from sgm.media.reading import MAX_DECODED, MAX_FRAMES, open_video, stills
from sgm.media.video import encode_frames, write_whole
from sgm.paths import is_file, is_folder

_WHITE = 250  # of 255: brighter pixels are the background of a clip that is white all around


class OpenedClip(NamedTuple):
    """The first frames of a clip, RGB, or RGBA where they are transparent; length: how many frames it has in all.

    It is infinite for a video of more than MAX_FRAMES, which are not counted.
    """

    frames: list[Image.Image]
    length: float

    def described(self, name: str, wanted: int) -> str:
        """A sentence on how the clip's frames become the model's."""
        count = f"more than {MAX_FRAMES}" if self.length == math.inf else str(self.length)
        if self.length > wanted:
            return f"{name} has {count} frames: the first {wanted} are taken."
        if self.length < wanted:
            return f"{name} has {count} frames: they run back and forth to make {wanted}."
        return f"{name} has {count} frames, as many as are made."


class JoinedPictures(NamedTuple):
    """A lossless clip of pictures, as `open_clip` reads it. name: the first one's; count: of pictures, all of them."""

    content: bytes
    name: str
    count: int


def open_clip(
    source: Path | bytes, most: int, say: Callable[[str], object] = lambda line: None, name: str = ""
) -> OpenedClip:
    """The first `most` frames of a video, an animated GIF or WebP, or a folder of pictures in their `natural_order`.

    source: a path, or a file's content. say: is told what is left out of a folder. name: the file's in messages. Raises
    UserError for what is no clip or is damaged, and for frames of more than MAX_DECODED bytes; PictureError for a
    picture of a folder that cannot be read.
    """
    name = name or ("The file" if isinstance(source, bytes) else str(source))
    if isinstance(source, Path):
        if is_folder(source):
            files = sorted(files_of(source, "picture", say), key=lambda path: natural_order(path.name))
            return OpenedClip(_bounded(open_picture(path, keep_alpha=True) for path in files[:most]), len(files))
        if not is_file(source):
            raise UserError(f"There is no clip at {source}: give a video, an animation or a folder of frames.")
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        kind = kind_of(file)
        if kind in (GIF, WEBP):
            length = 0

            def converted() -> Iterator[Image.Image]:
                nonlocal length
                for still in islice(stills(file, name), most):
                    yield still.convert("RGBA" if still.has_transparency_data else "RGB")
                    with suppress(Exception):  # of any kind: the rest may be damaged
                        length = length or getattr(still, "n_frames", 0)

            frames = _bounded(converted())
            return OpenedClip(frames, max(len(frames), length))
    if kind.group == "picture":
        raise UserError(f"{name} is {kind.name}, which does not move: give a clip, or a folder of its frames.")
    with open_video(source, name) as video:
        frames, length = _bounded(map(Image.fromarray, islice(video.frames(alpha=True), most))), math.inf
        with suppress(UserError):  # which says that there are more
            length = len(video)
        return OpenedClip(frames, max(len(frames), length))


def join_pictures(pictures: Sequence[tuple[str, bytes]], most: int) -> JoinedPictures:
    """A clip of the first `most` of some pictures, in their `natural_order`.

    pictures: names and contents; what is no picture among them is passed over. Raises UserError for a clip among them,
    for fewer than two, and for pictures of several sizes; PictureError for one that cannot be read.
    """
    kinds = {name: kind_of(io.BytesIO(content)).group for name, content in pictures}
    if clip := next((name for name, kind in kinds.items() if kind == "clip"), ""):
        raise UserError(f"{clip} is a clip: give it alone, or the pictures that are a clip's frames.")
    chosen = sorted((natural_order(name), name, content) for name, content in pictures if kinds[name])
    frames = _bounded(open_picture(content, name, keep_alpha=True) for _, name, content in chosen[:most])
    return JoinedPictures(_encoded(frames), chosen[0][1], len(chosen))


def _bounded(frames: Iterable[Image.Image]) -> list[Image.Image]:
    """The frames. Raises UserError where they take more than MAX_DECODED bytes, before more are opened."""
    taken, size = [], 0
    for frame in frames:
        size += frame.width * frame.height * len(frame.getbands())
        if size > MAX_DECODED:
            raise UserError(
                f"The clip's first {len(taken) + 1} frames of {frame.width}×{frame.height} pixels take more than the "
                f"{MAX_DECODED / 2**30:.2g} GB that can be read at once: scale it down, or take fewer frames."
            )
        taken.append(frame)
    return taken


def write_clip(path: Path, frames: Sequence[Image.Image]) -> Path:
    """Write frames so that `open_clip` gives the same, all in RGBA where one is: an .mkv.

    Raises UserError as `check_frames`, and where the file cannot be written.
    """
    content = _encoded(frames)
    write_whole(path, lambda temporary: temporary.write_bytes(content))
    return path


def _encoded(frames: Sequence[Image.Image]) -> bytes:
    check_frames(frames)
    mode = "RGBA" if any(frame.mode == "RGBA" for frame in frames) else "RGB"
    return encode_frames(np.stack([np.asarray(frame.convert(mode)) for frame in frames]), 10)


def check_frames(frames: Sequence[Image.Image]) -> None:
    """Raise UserError for fewer than two frames and for frames of several sizes."""
    if len(frames) < 2:
        raise UserError("A single picture does not move: give a clip of two frames or more.")
    if other := next((i for i, frame in enumerate(frames) if frame.size != frames[0].size), 0):
        (w, h), (w2, h2) = frames[0].size, frames[other].size
        raise UserError(f"Frame {other + 1} has {w2}×{h2} pixels, the first {w}×{h}: give frames of one size.")


def needs_rembg(frames: Sequence[Image.Image]) -> bool:
    """Whether the background of a clip's frames has to be removed, for it is neither transparent nor white.

    A clip has transparency where any of its frames has; it is on white where every frame's edge is.
    """
    return not (any(map(has_transparency, frames)) or all(map(_is_on_white, frames)))


def cut_out_clip(
    frames: Sequence[Image.Image],
    model: str = BACKGROUND_MODEL,
    on_frame: Callable[[int, int], None] = lambda done, of: None,
) -> list[Image.Image]:
    """The object in each frame, as RGBA, all of one size: by transparency, by a white background, or by rembg.

    on_frame(done, of) is called after each frame of which rembg removes the background.
    """
    if not needs_rembg(frames):
        transparent = any(map(has_transparency, frames))
        return [frame.convert("RGBA") if transparent else _without_white(frame) for frame in frames]
    cut = []
    for number, frame in enumerate(frames, start=1):
        cut.append(cut_out(frame, model))
        on_frame(number, len(frames))
    return cut


def crop_to_object(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """RGBA frames without what is empty in all of them, but for an edge of a pixel, which marks them as cut out.

    Raises PictureError where nothing is visible in any frame.
    """
    left, top, right, bottom = _box_of_all(frames)
    # Pillow fills with transparent black what lies beyond the picture.
    return [frame.crop((left - 1, top - 1, right + 1, bottom + 1)) for frame in frames]


def place_clip(
    frames: Sequence[Image.Image], width: int, height: int, image_frame_ratio: float = 0.9
) -> list[Image.Image]:
    """The object of RGBA frames on white, RGB of `width` x `height`, moving as it did: one crop for all of them.

    The box around the object in all frames is centred. image_frame_ratio: its longer side over the frame's shorter one.
    Raises PictureError where nothing is visible in any frame.
    """
    box = _box_of_all(frames)
    return [place_object(frame, width, height, image_frame_ratio, box) for frame in frames]


def cut_off_note(frames: Sequence[Image.Image]) -> str:
    """A sentence on the RGBA frames in which the object reaches the edge, beyond which it may go on; "" for none."""
    reaching = []
    for number, frame in enumerate(frames, start=1):
        box = visible_box(frame)
        if box and (min(box[:2]) == 0 or box[2] == frame.width or box[3] == frame.height):
            reaching.append(str(number))
    if not reaching:
        return ""
    numbers = ", ".join(reaching[:8]) + (" …" if len(reaching) > 8 else "")
    frame = "frames" if len(reaching) > 1 else "frame"
    return f"The object reaches the picture's edge in {frame} {numbers}: what lies beyond it is missing."


def _box_of_all(frames: Sequence[Image.Image]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is visible in any of RGBA frames. Raises PictureError where nothing is."""
    boxes = [box for frame in frames if (box := visible_box(frame))]
    if not boxes:
        raise PictureError("No object was found in the clip: give one whose background is transparent, white or plain.")
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _is_on_white(frame: Image.Image) -> bool:
    pixels = np.asarray(frame.convert("RGB")).mean(axis=2)
    return all((edge > _WHITE).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))


def _without_white(frame: Image.Image) -> Image.Image:
    pixels = np.asarray(frame.convert("RGB"))
    alpha = np.where(pixels.mean(axis=2) > _WHITE, 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([pixels, alpha]))
