"""Turntables: orbits as seamless loops, and plots of the camera's path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from sgm.errors import UserError
from sgm.media.export import gif, webp
from sgm.media.video import write_video, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from mpl_toolkits.mplot3d import Axes3D
    from numpy.typing import ArrayLike


class _Palette(NamedTuple):
    paper: str
    ink: str
    grid: str
    hidden_grid: str  # on the far side of the globe
    orbit: str
    hidden_orbit: str
    input_view: str


_LIGHT = _Palette("#ffffff", "#1d2b2a", "#d5dbd9", "#eef1f0", "#0b6e6b", "#8fb9b7", "#c2500c")
_DARK = _Palette("#161716", "#e8eeed", "#3a4245", "#21272b", "#3cc4bb", "#1d5f5e", "#ff9a57")  # Streamlit's paper


def loop_order(elevations: Sequence[float], azimuths: Sequence[float]) -> list[int]:
    """Indices of the frames of one seamless loop: all frames if the orbit is closed, else forwards and backwards.

    elevations, azimuths: degrees, one for each frame.
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
    settings: dict[str, Any] | None = None,
) -> Path:
    """Write `frames` (T, H, W, 3), uint8, in `loop_order`: .webp and .gif repeat for ever, .mp4 has `turns` loops.

    settings: the clip's recipe, as for `write_video`.
    The file appears only when it is complete. Raises UserError for another suffix or a path that cannot be written.
    """
    path = Path(path)
    order, suffix = loop_order(elevations, azimuths), path.suffix.lower()
    if suffix == ".mp4":
        return write_video(path, frames[order * turns], fps, settings)
    encode = {".webp": webp, ".gif": gif}.get(suffix)
    if encode is None:
        raise UserError(f"The turntable's name is {path.name!r}, but must end in .webp, .gif or .mp4.")
    content = encode(frames[order], fps, settings)
    write_whole(path, lambda temporary: temporary.write_bytes(content))
    return path


def draw_orbit(
    elevations: Sequence[float], azimuths: Sequence[float], width: int = 960, dark: bool = False
) -> Image.Image:
    """A picture, `width` x 0.45 `width`: elevation over azimuth, and the camera's path around the object in 3D.

    elevations (-90 to 90) and azimuths (0 to 360): degrees, one for each frame. The last one, the input view, is
    highlighted and in front. dark: light on dark. Thread-safe.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here, since it takes a second
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d import Axes3D

    colours, height = _DARK if dark else _LIGHT, round(0.45 * width)
    # Without pyplot, which keeps figures in global state. + 0.01, since sizes in pixels are rounded down.
    figure = Figure((9.6, 9.6 * height / width), dpi=(width + 0.01) / 9.6, facecolor=colours.paper)
    canvas = FigureCanvasAgg(figure)
    _draw_chart(figure.add_axes((0.09, 0.15, 0.43, 0.69)), elevations, azimuths, colours)
    globe = Axes3D(figure, (0.57, 0.0, 0.43, 0.89))
    figure.add_axes(globe)
    _draw_globe(globe, elevations, azimuths, colours)
    for x, title in ((0.02, "Elevation over azimuth"), (0.58, "Around the object")):
        figure.text(x, 0.91, title, color=colours.ink, size=14)
    figure.text(0.98, 0.91, "● input view", color=colours.input_view, size=14, ha="right")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _draw_chart(axes: Axes, elevations: Sequence[float], azimuths: Sequence[float], colours: _Palette) -> None:
    axes.set(xlim=(0, 360), xticks=range(0, 361, 90), facecolor="none", axisbelow=True)
    axes.set_ylim(max(min(elevations) - 10, -92), min(max(elevations) + 10, 92))
    axes.xaxis.set_major_formatter("{x:.0f}°")
    axes.yaxis.set_major_formatter("{x:.0f}°")
    axes.locator_params(axis="y", nbins=6, steps=[1, 2, 5, 10], integer=True)
    axes.tick_params(length=0, pad=8, labelsize=13, labelcolor=colours.ink)
    axes.grid(color=colours.grid)
    axes.spines[:].set_visible(False)
    axes.plot(azimuths, elevations, "o-", color=colours.orbit, lw=2, clip_on=False)
    axes.plot(azimuths[-1:], elevations[-1:], "o", color=colours.input_view, ms=10, clip_on=False)


def _draw_globe(axes: Axes3D, elevations: Sequence[float], azimuths: Sequence[float], colours: _Palette) -> None:
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    def on_sphere(elevation: ArrayLike, azimuth: ArrayLike) -> np.ndarray:
        """(n,) and (n,) degrees -> (n, 3). x is towards the input view, z up."""
        e, a = np.broadcast_arrays(np.radians(elevation), np.radians(azimuth))
        return np.stack([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)], axis=-1)

    def draw(points: np.ndarray, colour: str, hidden: str, width: float) -> None:
        lines = np.stack([points[:-1], points[1:]], axis=1)
        colour_of_each = np.where(lines.mean(axis=1) @ viewer > 0, colour, hidden)
        axes.add_collection3d(Line3DCollection(lines, colors=colour_of_each, linewidths=width))

    tilt = 22
    viewer = on_sphere(tilt, 0)
    axes.view_init(elev=tilt, azim=0)
    axes.set_proj_type("ortho")
    axes.set_box_aspect((1, 1, 1))
    axes.set(xlim=(-0.7, 0.7), ylim=(-0.7, 0.7), zlim=(-0.7, 0.7), facecolor="none")  # less than the globe: fills more
    axes.set_axis_off()
    axes.computed_zorder = False  # in the order of drawing
    for elevation in range(-60, 61, 30):
        draw(on_sphere(elevation, np.arange(0, 361, 6)), colours.grid, colours.hidden_grid, 0.8)
    for azimuth in range(0, 360, 45):
        draw(on_sphere(np.arange(-90, 91, 6), azimuth), colours.grid, colours.hidden_grid, 0.8)
    axes.plot([0], [0], [0], "s", color=colours.ink, ms=18)  # the object
    points = on_sphere(elevations, np.subtract(azimuths, azimuths[-1]))
    if len(points) > 1:
        draw(points, colours.orbit, colours.hidden_orbit, 2)
    axes.plot(*points[:-1].T, "o", color=colours.orbit)
    axes.plot(*points[-1:].T, "o", color=colours.input_view, ms=10)
