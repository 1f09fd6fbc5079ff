"""Reading videos: the settings inside, and frames one by one, within bounds that hold before anything is decoded."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections import deque
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageSequence

from sgm import paths
from sgm.errors import UserError, printable
from sgm.media.hdr import HDR, to_sdr
from sgm.media.image import on_white
from sgm.media.kinds import GIF, WEBP, kind_of

logger = logging.getLogger(__name__)

MAX_FRAME_PIXELS = 4096**2  # of the largest request
MAX_FRAMES = 800  # of the longest film, four clips of 200 frames
MAX_DECODED = 2 << 30  # bytes of RGB that are decoded at once, or to reach one frame
_SOON = 1e-4  # seconds by which time stamps are rounded
_USUAL_DELAY = 100  # milliseconds, of an animation's frame that names none
# Files of these kinds hold their pictures themselves. FFmpeg reads playlists, too, and opens what they name.
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi",
    "max_pixels": str(MAX_FRAME_PIXELS),
    "max_streams": "32",
}
# Before its version 19, PyAV raised an error for metadata that are not UTF-8 unless asked for this.
_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}


class Video:
    """An open video, of which no more is decoded than is asked for, and nothing kept.

    Iteration and indices give frames, uint8 RGB (H, W, 3), turned upright as phones ask, their colours converted by the
    matrix that the file names, BT.601 where it names none, and of high dynamic range (HLG, PQ) brought into the usual
    one. All raise UserError for a video that is damaged.
    """

    def __init__(self, container: InputContainer, name: str) -> None:
        self._container, self._name = container, name
        self._stream = container.streams.video[0]
        self._count: int | None = None
        self._moved = False  # whether packets have been read, so that the next ones are not the first
        self._cut_short = False  # as far as is known
        self._reformatter = VideoReformatter()  # one for all frames: each frame's own would start threads of its own
        self._turns: int | None = None  # quarters by which frames are turned, counter-clockwise
        _check_pixels(name, self._stream.width, self._stream.height)
        self._stream.codec_context.options = {"max_pixels": _OPTIONS["max_pixels"]}  # what is inside may be larger

    @property
    def fps(self) -> float:
        """Frames a second. Raises UserError for a number that no video has."""
        rate = float(self._stream.guessed_rate or 0)
        if not 0 < rate <= 1000:
            raise UserError(f"{self._name} says that it has {rate:g} frames a second: convert it to an ordinary mp4.")
        return rate

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of its frames, pixels, upright: the first one is decoded for that."""
        if self._turns is None:
            self._turns = 0  # of what cannot be decoded
            with contextlib.suppress(UserError):
                next(self.frames(), None)
        width, height = self._stream.width, self._stream.height
        return (height, width) if self._turns % 2 else (width, height)

    @property
    def rate(self) -> float:
        """Frames a second in the mean, by the time stamps; `fps` where these are missing."""
        return float(self._stream.average_rate or 0) or self.fps

    @property
    def is_hdr(self) -> bool:
        """Whether its range of brightness is high: HLG, as of phones, or PQ."""
        return self._stream.codec_context.color_trc in HDR

    @property
    def settings(self) -> dict[str, Any] | None:
        """The settings that `write_video` put into the file; None where there are none, or another's comment."""
        comment = self._container.metadata.get("comment", "null")
        try:  # what is not UTF-8, which PyAV gives as surrogates since its version 19, becomes U+FFFD
            settings = json.loads(comment.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
        return settings if isinstance(settings, dict) else None

    def __len__(self) -> int:
        """The number of frames that the file says it has; one that is cut short has fewer.

        Raises UserError for more than MAX_FRAMES.
        """
        if self._count is None:
            self._count = self.count(MAX_FRAMES + 1)
        check_count(self._name, self._count)
        return self._count

    def count(self, most: int) -> int:
        """The number of frames that the file says it has, else of coded ones in it, which are counted to `most`."""
        return self._stream.frames or self._packets(most)

    def __getitem__(self, index: int) -> np.ndarray:
        """One frame; negative indices count from the last one that there is, of at most as many as the file says.

        Raises UserError where the frame is missing, or cannot be reached within MAX_DECODED bytes.
        """
        if 0 <= -index - 1 < len(self):
            self.check_size(len(self))
            last = deque(islice(self, len(self)), -index)  # an edit list may hide frames that the file counts
            if len(last) == -index and not self._cut_short:
                return last[0]
        index = index if index >= 0 else len(self) + index
        self.check_size(index + 1)
        for number, pixels in enumerate(self):
            if number == index:
                return pixels
        raise UserError(f"{self._name} is cut short: its frame {index + 1} cannot be read. Fetch or save it again.")

    def check_size(self, frames: int) -> None:
        """Raise UserError where `frames` frames take more than MAX_DECODED bytes."""
        _check_bytes(self._name, frames, self._stream.width, self._stream.height)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.frames()

    def frames(self, size: tuple[int, int] | None = None, alpha: bool = False) -> Iterator[np.ndarray]:
        """All frames; of a file that is cut short, those before the cut, and a warning is logged.

        size: (width, height) to which they are scaled, in half the time of Pillow. alpha: with the transparency, RGBA,
        where `write_frames` wrote any.
        """
        return (pixels for _, pixels in self.timed(size=size, alpha=alpha))

    def timed(
        self, start: float | None = None, size: tuple[int, int] | None = None, alpha: bool = False
    ) -> Iterator[tuple[float, np.ndarray]]:
        """As `frames`, each with its time in seconds by the file's time stamps, the first frame's being about 0.

        start: seconds from which on they are wanted; no more is decoded before them than to the last key frame.
        """
        packets, shape, damage, numbers = 0, None, None, count()
        self._cut_short = False
        with _explained(self._name):
            if start or self._moved:
                at = round((start or 0) / (self._stream.time_base or 1)) + (self._stream.start_time or 0)
                self._container.seek(at, stream=self._stream) if start else self._container.seek(0)
            self._moved = True
            demuxed = self._container.demux(self._stream)
        while damage is None:
            try:
                with _explained(self._name):
                    packet = next(demuxed, None)
                    if packet is None:
                        break
                    packets += bool(packet.size)
                    decoded = packet.decode()
            except UserError as error:
                damage, decoded = error, []
                with contextlib.suppress(Exception):  # frames from before the damage, which the decoder holds back
                    decoded = self._stream.decode(None)
            for frame in decoded:
                time, number = self._time(frame), next(numbers)
                time = number / self.fps if time is None else time
                if start and time < start - _SOON:
                    continue
                with _explained(self._name):
                    pixels = self._upright(frame, size, alpha)
                if pixels.shape != (shape := shape or pixels.shape):
                    raise UserError(f"{self._name} changes its size within: convert it to an ordinary mp4.")
                yield time, pixels
        if shape is None and not start:
            raise damage or UserError(_unreadable(self._name, "damaged, or no picture in it"))
        self._cut_short = bool(damage) or (packets < self._stream.frames and not start)
        if self._cut_short:
            logger.warning("%s is cut short: only the frames before the cut are read.", self._name)

    def packets(self) -> Iterator[tuple[float | None, av.Packet]]:
        """The coded frames in the file's order, each with the time at which it is shown, None where it has none."""
        with _explained(self._name):
            if self._moved:
                self._container.seek(0)
            self._moved = True
            for packet in self._container.demux(self._stream):
                if packet.size:
                    yield self._time(packet), packet

    def copied_to(self, container: OutputContainer) -> av.VideoStream:
        """A stream of a new file, for packets of this one."""
        return container.add_stream_from_template(self._stream)

    @property
    def is_matroska(self) -> bool:
        """Whether its file is a Matroska or a WebM."""
        return "matroska" in self._container.format.name

    def _time(self, part: av.VideoFrame | av.Packet) -> float | None:
        """When a frame is shown, seconds; None where no time stamp says so."""
        if part.pts is None or not part.time_base:  # which is 0 instead of None since PyAV 19
            return None
        return float((part.pts - (self._stream.start_time or 0)) * part.time_base)

    def _upright(self, frame: av.VideoFrame, size: tuple[int, int] | None, alpha: bool) -> np.ndarray:
        """A frame's pixels. size, alpha: as of `frames`."""
        self._turns = round(frame.rotation / 90) % 4
        width, height = size or (frame.width, frame.height)
        if size and self._turns % 2:
            width, height = height, width
        kind: dict[str, Any] = {"format": "rgb24"}
        if alpha and frame.format.name == "bgra":
            kind["format"] = "rgba"
        if (width, height) != (frame.width, frame.height):
            how = "AREA" if width < frame.width else "BICUBIC"
            kind |= {"width": width, "height": height, "interpolation": how}
        if frame.color_trc in HDR:
            kind["format"] = "rgb48le"
        pixels = self._reformatter.reformat(frame, **kind).to_ndarray()
        if frame.color_trc in HDR:
            pixels = to_sdr(pixels, frame.color_trc)
        return np.ascontiguousarray(np.rot90(pixels, self._turns))

    def _packets(self, most: int) -> int:
        """The number of coded frames, counted to `most`."""
        count = 0
        with _explained(self._name):
            if self._moved:
                self._container.seek(0)
            self._moved = True
            for packet in self._container.demux(self._stream):
                count += bool(packet.size)
                if count >= most:
                    break
        return count


@contextlib.contextmanager
def open_video(source: str | Path | bytes, name: str | None = None) -> Iterator[Video]:
    """An open video. source: a path, or a file's content. name: the file's name in messages.

    Raises UserError for a file that is no video, is damaged, or has frames of more than MAX_FRAME_PIXELS.
    """
    name = printable(name or ("The file" if isinstance(source, bytes) else source))
    with contextlib.ExitStack() as stack:
        with _explained(name):
            file = stack.enter_context(
                io.BytesIO(source) if isinstance(source, bytes) else _regular(Path(source), name)
            )
            kind = kind_of(file)
            if kind.group == "picture":
                raise UserError(f"{name} is {kind.name} and holds no settings of ours: give a video, an mp4.")
            container = stack.enter_context(av.open(file, options=_OPTIONS, **_METADATA))
            video = Video(container, name)
        yield video


def read_settings(source: str | Path | bytes) -> dict[str, Any] | None:
    """The settings that `write_video` put into a file, None for a video without; UserError if it is no video.

    source: a path, or a file's content.
    """
    with open_video(source) as video:
        return video.settings


def is_animation(source: str | Path | bytes, name: str) -> bool:
    """Whether a file is an animated GIF or WebP, which `read_frames` reads and `open_video` does not, or a still one.

    source: a path, or a file's content. name: in messages. Raises UserError for a file that cannot be read.
    """
    with _explained(name), io.BytesIO(source) if isinstance(source, bytes) else _regular(Path(source), name) as file:
        return kind_of(file) in (GIF, WEBP)


def read_frames(source: str | Path | bytes) -> tuple[np.ndarray, float]:
    """All frames of a video, uint8 RGB (T, H, W, 3), and frames a second. Of a file that is cut short, those it has.

    An animated GIF or WebP is one, too, on white where it is transparent. Raises UserError if it is no video, or has
    more than MAX_FRAMES, or MAX_DECODED bytes of them.
    """
    frames: list[np.ndarray] = []
    name = "The file" if isinstance(source, bytes) else printable(source)
    with _explained(name), io.BytesIO(source) if isinstance(source, bytes) else _regular(Path(source), name) as file:
        if kind_of(file) in (GIF, WEBP):
            return _animation(file, name)
    with open_video(source) as video:
        video.check_size(len(video))
        for pixels in video:
            frames.append(pixels)
            video.check_size(len(frames))  # again: the file may hold more than it says
        return np.stack(frames), video.fps


def _animation(file: BinaryIO, name: str) -> tuple[np.ndarray, float]:
    """As `read_frames`, of a GIF or a WebP; the mean frame rate, as each frame has a duration of its own."""
    frames, milliseconds = [], 0.0
    for still in stills(file, name):
        frames.append(np.asarray(on_white(still.convert("RGBA" if still.has_transparency_data else "RGB"))))
        milliseconds += still.info.get("duration") or _USUAL_DELAY
    if len(frames) == 1:
        raise UserError(f"{name} is a picture of a single frame: give a video, an mp4, or an animation.")
    return np.stack(frames), 1000 * len(frames) / milliseconds


def stills(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """The frames of an open GIF or WebP, one by one, each to be used before the next. name: in messages.

    Raises UserError for a damaged one, and for more frames or bytes than can be read.
    """
    with _explained(name), Image.open(file, formats=("GIF", "WEBP")) as image:
        for number, still in enumerate(ImageSequence.Iterator(image), start=1):
            _check_pixels(name, *image.size)  # of each, since a damaged one may be larger
            check_count(name, number)
            _check_bytes(name, number, *image.size)
            still.load()  # here, where what is wrong with it is explained
            yield still


def _check_pixels(name: str, width: int, height: int) -> None:
    if width * height > MAX_FRAME_PIXELS:
        raise UserError(
            f"{name} has frames of {width}×{height} pixels, more than the {MAX_FRAME_PIXELS / 1e6:.1f} megapixels that "
            "can be read: scale it down first."
        )


def check_count(name: str, frames: int) -> None:
    """Raise UserError for more frames than MAX_FRAMES."""
    if frames > MAX_FRAMES:
        raise UserError(f"{name} has more frames than the {MAX_FRAMES} that can be read: cut it shorter.")


def _check_bytes(name: str, frames: int, width: int, height: int) -> None:
    if frames * width * height * 3 > MAX_DECODED:
        raise UserError(
            f"{name} has frames of {width}×{height} pixels, and {frames} of them are more than the "
            f"{MAX_DECODED >> 30} GB that can be read at once: cut it shorter or scale it down."
        )


def _regular(path: Path, name: str) -> BinaryIO:
    """An open file. Raises UserError for what would be waited for, OSError where it cannot be read."""
    if not paths.exists(path):
        raise UserError(f"{name} does not exist: check the name.")
    if not paths.is_file(path):
        raise UserError(f"{name} is a folder, a pipe or a device, not a video: give an mp4 file.")
    return path.open("rb")


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """What goes wrong inside comes as a UserError that names the file: FFmpeg's libraries raise anything."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # FFmpeg's errors borrow numbers of the system's: of a damaged file, "Operation not permitted".
        reason = None if isinstance(error, FFmpegError) else getattr(error, "strerror", None)
        reason = reason or "damaged, or no picture in it"
        raise UserError(_unreadable(name, reason)) from error


def _unreadable(name: str, reason: str) -> str:
    return f"{name} cannot be read as a video ({reason}): give an mp4 file."
