"""Views of a clip: made with all models that this takes, one after the other, and joined as a grid and as a walk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sgm.engine import DiffusionEngine
from sgm.media.grid import ClipGrid
from sgm.media.video import encode_frames
from sgm.pipeline import Clip, generate, generate_views
from sgm.recipe import MARK, hash_of_frames
from sgm.request import VideoRequest, ViewsRequest
from sgm.run import OnStep, Progress

if TYPE_CHECKING:
    from PIL import Image

_COLUMNS = 3  # of the grid
Load = Callable[[str, Callable[[float], None]], DiffusionEngine]  # (version, on_progress)


def make_views(
    request: ViewsRequest,
    clip: Sequence[Image.Image],
    load: Load,
    on_step: OnStep = lambda progress: None,
    check: Callable[[], None] = lambda: None,
    low_memory: bool = False,
) -> dict[str, Clip]:
    """All clips of a request, by name: "input", "view-1", …, then "grid", all of them in sync, and "walk".

    clip: as for `generate_views`. load(version, on_progress): gives an engine; where the views begin with an orbit, it
    is called twice, and must not keep the first engine with the second, since both may not fit. on_step: as there; its
    steps are `request.total_steps`, those of the orbit included. Raises as `load` and `generate_views` do.
    """
    if request.first:
        return _joined(request, _with_orbit(request, request.first, clip, load, on_step, check, low_memory))
    engine = _loaded(load, request.version, on_step)
    return _joined(request, generate_views(engine, request, clip, on_step, check, low_memory))


def _with_orbit(
    request: ViewsRequest,
    orbit: VideoRequest,
    clip: Sequence[Image.Image],
    load: Load,
    on_step: OnStep,
    check: Callable[[], None],
    low_memory: bool,
) -> list[Clip]:
    """The views of a version that begins with an orbit of the first frame, by another model."""
    before, total = orbit.steps, request.total_steps

    def first_step(progress: Progress) -> None:
        step = {"sample": progress.step, "decode": before}.get(progress.phase)
        on_step(progress if step is None else replace(progress, phase="sample", step=step, total=total))

    def later_step(progress: Progress) -> None:
        if progress.phase != "decode":  # else it is at its end
            step = progress.step if progress.phase == "sample" else 0
            progress = replace(progress, phase="sample", step=before + step, total=total)
        on_step(progress)

    engine = _loaded(load, orbit.version, on_step)
    first = generate(engine, orbit, clip[0], first_step, check, low_memory).frames
    del engine
    engine = _loaded(load, request.version, later_step)
    return generate_views(engine, request, clip, later_step, check, low_memory, first)


def _loaded(load: Load, version: str, on_step: OnStep) -> DiffusionEngine:
    return load(version, lambda share: on_step(Progress("load", int(100 * share), 100)))


def _joined(request: ViewsRequest, views: Sequence[Clip]) -> dict[str, Clip]:
    clips = {view.settings[MARK]["view"]: view for view in views}
    settings = views[-1].settings  # the first one's are those of the input, which no model made

    def marked(name: str, frames: np.ndarray) -> Clip:
        mark = {**settings[MARK], "frames": hash_of_frames(frames), "view": name}
        return Clip(frames, request.fps, {**settings, MARK: mark})

    elevations, azimuths = request.family.degrees(request)
    captions = ["input", *(f"{a:.0f}°, {e:.0f}°" for a, e in zip(azimuths[1:], elevations[1:], strict=True))]
    tiles = [encode_frames(view.frames, view.fps) for view in views]
    rows = [slice(start, start + _COLUMNS) for start in range(0, len(tiles), _COLUMNS)]
    grid = ClipGrid([tiles[row] for row in rows], captions=[captions[row] for row in rows])
    walk = np.stack([views[view].frames[time] for time, view in enumerate(request.family.walk(request))])
    return {**clips, "grid": marked("grid", np.stack(list(grid))), "walk": marked("walk", walk)}
