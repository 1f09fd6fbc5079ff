"""Sheets: a clip as one picture with its frames in rows, which a browser decodes once. Does not import Streamlit."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from app.jobs import Job
from sgm import JOIN

MOST_PIXELS = 40e6  # of all sheets together: 160 MB in the browser
_JPEG = {"format": "JPEG", "quality": 92, "subsampling": 0}
_PNG = {"format": "PNG", "compress_level": 1}


class Sheet(NamedTuple):
    """content: of an image file of this MIME type. columns: frames in a row. width, height: of a frame, pixels."""

    content: bytes
    mime: str
    columns: int
    frames: int
    width: int
    height: int
    fps: float


def scale_of(chains: Sequence[Sequence[Job]]) -> float:
    """How much clips are made smaller to stay below MOST_PIXELS, at most 1. chains: the clips of each one's film."""
    pixels = sum(math.prod(chain[-1].request.size) * _length(chain) for chain in chains)
    return min(1.0, math.sqrt(MOST_PIXELS / pixels))


def draw_sheet(frames: np.ndarray, fps: float, scale: float, lossless: bool) -> Sheet:
    """The sheet of frames, uint8 (T, H, W, 3), as near to a square as can be. lossless: as a PNG, else as a JPEG."""
    count, height, width, _ = frames.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(count, math.ceil(math.sqrt(count * size[1] / size[0])))
    sheet = Image.new("RGB", (columns * size[0], math.ceil(count / columns) * size[1]))
    for i, frame in enumerate(frames):
        image = Image.fromarray(frame)
        image = image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(image, (i % columns * size[0], i // columns * size[1]))
    file = io.BytesIO()
    sheet.save(file, **_PNG if lossless else _JPEG)
    return Sheet(file.getvalue(), "image/png" if lossless else "image/jpeg", columns, count, *size, fps)


def _length(chain: Sequence[Job]) -> int:
    """How many frames a film has."""
    return sum(job.request.frames for job in chain) + (len(chain) - 1) * JOIN
