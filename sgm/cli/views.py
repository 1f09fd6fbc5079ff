"""`sgm sample` of a clip: an object filmed from one side, to clips of the same motion from other sides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgm.amounts import duration
from sgm.cli.batch import BYTES_PER_PIXEL, plain_stem
from sgm.cli.console import echo_result, echo_stderr, progress_bar, show_step
from sgm.errors import UserError
from sgm.paths import check_writable, make_folder
from sgm.process import collect_and_freeze, reuse_freed_memory

if TYPE_CHECKING:
    from PIL import Image

    from sgm import Clip, ViewsRequest

_LONGEST_STEM = 200  # bytes of the clip's name that the folder's keeps


def clip_asked(request: ViewsRequest, source: Path | None, out: Path) -> Path:
    """The clip that is asked for. Raises UserError where there is none, or where `out` is no folder."""
    if source is None:
        raise UserError(f"{request.version} needs the clip itself: give it, as in sgm sample CLIP --recipe …")
    if out.suffix.lower() == ".mp4":
        raise UserError(f"--out {out} is one video, but {request.version} makes several: give a folder.")
    return source


def sample_views(request: ViewsRequest, source: Path, out: Path, watermark: bool, safety: str, *options: Any) -> None:
    """Make a clip's views, write all clips into a new folder in `out`, and print their paths.

    watermark: whether the files get the invisible one. safety: the filter, one of `sgm.safety.SAFETY`. options: as
    `ViewsWork`'s.
    """
    from sgm import filtered, write_video

    target = out / f"{plain_stem(source.stem, _LONGEST_STEM)}-{request.version}-{request.seed}"
    clips, (width, height) = 2 * (2 + request.model.num_views), request.size  # the grid counts as all the others
    check_writable(out, int(clips * request.frames * width * height * BYTES_PER_PIXEL))
    made = ViewsWork(request, source, *options).run()
    if warning := filtered(safety, None, made["walk"].frames):  # which shows all views
        echo_stderr(warning)
    folder = make_folder(target)
    with progress_bar() as show:
        for number, (name, clip) in enumerate(made.items(), start=1):
            show(f"save {name}", number / len(made))
            clip = clip if watermark else clip.unmarked()
            echo_result(write_video(folder / f"{name}.mp4", clip.frames, clip.fps, clip.settings))


class ViewsWork:
    """The views of one clip: what can be known before the work is checked when this is made.

    weights: checkpoint, base and LoRAs' files of the request's own version. load(version, **options): as `load_engine`.
    """

    def __init__(
        self,
        request: ViewsRequest,
        source: Path,
        background_model: str,
        low_memory: bool,
        weights: dict[str, Any],
        load: Callable[..., Any],
    ) -> None:
        from sgm import check_weights, open_clip, video_encoder

        self.request, self.low_memory, self._load = request, low_memory, load
        video_encoder()
        clip = open_clip(source, request.frames, echo_stderr)
        echo_stderr(clip.described(source.name, request.frames))
        unfilled = check_weights(request.version, **weights, lora=request.lora)
        self._options: dict[str, Any] = {**weights, "unfilled": unfilled}
        if request.first is not None:
            check_weights(request.first.version)
            echo_stderr(f"{request.first.version} makes the views of the first frame.")
        self.seen = self._prepared(clip.frames, background_model)

    def run(self) -> dict[str, Clip]:
        """All clips by their names: see `sgm.make_views`."""
        from sgm import make_views

        with progress_bar() as show, reuse_freed_memory():
            follow = partial(show_step, show, set[str]())
            return make_views(self.request, self.seen, self._loaded, follow, low_memory=self.low_memory)

    def _prepared(self, frames: list[Image.Image], background_model: str) -> list[Image.Image]:
        """The frames as the model sees them."""
        from sgm import cut_off_note

        notes: list[str] = []
        with progress_bar() as show:
            clip = self.request.family.prepare_clip(
                frames,
                self.request,
                background_model,
                lambda done, of: show(f"object {done}/{of}", done / of),
                lambda cut: notes.append(cut_off_note(cut)),
            )
        for note in filter(None, notes):
            echo_stderr(note)
        return clip

    def _loaded(self, version: str, on_progress: Callable[[float], None]) -> Any:
        import time

        collect_and_freeze()  # an engine before, which may not fit beside this one
        start = time.perf_counter()
        options = self._options if version == self.request.version else {}
        engine = self._load(version, on_progress=on_progress, **options)
        options.clear()
        if (seconds := time.perf_counter() - start) > 5:
            echo_stderr(f"The weights of {version} took {duration(seconds)} to load.")
        return engine
