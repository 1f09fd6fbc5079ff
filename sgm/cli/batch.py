"""Videos of one picture or many, with one request: names and places before the work, and one failure never the end."""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from sgm.cli.console import echo_result, echo_stderr, progress_bar, show_step
from sgm.cli.ends import tell_loop
from sgm.cli.made import made_at
from sgm.errors import UserError
from sgm.paths import check_writable, exists, numbered, write_new
from sgm.process import reuse_freed_memory

if TYPE_CHECKING:
    from PIL import Image

    from sgm import Clip, Smoothing, VideoRequest

    Source = tuple[str, Path | Image.Image]  # the name that the video gets, in folders like "hills/lake"; the picture

_LONGEST_NAME = 255  # bytes, of most file systems
_LONGEST_STEM = 200  # bytes of a picture's name that its video's name keeps
_ROOM = len("-turntable-9999.webp")  # bytes for what may follow the stem
BYTES_PER_PIXEL = 0.15  # of a usual video


def plain_stem(stem: str, limit: int) -> str:
    """A name for a file after a picture's: at most `limit` bytes, without control characters."""
    return "".join(char if char.isprintable() else "_" for char in stem).encode()[:limit].decode(errors="ignore")


def tell_failure(error: Exception, name: str, alone: bool = False) -> None:
    """Print why a clip was not made; raise the error where no other can be made, or where it is the only one."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    if full or (alone and not isinstance(error, UserError)):
        raise error
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    echo_stderr(f"Error: {message if name in message else f'{name}: {message}'}")


class Batch:
    """Videos of several pictures, with one request. The model is loaded once, before the first video."""

    def __init__(
        self,
        request: VideoRequest,
        out: Path,
        to_file: bool,
        background_model: str,
        turntable: bool,
        low_memory: bool,
        settings: dict[str, Any] | None,
        smoothing: Smoothing,
        last: Image.Image | None = None,
        watermark: bool = True,
        safety: str = "off",
    ) -> None:
        self.request, self.out, self.to_file = request, out, to_file
        self.background_model, self.turntable, self.low_memory = background_model, turntable, low_memory
        self.settings, self.smoothing, self.last = settings, smoothing, last
        self.watermark, self.safety = watermark, safety
        self.notes: set[str] = set()

    def check_places(self, sources: list[Source]) -> None:
        """Raise UserError where the videos cannot be written: the place, its free space, the names."""
        height, width = self.request.size
        size = len(sources) * self.smoothing.length(self.request.frames) * height * width * BYTES_PER_PIXEL
        check_writable(self.out.parent if self.to_file else self.out, int(size))
        for stem, _ in sources:
            target = self._target(stem)
            exists(target)
            if len(target.stem.encode(errors="surrogateescape")) > _LONGEST_NAME - _ROOM:
                raise UserError(
                    f"The name {target.name} is too long: give one of at most {_LONGEST_NAME - _ROOM} bytes."
                )

    def left(self, sources: list[Source], weights: str = "") -> list[Source]:
        """The sources of which no video is there yet; how many are there is said.

        One is there if a video of the name, or of one with -2, -3, ... at its end, is whole and has the recipe of this
        request with the picture as the model sees it. weights: the name of those that are asked for; "" for any.
        """
        from sgm.recipe import made_by

        def is_there(stem: str, source: Path | Image.Image) -> bool:
            for path in itertools.takewhile(exists, numbered(self._target(stem))):
                recipe, whole = made_at(path, self.request, self.smoothing, partial(self._shown, source))
                if whole and (not weights or made_by(recipe or {})["weights"].get("name") == weights):
                    return True
            return False

        left = []
        with progress_bar() as show:
            for number, source in enumerate(sources):
                show(f"look {number}/{len(sources)}", number / len(sources))
                left += [] if is_there(*source) else [source]
        if there := len(sources) - len(left):
            echo_stderr(f"{there} of {len(sources)} videos {'is' if there == 1 else 'are'} there already.")
        return left

    def _shown(self, source: Path | Image.Image) -> dict[str, Image.Image]:
        """The pictures of a video as the model sees them, by their names in recipes. Raises PictureError."""
        from sgm import open_picture

        keep = self.request.fit == "object"
        found = {"picture": open_picture(source, keep_alpha=keep) if isinstance(source, Path) else source}
        if self.last:
            found["last"] = self.last
        prepare = partial(self.request.family.prepare, request=self.request, background_model=self.background_model)
        return {name: prepare(image).frame() for name, image in found.items()}

    def run(self, sources: list[Source], load: Callable[..., Any]) -> Iterator[bool]:
        """Make the videos; yields for each whether it was made. load: gives the engine; its errors end the batch.

        Raises UserError where the disk is full.
        """
        from sgm import generate

        engine = None
        for stem, source in sources:
            name = source.name if isinstance(source, Path) else stem
            try:
                image, shown = self.open(source, name)
            except Exception as error:
                tell_failure(error, name, alone=len(sources) == 1)
                yield False
                continue
            with progress_bar() as show:
                if engine is None:
                    start = time.perf_counter()
                    engine = load(on_progress=partial(show, "load"))
                    if (seconds := time.perf_counter() - start) > 5:
                        echo_stderr(f"The weights took {seconds:.0f} s to load.")
                try:
                    with reuse_freed_memory():
                        follow = partial(show_step, show, self.notes)
                        clip = generate(engine, self.request, image, follow, low_memory=self.low_memory, last=self.last)
                    self.write(clip, shown, stem, show)
                except Exception as error:
                    tell_failure(error, name, alone=len(sources) == 1)
                    yield False
                    continue
            yield True

    def _target(self, stem: str) -> Path:
        """The name of a picture's video, unless it is taken: of a bounded length, without control characters."""
        if self.to_file:
            return self.out
        tail = f"-{self.request.version}-{self.request.seed}"
        folder, name = self.out / PurePath(stem).parent, PurePath(stem).name
        return folder / f"{plain_stem(name, min(_LONGEST_STEM, _LONGEST_NAME - _ROOM - len(tail)))}{tail}.mp4"

    def open(self, source: Path | Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
        """Open a picture and print how it is fitted. For a fit of "object", also remove its background.

        -> the picture, and for such a fit what the model is shown of it. Raises Withheld as the filter says.
        """
        from sgm import describe_fit, filtered, open_picture

        request, cut = self.request, self.request.fit == "object"
        image = open_picture(source, keep_alpha=cut) if isinstance(source, Path) else source
        tell_loop(request, image, self.last, name)
        if warning := filtered(self.safety, image, None):
            echo_stderr(f"{name}: {warning}")
        if not cut:
            echo_stderr(f"{name}: {describe_fit(image.size, *request.size, request.fit)}")
            return image, None
        echo_stderr(f"{name}: looking for the object")
        picture = request.family.prepare(image, request, self.background_model)
        return picture.image, picture.frame()

    def write(
        self,
        clip: Clip,
        shown: Image.Image | None,
        stem: str,
        show: Callable[..., None] = lambda phase, share: None,
    ) -> None:
        """Write a video and what belongs beside it, and print its path. shown, stem: of its picture, see `open`."""
        from sgm import differences, filtered, write_video

        for sentence in differences(self.settings or {}, clip.settings):
            echo_stderr(sentence)
        if warning := filtered(self.safety, None, clip.frames):
            echo_stderr(f"{stem}: {warning}")
        clip = clip if self.watermark else clip.unmarked()
        frames, fps, settings = self.smoothing.apply(
            clip.frames, clip.fps, clip.settings, lambda done, of: show(f"smooth {done}/{of}", done / of)
        )
        written = write_new(self._target(stem), partial(write_video, frames=frames, fps=fps, settings=settings))
        echo_result(written)
        if shown is not None:
            beside = write_new(written.with_name(f"{written.stem}-input.png"), shown.save)
            echo_stderr(f"The object as the model saw it: {beside}")
        if self.turntable:
            self._write_turntable(clip, written)

    def _write_turntable(self, clip: Clip, written: Path) -> None:
        from sgm import orbit_of, write_turntable

        elevations, azimuths = orbit_of(self.request)
        of_clip = {"frames": clip.frames, "fps": clip.fps, "elevations": elevations, "azimuths": azimuths}
        of_clip["settings"] = clip.settings
        loop = write_new(written.with_name(f"{written.stem}-turntable.webp"), partial(write_turntable, **of_clip))
        echo_stderr(f"Turntable: {loop}")
