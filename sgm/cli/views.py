"""`sgm sample` of a clip: an object filmed from one side, to clips of the same motion from other sides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgm.cli.batch import BYTES_PER_PIXEL, plain_stem
from sgm.cli.console import duration, echo_result, echo_stderr, progress_bar, show_step
from sgm.errors import UserError
from sgm.paths import check_writable, make_folder
from sgm.process import collect_and_freeze, reuse_freed_memory

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from sgm import Clip, ViewsRequest

_LONGEST_STEM = 200  # bytes of the clip's name that the folder's keeps
_COLUMNS = 3  # of the grid


def clip_asked(request: ViewsRequest, source: Path | None, out: Path) -> Path:
    """The clip that is asked for. Raises UserError where there is none, or where `out` is no folder."""
    if source is None:
        raise UserError(f"{request.version} needs the clip itself: give it, as in sgm sample CLIP --recipe …")
    if out.suffix.lower() == ".mp4":
        raise UserError(f"--out {out} is one video, but {request.version} makes several: give a folder.")
    return source


class ViewsWork:
    """The views of one clip: what can be known before the work is checked when this is made.

    weights: checkpoint, base and LoRAs' files of the request's own version. load(version, **options): as `load_engine`.
    """

    def __init__(
        self,
        request: ViewsRequest,
        source: Path,
        out: Path,
        background_model: str,
        low_memory: bool,
        weights: dict[str, Any],
        load: Callable[..., Any],
        watermark: bool = True,
        safety: str = "off",
    ) -> None:
        from sgm import check_weights, open_clip, video_encoder

        self.request, self.background_model, self.low_memory = request, background_model, low_memory
        self.weights, self.load, self.watermark, self.safety = weights, load, watermark, safety
        self.target = out / f"{plain_stem(source.stem, _LONGEST_STEM)}-{request.version}-{request.seed}"
        views, (width, height) = 2 * (1 + request.model.num_views), request.size  # the grid counts as much again
        check_writable(out, int(views * request.frames * width * height * BYTES_PER_PIXEL))
        video_encoder()
        clip = open_clip(source, request.frames, echo_stderr)
        echo_stderr(clip.described(source.name, request.frames))
        self.frames, self.notes = clip.frames, set[str]()
        self.unfilled: Any = check_weights(request.version, **weights, lora=request.lora)
        if request.first is not None:
            check_weights(request.first.version)

    def run(self) -> None:
        """Make the views, write them and a grid of all into a new folder, and print their paths."""
        from sgm import generate_views

        clip = self._prepared()
        first = self._first(clip[0])
        with progress_bar() as show:
            engine = self._loaded(show, self.request.version, **self.weights, unfilled=self.unfilled)
            self.unfilled = None
            with reuse_freed_memory():
                follow = partial(show_step, show, self.notes)
                clips = generate_views(engine, self.request, clip, follow, low_memory=self.low_memory, first=first)
        self._write(clips)

    def _prepared(self) -> list[Image.Image]:
        """The frames as the model sees them."""
        from sgm import frames_cut_off

        def on_frame(done: int, of: int) -> None:
            show(f"object {done}/{of}", done / of)

        cut_off: list[int] = []
        with progress_bar() as show:
            clip = self.request.family.prepare_clip(
                self.frames,
                self.request,
                self.background_model,
                on_frame,
                lambda cut: cut_off.extend(frames_cut_off(cut)),
            )
        if cut_off:
            numbers = ", ".join(map(str, cut_off[:8])) + (" …" if len(cut_off) > 8 else "")
            echo_stderr(f"The object reaches the picture's edge in frame {numbers}: what lies beyond it is missing.")
        return clip

    def _first(self, picture: Image.Image) -> np.ndarray | None:
        """The orbit around the object in the first frame, for versions that begin with it; its model is unloaded."""
        from sgm import generate

        request = self.request.first
        if request is None:
            return None
        echo_stderr(f"{request.version} makes the views of the first frame.")
        with progress_bar() as show, reuse_freed_memory():
            engine = self._loaded(show, request.version)
            follow = partial(show_step, show, self.notes)
            frames = generate(engine, request, picture, follow, low_memory=self.low_memory).frames
        del engine  # both models at once may not fit
        collect_and_freeze()
        return frames

    def _loaded(self, show: Callable[..., None], version: str, **options: Any) -> Any:
        import time

        start = time.perf_counter()
        engine = self.load(version, on_progress=partial(show, "load"), **options)
        if (seconds := time.perf_counter() - start) > 5:
            echo_stderr(f"The weights of {version} took {duration(seconds)} to load.")
        return engine

    def _write(self, clips: list[Clip]) -> None:
        import numpy as np

        from sgm import ClipGrid, filtered, write_video

        frames = np.concatenate([clip.frames for clip in clips])
        if warning := filtered(self.safety, None, frames):
            echo_stderr(warning)
        folder = make_folder(self.target)
        elevations, azimuths = self.request.family.degrees(self.request)
        paths, captions = [], []
        for number, clip in enumerate(clips):
            path = folder / (f"view-{number}.mp4" if number else "input.mp4")
            clip = clip if self.watermark else clip.unmarked()
            paths.append(write_video(path, clip.frames, clip.fps, clip.settings))
            captions.append(f"{azimuths[number]:.0f}°, {elevations[number]:.0f}°" if number else "input")
            echo_result(path)
        rows = [slice(start, start + _COLUMNS) for start in range(0, len(clips), _COLUMNS)]
        with progress_bar() as show:
            drawn = lambda done, of: show("grid", done / of)  # noqa: E731
            grid = ClipGrid([paths[row] for row in rows], captions=[captions[row] for row in rows], on_frame=drawn)
            echo_result(write_video(folder / "grid.mp4", grid, grid.fps, quick=True, watermark=self.watermark))
