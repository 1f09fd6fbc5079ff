"""An orbit as a turntable that loops without a seam, and as a picture of where the camera goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sgm.errors import UserError
from sgm.media.export import gif, webp
from sgm.media.video import write_atomically, write_video


class _Palette(NamedTuple):
    paper: str
    ink: str
    faint: str  # lines of the grid; `fainter` behind the globe
    fainter: str
    line: str  # the orbit; `behind` the globe
    behind: str
    last: str  # the input view


_LIGHT = _Palette("#ffffff", "#1d2b2a", "#d5dbd9", "#eef1f0", "#0b6e6b", "#8fb9b7", "#c2500c")
_DARK = _Palette("#161716", "#e8eeed", "#3a4245", "#21272b", "#3cc4bb", "#1d5f5e", "#ff9a57")  # Streamlit's paper


def loop_order(elevations: Sequence[float], azimuths: Sequence[float]) -> list[int]:
    """Frame numbers of one round that loops without a seam: once through where the orbit closes, else there and back.

    The last frame is followed by the first, a step of the orbit away like all others.
    """
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

    The frames come in `loop_order`. The file appears only when it is complete. Raises UserError for another ending or a
    place that cannot be written.
    """
    path = Path(path)
    order, suffix = loop_order(elevations, azimuths), path.suffix.lower()
    if suffix == ".mp4":
        return write_video(path, frames[order * turns], fps)
    encode = {".webp": webp, ".gif": gif}.get(suffix)
    if encode is None:
        raise UserError(f"The turntable's name is {path.name!r}, but must end in .webp, .gif or .mp4.")
    content = encode(frames[order], fps)
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(content))
    return path


def draw_orbit(
    elevations: Sequence[float], azimuths: Sequence[float], width: int = 960, dark: bool = False
) -> Image.Image:
    """A picture, `width` x 0.45 `width`: elevation over azimuth, and the camera's way around the object in 3-D.

    Degrees. The last view, the input's, stands out. dark: light on dark.
    """
    scale = 2 * width / 960  # drawn at twice the size: Pillow's lines have no smooth edges
    palette = _DARK if dark else _LIGHT
    picture = Image.new("RGB", (2 * width, round(0.9 * width)), palette.paper)
    drawing = _Drawing(ImageDraw.Draw(picture), ImageFont.load_default(28 * scale), scale, palette)
    _chart(drawing, elevations, azimuths)
    _globe(drawing, elevations, azimuths)
    return picture.resize((width, round(0.45 * width)), Image.Resampling.LANCZOS)


class _Drawing(NamedTuple):
    draw: ImageDraw.ImageDraw
    font: Any
    scale: float
    palette: _Palette

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        self.draw.line(list(points), colour, round(width * self.scale), joint="curve")

    def text(self, x: float, y: float, text: str, anchor: str = "la", colour: str = "") -> None:
        """With a halo, so that a word can be read where lines cross it."""
        halo = {"stroke_width": round(3 * self.scale), "stroke_fill": self.palette.paper}
        self.draw.text((x, y), text, colour or self.palette.ink, self.font, anchor=anchor, **halo)

    def dots(self, points: Sequence[tuple[float, float]]) -> None:
        for i, (x, y) in enumerate(points):
            last = i == len(points) - 1
            size = (8 if last else 5) * self.scale
            self.draw.ellipse(
                [x - size, y - size, x + size, y + size], self.palette.last if last else self.palette.line
            )


def _chart(drawing: _Drawing, elevations: Sequence[float], azimuths: Sequence[float]) -> None:
    scale, palette = drawing.scale, drawing.palette
    left, top, right, bottom = (value * scale for value in (86, 70, 496, 366))
    low = max(-90, 10 * math.floor((min(elevations) - 5) / 10))
    high = min(90, max(10 * math.ceil((max(elevations) + 5) / 10), low + 20))

    def at(azimuth: float, elevation: float) -> tuple[float, float]:
        return left + (right - left) * azimuth / 360, bottom - (bottom - top) * (elevation - low) / (high - low)

    drawing.text(10 * scale, 14 * scale, "Elevation over azimuth")
    for azimuth in range(0, 361, 90):
        drawing.line([at(azimuth, low), at(azimuth, high)], palette.faint)
        x, y = at(azimuth, low)
        drawing.text(x, y + 10 * scale, f"{azimuth}°", "ma")
    for elevation in range(low, high + 1, max(10, 10 * round((high - low) / 50))):
        drawing.line([at(0, elevation), at(360, elevation)], palette.faint)
        x, y = at(0, elevation)
        drawing.text(x - 10 * scale, y, f"{elevation}°", "rm")
    points = [at(a, e) for a, e in zip(azimuths, elevations, strict=True)]
    drawing.line(points, palette.line, 2.5)
    drawing.dots(points)
    x, y = points[-1]
    near = [e for a, e in zip(azimuths, elevations, strict=True) if a > azimuths[-1] - 100]  # as wide as the word
    above = max(near) - near[-1] <= near[-1] - min(near)  # where less of the line is
    above = above or y > bottom - 40 * scale  # off the scale's own words
    drawing.text(x, y + (-14 if above else 14) * scale, "input view", "rs" if above else "ra", palette.last)


def _globe(drawing: _Drawing, elevations: Sequence[float], azimuths: Sequence[float]) -> None:
    scale, palette = drawing.scale, drawing.palette
    middle, radius, tilt = (752 * scale, 232 * scale), 156 * scale, math.radians(22)

    def at(azimuth: float, elevation: float) -> tuple[float, float, float]:
        """On the page, and how far towards the viewer. The input view is in front."""
        a, e = math.radians(azimuth), math.radians(elevation)
        x, depth, up = math.sin(a) * math.cos(e), math.cos(a) * math.cos(e), math.sin(e)
        return (
            middle[0] + radius * x,
            middle[1] - radius * (up * math.cos(tilt) - depth * math.sin(tilt)),
            depth * math.cos(tilt) + up * math.sin(tilt),
        )

    drawing.text(560 * scale, 14 * scale, "Around the object")
    rings = [[at(a, e) for a in range(0, 361, 6)] for e in range(-60, 61, 30)]
    rings += [[at(a, e) for e in range(-90, 91, 6)] for a in range(0, 360, 45)]
    for ring in rings:
        for one, two in pairwise(ring):
            drawing.line([one[:2], two[:2]], palette.faint if one[2] > 0 else palette.fainter)
    side = 16 * scale
    box = [middle[0] - side, middle[1] - side, middle[0] + side, middle[1] + side]
    drawing.draw.rounded_rectangle(box, 5 * scale, palette.ink)
    points = [at(a, e) for a, e in zip(azimuths, elevations, strict=True)]
    for one, two in pairwise(points):
        drawing.line([one[:2], two[:2]], palette.line if one[2] + two[2] > 0 else palette.behind, 2.5)
    drawing.dots([point[:2] for point in points])
    x, y, _ = points[-1]
    below = y < 380 * scale
    drawing.text(x, y + (16 if below else -16) * scale, "input view", "ma" if below else "ms", palette.last)
