"""Writing videos: H.264 files that browsers play, with the settings that made them inside, and frames without loss.

PyAV itself writes H.264, since imageio hides its encoder's options and colour tags.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import av
import av.error
import imageio.v3 as iio
import numpy as np
from av.video.stream import VideoStream

from sgm.errors import UserError
from sgm.media.credentials import signed
from sgm.media.provenance import SOURCE_BOX
from sgm.media.watermark import embed_watermark, is_marked
from sgm.paths import replacing, writes_explained

# The numbers that H.264 and FFmpeg give them. The matrix is the one that tools which ignore the tags assume.
_BT601_MATRIX, _BT709_PRIMARIES, _BT709_CURVE, _LIMITED_RANGE = 6, 1, 1, 1

# The encoders that FFmpeg may have, the best first, with their options for a quality at which no loss is seen.
_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "16", "mbtree": "0"},  # the macroblock tree lets equal frames become unequal files
    "libopenh264": {},
    "h264_videotoolbox": {},
    "h264_nvenc": {"rc": "constqp", "qp": "18"},
    "h264_amf": {"rc": "cqp", "qp_i": "18", "qp_p": "18"},
    "h264_mf": {"rate_control": "quality", "quality": "90"},
}
_CLOCK = Fraction(1, 90000)  # seconds, the tick of time stamps that are kept
_BITS_PER_PIXEL = 0.5  # of the encoders that know no constant quality
_QUICK = {"preset": "veryfast"}  # half of the time, a fifth more bytes


class Frames(Protocol):
    """A clip's frames as they are written: an array, or what makes them one after the other, with an array's shape."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __iter__(self) -> Iterator[np.ndarray]: ...


def write_video(
    path: str | Path,
    frames: Frames,
    fps: float,
    settings: dict[str, Any] | None = None,
    quick: bool = False,
    watermark: bool | None = None,
) -> Path:
    """Write `frames` (T, H, W, 3), uint8 RGB, as an H.264 mp4 of exactly T frames at `fps` frames a second.

    H.264 in its widely playable form takes even sizes only: an odd side is made even by repeating its last row or
    column. `settings` (anything JSON can hold) go into the file's comment; `read_settings` gives them back. The parent
    folder is made. The file appears only when it is complete and replaces one of the same name. quick: in half of the
    time, for a fifth more bytes. watermark: whether frames get the invisible one; unless given, as a recipe in
    `settings` says. With a recipe, Content
    Credentials are added where the extra `c2pa` is installed; XMP says in each file that a model made it.
    Raises UserError if the name does not end in .mp4 or the place cannot be written, ValueError for bad frames or fps.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise UserError(f"The video's name is {path.name!r}, but must end in .mp4.")
    rate, comment = _checked(frames, fps, settings)
    watermark = is_marked(settings) if watermark is None else watermark

    def write(temporary: Path) -> None:
        _encode(str(temporary), frames, rate, comment, quick=quick, watermark=watermark)
        content = temporary.read_bytes()
        if (whole := signed(content, "video/mp4", settings)) != content:
            temporary.write_bytes(whole)

    write_whole(path, write)
    return path


def write_frames(path: str | Path, frames: np.ndarray, fps: float) -> Path:
    """Write `frames` (T, H, W, 3 or 4), uint8 RGB or RGBA, so that reading gives back the same: FFV1 in Matroska, .mkv.

    `read_frames` leaves out the transparency. About a quarter of the pixels' bytes. Otherwise as `write_video`.
    """
    path = Path(path)
    if path.suffix.lower() != ".mkv":
        raise UserError(f"The file's name is {path.name!r}, but must end in .mkv.")
    content = encode_frames(frames, fps)
    write_whole(path, lambda temporary: temporary.write_bytes(content))
    return path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written under a temporary name beside `path`, which it gets when it is complete.

    The parent folder is made. Raises UserError if the place cannot be written.
    """
    with writes_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            try:
                write(temporary)
            except av.error.FFmpegError as error:  # only some of which are OSErrors
                raise OSError(error.errno, error.strerror) from error


def encode_video(frames: Frames, fps: float, settings: dict[str, Any] | None = None) -> bytes:
    """What `write_video` writes, without a disk; the index stands last. Raises ValueError for bad frames or fps."""
    file = io.BytesIO()
    _encode(file, frames, *_checked(frames, fps, settings), watermark=is_marked(settings))
    return signed(file.getvalue(), "video/mp4", settings)


def encode_frames(frames: np.ndarray, fps: float) -> bytes:
    """What `write_frames` writes, without a disk. Raises ValueError for bad frames or fps."""
    rate, _ = _checked(frames, fps, None, channels=(3, 4))
    stored, given = ("bgra", "rgba") if frames.shape[3] == 4 else ("bgr0", "rgb24")
    file = io.BytesIO()  # to a file of Python's that cannot grow, PyAV would print tracebacks
    with iio.imopen(file, "w", plugin="pyav", extension=".mkv") as video:
        video.init_video_stream("ffv1", fps=float(rate), pixel_format=stored)
        for pixels in frames:
            video.write_frame(pixels, pixel_format=given)
    return file.getvalue()


def _checked(
    frames: Frames, fps: float, settings: dict[str, Any] | None, channels: tuple[int, ...] = (3,)
) -> tuple[Fraction, str | None]:
    """The rate, and the comment that holds the settings."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] not in channels or 0 in frames.shape:
        raise ValueError(f"Frames must be uint8 of shape (T, H, W, 3), not {frames.dtype} of shape {frames.shape}.")
    if not 0 < fps <= 1000:
        raise ValueError(f"fps is {fps}, but must be above 0 and at most 1000.")
    return Fraction(fps).limit_denominator(1001), None if settings is None else json.dumps(settings, allow_nan=False)


@cache
def video_encoder() -> str:
    """The name of the H.264 encoder that writes videos. Raises UserError where this FFmpeg has none that works.

    To be called before the work whose result is to be written.
    """
    for name in _ENCODERS:
        try:
            _encode(io.BytesIO(), np.zeros((1, 256, 256, 3), np.uint8), Fraction(1), None, name)
        except (ValueError, av.error.FFmpegError):  # it is not there, or what it runs on is not
            continue
        return name
    raise UserError(
        f"No video can be written: FFmpeg has no H.264 encoder that works here ({', '.join(_ENCODERS)}). Install PyAV "
        "with its own FFmpeg: python -m pip install --force-reinstall --only-binary av av"
    )


def _encode(
    file: str | BinaryIO,
    frames: Frames,
    rate: Fraction,
    comment: str | None,
    encoder: str = "",
    quick: bool = False,
    watermark: bool = False,
) -> None:
    encoder = encoder or video_encoder()
    # The clock of the whole file ticks a thousandth of a second unless told; then the last frame would come out short.
    options = {"movie_timescale": str(1000 * rate.numerator)}
    if isinstance(file, str):
        options["movflags"] = "+faststart"  # reads the file again, by its name
    with av.open(file, "w", format="mp4", options=options) as container:
        if comment is not None:
            container.metadata["comment"] = comment
        stream = container.add_stream(
            encoder, rate=rate, options=_ENCODERS[encoder] | (_QUICK if quick and encoder == "libx264" else {})
        )
        height, width = frames.shape[1:3]
        stream.height, stream.width = height + height % 2, width + width % 2
        if not _ENCODERS[encoder]:
            stream.bit_rate = round(_BITS_PER_PIXEL * width * height * rate)
        _tell_colours(stream)
        for number, pixels in enumerate(map(embed_watermark, frames) if watermark else frames):
            frame = _coloured(pixels)
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with open(file, "ab") if isinstance(file, str) else nullcontext(file) as whole:
        whole.seek(0, io.SEEK_END)
        whole.write(SOURCE_BOX)


def _tell_colours(stream: VideoStream) -> None:
    """Say in full how colours are written, since players guess differently when a file does not."""
    stream.pix_fmt = "yuv420p"
    codec = stream.codec_context
    codec.colorspace, codec.color_primaries, codec.color_trc = _BT601_MATRIX, _BT709_PRIMARIES, _BT709_CURVE
    codec.color_range = _LIMITED_RANGE


def _coloured(pixels: np.ndarray) -> av.VideoFrame:
    """A frame, uint8 RGB (h, w, 3), as `_tell_colours` says, its sides made even."""
    height, width = pixels.shape[:2]
    pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")


def encode_again(file: str, frames: Iterable[tuple[float, np.ndarray]], fps: float) -> None:
    """Write what a real video shows as an H.264 mp4 again: frames, uint8 RGB, at their times, seconds from the first.

    fps: about how many there are a second. The file says nothing of its origin, as `write_video`'s do.
    """
    encoder = video_encoder()
    with av.open(file, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream(encoder, rate=rate, options=_ENCODERS[encoder])
        stream.codec_context.time_base = _CLOCK
        _tell_colours(stream)
        first: float | None = None
        for time, pixels in frames:
            frame = _coloured(pixels)
            if first is None:
                first, stream.width, stream.height = time, frame.width, frame.height
                if not _ENCODERS[encoder]:
                    stream.bit_rate = round(_BITS_PER_PIXEL * frame.width * frame.height * rate)
            frame.pts, frame.time_base = round((time - first) / _CLOCK), _CLOCK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
