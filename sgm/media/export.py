"""Clips in other formats (GIF, WebP, PNG), and several clips joined into one."""

from __future__ import annotations

import io
import itertools
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import imageio.v3 as iio
import numpy as np

from sgm.media.colours import match_colours
from sgm.media.credentials import signed
from sgm.media.watermark import embed_watermark, is_marked

Settings = Mapping[str, Any] | None  # a recipe, which says whether frames are watermarked
JOIN = -3  # the frame from which a clip is extended: the very last ones have drifted furthest
_FASTEST_GIF = 50  # frames a second


def gif(frames: np.ndarray, fps: float, settings: Settings = None) -> bytes:
    """An endless animated GIF, with a palette a frame.

    GIF counts hundredths of a second and shows 50 fps at most; of more, every second frame is taken, or every third.
    """
    step = math.ceil(fps / _FASTEST_GIF)
    return signed(_animation(".gif", _drawn(frames[::step], settings), 1000 * step / fps), "image/gif", settings)


def webp(frames: np.ndarray, fps: float, settings: Settings = None) -> bytes:
    """An endless animated WebP."""
    return signed(_animation(".webp", _drawn(frames, settings), 1000 / fps, quality=85), "image/webp", settings)


def png_zip(frames: np.ndarray, fps: float, settings: Settings = None) -> bytes:
    """The frames as PNGs in a zip, 0001.png and on."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # PNG is compressed already
        for number, frame in enumerate(_drawn(frames, settings), 1):
            archive.writestr(f"{number:04}.png", signed(_png(frame), "image/png", settings))
    return file.getvalue()


def last_frame(frames: np.ndarray, fps: float, settings: Settings = None) -> bytes:
    """The last frame as a PNG."""
    return signed(_png(_drawn(frames[-1:], settings)[0]), "image/png", settings)


# Title -> (suffix, MIME type, writer). A writer takes uint8 (T, H, W, 3), frames a second, and the clip's recipe: with
# it, the file has the watermark, as it says, and Content Credentials.
EXPORTS: dict[str, tuple[str, str, Callable[..., bytes]]] = {
    "GIF": (".gif", "image/gif", gif),
    "WebP": (".webp", "image/webp", webp),
    "PNG frames (zip)": (".zip", "application/zip", png_zip),
    "Last frame (PNG)": ("-last.png", "image/png", last_frame),
}


def stitch(clips: Sequence[np.ndarray], aimed: Sequence[bool] = ()) -> np.ndarray:
    """Join clips (T, H, W, 3), each started from frame JOIN of the previous one, whose frames from JOIN on are dropped.

    A model draws what it starts from in slightly other colours: those of the dropped frames, and of as many at the next
    clip's start, which show the same, are matched, in all of that clip. aimed: of each clip, whether it ends at a
    picture; then the change fades, and leaves the end in that picture's colours. Raises ValueError where sizes differ.
    """
    if len({clip.shape[1:] for clip in clips}) != 1:
        raise ValueError(f"Clips of one size can be joined; got {[clip.shape for clip in clips]}.")
    joined = [clips[0]]
    for clip, fades in zip(clips[1:], itertools.chain(aimed[1:], itertools.repeat(False)), strict=False):
        dropped = joined[-1][JOIN:][: len(clip)]
        joined.append(match_colours(clip, clip[: len(dropped)], dropped, fades))
    return np.concatenate([*(clip[:JOIN] for clip in joined[:-1]), joined[-1]])


def _drawn(frames: np.ndarray, settings: Settings) -> np.ndarray:
    """The frames as they are encoded."""
    return np.stack([embed_watermark(frame) for frame in frames]) if is_marked(settings) else frames


def _animation(suffix: str, frames: np.ndarray, milliseconds: float, **options: int) -> bytes:
    # Whole durations that add up to the clip's own.
    tick = 10 if suffix == ".gif" else 1
    ends = [round(milliseconds * count / tick) * tick for count in range(len(frames) + 1)]
    durations = [end - start for start, end in itertools.pairwise(ends)]
    # save_all: imageio sets it for two frames and more, but Pillow needs it for a list of durations.
    options = {"save_all": True, "loop": 0, **options}
    return _encoded(frames, suffix, is_batch=True, duration=durations, **options)


def _png(frame: np.ndarray) -> bytes:
    return _encoded(frame, ".png")


def _encoded(pixels: np.ndarray, suffix: str, **options: Any) -> bytes:
    return iio.imwrite("<bytes>", pixels, extension=suffix, plugin="pillow", **options)
