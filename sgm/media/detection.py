"""The watermark of a file: a picture, an animation or a video."""

from __future__ import annotations

import contextlib
import io
from itertools import islice
from pathlib import Path

import numpy as np

from sgm.errors import UserError
from sgm.media.image import open_picture
from sgm.media.kinds import GIF, WEBP, kind_of
from sgm.media.reading import MAX_FRAMES, open_video, stills
from sgm.media.watermark import MOST_READ, Reading, read_watermark
from sgm.paths import is_file


def detect_watermark(source: Path | bytes, name: str, search: bool = True) -> Reading:
    """What a file holds of the watermark. source: a path, or a file's content. name: the file's name in messages.

    Of a video, frames from all of it are read, as far as the longest film that can be made. search: as for
    `read_watermark`. Raises UserError for a file that is no video or picture, or cannot be read.
    """
    content = io.BytesIO(source) if isinstance(source, bytes) else None
    with content or (source.open("rb") if is_file(source) else io.BytesIO()) as file:  # type: ignore[union-attr]
        kind = kind_of(file)
        if kind in (GIF, WEBP):
            return read_watermark([np.asarray(still.convert("RGB")) for still in stills(file, name)], search)
    if kind.group != "clip":
        return read_watermark([np.asarray(open_picture(source, name))], search)
    with open_video(source, name) as video:
        length = MAX_FRAMES
        with contextlib.suppress(UserError):
            length = min(len(video), length)
        step = max(1, length // MOST_READ)
        return read_watermark(list(islice(video, 0, step * MOST_READ, step)), search)
