"""The watermark of a file: a picture, an animation or a video."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from sgm.errors import UserError
from sgm.media.image import open_picture
from sgm.media.kinds import GIF, WEBP, kind_of
from sgm.media.reading import MAX_FRAMES, open_video, stills
from sgm.media.watermark import Reading, most_read, most_rows, read_watermark
from sgm.paths import is_file


def detect_watermark(source: Path | bytes, name: str, search: bool = True) -> Reading:
    """What a file holds of the watermark. source: a path, or a file's content. name: the file's name in messages.

    Of a clip, frames from all of it are read, as far as the longest film that can be made. search: as for
    `read_watermark`; without it, a clip's first frames alone are read, however long it is. Raises UserError for a file
    that is no video or picture, or cannot be read.
    """
    content = io.BytesIO(source) if isinstance(source, bytes) else None
    with content or (source.open("rb") if is_file(source) else io.BytesIO()) as file:  # type: ignore[union-attr]
        kind = kind_of(file)
        if kind in (GIF, WEBP):
            return read_watermark(_some(stills(file, name), search), search)
    if kind.group != "clip":
        picture = open_picture(source, name)
        if not search:
            picture = picture.crop((0, 0, picture.width, min(picture.height, most_rows(picture.width))))
        return read_watermark([np.asarray(picture)], search)
    with open_video(source, name) as video:
        length, most = MAX_FRAMES, most_read(*video.size)
        with contextlib.suppress(UserError):
            length = min(len(video), length)
        step = max(1, length // most) if search else 1
        return read_watermark(list(islice(video, 0, step * most, step)), search)


def _some(frames: Iterator[Image.Image], from_all: bool) -> list[np.ndarray]:
    """As many of an animation's frames as are read: the first ones or, at even distances, from all of it."""
    kept: list[np.ndarray] = []
    step = most = 1
    for number, frame in enumerate(frames):
        if number % step == 0:
            kept.append(np.asarray(frame.convert("RGB")))
            most = most_read(*frame.size)
        if len(kept) == most and not from_all:
            break
        if len(kept) == 2 * most:  # how many there will be is not known
            kept, step = kept[::2], 2 * step
    return kept
