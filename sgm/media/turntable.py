"""An orbit as a turntable that loops without a seam, and as a picture of where the camera goes."""

from __future__ import annotations

import contextlib
import math
import os
import uuid
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sgm.errors import UserError
from sgm.media.video import write_video

_INK, _FAINT, _LINE, _LAST = "#1d2b2a", "#d5dbd9", "#0b6e6b", "#d2601a"


def loop_order(elevations: Sequence[float], azimuths: Sequence[float]) -> list[int]:
    """Frame numbers of one round: once through where the orbit closes, else there and back."""
    count = len(azimuths)
    if count < 3:
        return list(range(count))
    turn = max(np.diff(azimuths))
    rise = max(abs(np.diff(elevations)))
    closes = 360 - (azimuths[-1] - azimuths[0]) <= 1.5 * turn and abs(elevations[0] - elevations[-1]) <= 1.5 * rise + 1
    return list(range(count)) + ([] if closes else list(range(count - 2, 0, -1)))


def write_turntable(
    path: str | Path,
    frames: np.ndarray,
    fps: float,
    elevations: Sequence[float],
    azimuths: Sequence[float],
    turns: int = 3,
) -> Path:
    """Write `frames` (T, H, W, 3), uint8, as a loop: .webp and .gif go round for ever, .mp4 `turns` times.

    The last frame is followed by the first, a step of the orbit away like all others. An orbit that does not close is
    shown there and back. The file appears only when it is complete. Raises UserError for another ending or a place that
    cannot be written.
    """
    path = Path(path)
    order = loop_order(elevations, azimuths)
    if path.suffix.lower() == ".mp4":
        return write_video(path, frames[order * turns], fps)
    options: dict[str, Any] | None = {".webp": {"quality": 85, "method": 4}, ".gif": {"disposal": 1}}.get(
        path.suffix.lower()
    )
    if options is None:
        raise UserError(f"The turntable's name is {path.name!r}, but must end in .webp, .gif or .mp4.")
    first, *rest = [Image.fromarray(frames[i]) for i in order]
    temporary = path.absolute().with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        first.save(temporary, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, **options)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): choose another place.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def draw_orbit(elevations: Sequence[float], azimuths: Sequence[float], width: int = 960) -> Image.Image:
    """A picture, `width` x 0.45 `width`: elevation over azimuth, and the camera's way around the object in 3-D.

    Degrees. The last view, the input's, stands out.
    """
    scale = 2 * width / 960  # drawn at twice the size: Pillow's lines have no smooth edges
    picture = Image.new("RGB", (2 * width, round(0.9 * width)), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(15 * scale)
    _chart(draw, font, scale, elevations, azimuths)
    _globe(draw, font, scale, elevations, azimuths)
    return picture.resize((width, round(0.45 * width)), Image.Resampling.LANCZOS)


def _chart(
    draw: ImageDraw.ImageDraw, font, scale: float, elevations: Sequence[float], azimuths: Sequence[float]
) -> None:
    left, top, right, bottom = (value * scale for value in (70, 50, 500, 355))
    low = max(-90, 10 * math.floor((min(elevations) - 5) / 10))
    high = min(90, max(10 * math.ceil((max(elevations) + 5) / 10), low + 20))

    def at(azimuth: float, elevation: float) -> tuple[float, float]:
        return left + (right - left) * azimuth / 360, bottom - (bottom - top) * (elevation - low) / (high - low)

    draw.text((left, 16 * scale), "Elevation over azimuth", _INK, font)
    for azimuth in range(0, 361, 90):
        draw.line([at(azimuth, low), at(azimuth, high)], _FAINT, round(scale))
        x, y = at(azimuth, low)
        draw.text((x, y + 8 * scale), f"{azimuth}°", _INK, font, anchor="ma")
    for elevation in range(low, high + 1, max(10, 10 * round((high - low) / 60))):
        draw.line([at(0, elevation), at(360, elevation)], _FAINT, round(scale))
        x, y = at(0, elevation)
        draw.text((x - 10 * scale, y), f"{elevation}°", _INK, font, anchor="rm")
    points = [at(a, e) for a, e in zip(azimuths, elevations, strict=True)]
    draw.line(points, _LINE, round(2 * scale), joint="curve")
    _dots(draw, scale, points)
    x, y = points[-1]
    draw.text((x - 10 * scale, y - 10 * scale), "input view", _LAST, font, anchor="rs", **_halo(scale))


def _globe(
    draw: ImageDraw.ImageDraw, font, scale: float, elevations: Sequence[float], azimuths: Sequence[float]
) -> None:
    middle, radius, tilt = (750 * scale, 205 * scale), 150 * scale, math.radians(22)

    def at(azimuth: float, elevation: float) -> tuple[float, float, float]:
        """On the page, and how far towards the viewer. The input view is in front."""
        a, e = math.radians(azimuth), math.radians(elevation)
        x, depth, up = math.sin(a) * math.cos(e), math.cos(a) * math.cos(e), math.sin(e)
        return (
            middle[0] + radius * x,
            middle[1] - radius * (up * math.cos(tilt) - depth * math.sin(tilt)),
            depth * math.cos(tilt) + up * math.sin(tilt),
        )

    draw.text((575 * scale, 16 * scale), "Around the object", _INK, font)
    rings = [[at(a, e) for a in range(0, 361, 6)] for e in range(-60, 61, 30)]
    rings += [[at(a, e) for e in range(-90, 91, 6)] for a in range(0, 360, 45)]
    for ring in rings:
        for one, two in pairwise(ring):
            draw.line([one[:2], two[:2]], _FAINT if one[2] > 0 else "#eef1f0", round(scale))
    side = 16 * scale
    draw.rounded_rectangle([middle[0] - side, middle[1] - side, middle[0] + side, middle[1] + side], 5 * scale, _INK)
    points = [at(a, e) for a, e in zip(azimuths, elevations, strict=True)]
    for one, two in pairwise(points):
        draw.line([one[:2], two[:2]], _LINE if one[2] + two[2] > 0 else "#8fb9b7", round(2 * scale))
    _dots(draw, scale, [point[:2] for point in points])
    x, y, _ = points[-1]
    draw.text((x, y + 12 * scale), "input view", _LAST, font, anchor="ma", **_halo(scale))


def _halo(scale: float) -> dict[str, Any]:
    """So that a word can be read where lines cross it."""
    return {"stroke_width": round(3 * scale), "stroke_fill": "white"}


def _dots(draw: ImageDraw.ImageDraw, scale: float, points: Sequence[tuple[float, float]]) -> None:
    for i, (x, y) in enumerate(points):
        last = i == len(points) - 1
        size = (6 if last else 4) * scale
        draw.ellipse([x - size, y - size, x + size, y + size], _LAST if last else _LINE)
