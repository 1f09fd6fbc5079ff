"""What a request will do, as curves, known before anything is computed; how clips move, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle
from typing import TYPE_CHECKING

from sgm.diffusion.discretization import SCHEDULES
from sgm.errors import UserError
from sgm.request import VideoRequest

if TYPE_CHECKING:
    from PIL import Image

_COLOURS = ("#0b6e6b", "#c2500c", "#6a4fb3", "#b03a63", "#56657a")
_DASHES = ("-", "--", ":", "-.")
_MOST_NAMED = 20  # lines in a legend


def curves(request: VideoRequest) -> tuple[list[float], list[float]]:
    """The sigma of each step and the guidance scale of each frame, for plots."""
    scales = request.build_guider().scales().expand(request.frames)
    return request.build_schedule()(request.steps, do_append_zero=False).tolist(), scales.tolist()


def guidance_curve(request: VideoRequest) -> list[float]:
    """The largest guidance scale of a frame at each step: 1 at noise levels at which the guider does not guide."""
    guider = request.build_guider()
    largest = float(guider.scales().max())
    return [largest if guider.guides(sigma) else 1.0 for sigma in curves(request)[0]]


def schedule_curves(request: VideoRequest) -> dict[str, list[float]]:
    """Schedule -> the sigma of each of the request's steps along it, the request's own first.

    Schedules that do not have so many steps are left out, and so is a list that nobody has chosen.
    """
    named = {request.schedule: curves(request)[0]}
    for name in SCHEDULES:
        with suppress(UserError):
            if name not in (*named, "custom"):
                named[name] = curves(request.replace(schedule=name, steps=request.steps))[0]
    return named


def draw_motion(lines: Sequence[tuple[str, Sequence[float], Sequence[float]]], width: int = 960) -> Image.Image:
    """A picture, `width` x 0.5 `width`, of motion buckets over the seconds of clips, and the mean of each.

    lines: name, seconds and buckets, of each frame but the first. Thread-safe.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here, since it takes a second
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure((9.6, 4.8), dpi=(width + 0.01) / 9.6, facecolor="white", layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    styles = [(colour, dash) for dash in _DASHES for colour in _COLOURS]
    for (name, seconds, buckets), (colour, dash) in zip(lines, cycle(styles), strict=False):
        mean = float(np.mean(buckets))
        label = f"{name[-40:]}: {mean:.0f}".replace("$", r"\$").lstrip("_")
        axes.plot(seconds, buckets, dash, color=colour, lw=2, label=label, marker="o" if len(buckets) == 1 else "")
        axes.axhline(mean, color=colour, lw=0.8, alpha=0.5)
    axes.set(xlabel="seconds", ylabel="motion bucket", xlim=(0, None), ylim=(0, None))
    axes.grid(color="#d5dbd9")
    axes.spines[:].set_visible(False)
    if len(lines) <= _MOST_NAMED:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
