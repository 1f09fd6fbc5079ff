"""Videos out: an H.264 file that browsers play, with the settings that made it inside."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from sgm.errors import UserError

# The numbers that H.264 and FFmpeg give them. The matrix is the one that tools which ignore the tags assume.
_BT601_MATRIX, _BT709_PRIMARIES, _BT709_CURVE, _LIMITED_RANGE = 6, 1, 1, 1


def write_video(path: str | Path, frames: np.ndarray, fps: float, settings: dict[str, Any] | None = None) -> Path:
    """Write `frames` (T, H, W, 3), uint8 RGB, as an H.264 mp4 of exactly T frames at `fps` frames a second.

    H.264 in its widely playable form takes even sizes only: an odd side is made even by repeating its last row or
    column. `settings` (anything JSON can hold) go into the file's comment; `read_settings` gives them back. The parent
    folder is made. The file appears only when it is complete and replaces one of the same name.
    Raises UserError if the name does not end in .mp4 or the place cannot be written, ValueError for bad frames or fps.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise UserError(f"The video's name is {path.name!r}, but must end in .mp4.")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"Frames must be uint8 of shape (T, H, W, 3), not {frames.dtype} of shape {frames.shape}.")
    if not 0 < fps <= 1000:
        raise ValueError(f"fps is {fps}, but must be above 0 and at most 1000.")
    comment = None if settings is None else json.dumps(settings, allow_nan=False)
    # An absolute name, lest FFmpeg take a colon in a folder's name for a protocol.
    temporary = path.absolute().with_name(f".{uuid.uuid4().hex}.mp4")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        _encode(temporary, frames, Fraction(fps).limit_denominator(1001), comment)
        os.replace(temporary, path)
    except (OSError, av.error.FFmpegError) as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} cannot be written ({reason}): make room there or choose another place.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """The settings that `write_video` put into the file, None for a video without; UserError if it is no video."""
    try:
        with av.open(str(Path(path).absolute())) as container:
            settings = json.loads(container.metadata.get("comment", "null"))
    except (OSError, av.error.FFmpegError) as error:
        raise UserError(f"{path} cannot be read as a video ({error.strerror}): give an mp4 file.") from error
    except (ValueError, RecursionError):  # somebody else's comment
        return None
    return settings if isinstance(settings, dict) else None


def _encode(path: Path, frames: np.ndarray, rate: Fraction, comment: str | None) -> None:
    # The clock of the whole file ticks a thousandth of a second unless told; then the last frame would come out short.
    options = {"movflags": "+faststart", "movie_timescale": str(1000 * rate.numerator)}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        if comment is not None:
            container.metadata["comment"] = comment
        # x264's macroblock tree, on by default, lets equal frames become unequal files.
        stream = container.add_stream("libx264", rate=rate, options={"crf": "16", "mbtree": "0"})
        height, width = frames.shape[1:3]
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        # Said in full, since players guess differently when a file does not.
        codec = stream.codec_context
        codec.colorspace, codec.color_primaries, codec.color_trc = _BT601_MATRIX, _BT709_PRIMARIES, _BT709_CURVE
        codec.color_range = _LIMITED_RANGE
        for number, pixels in enumerate(frames):
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
