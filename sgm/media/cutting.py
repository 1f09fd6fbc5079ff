"""Cutting videos: coded frames are copied where key frames allow; others are decoded and encoded again."""

from __future__ import annotations

import errno
from itertools import chain, islice, takewhile
from pathlib import Path

import av

from sgm.errors import UserError
from sgm.media.reading import Video, open_video
from sgm.media.video import encode_again, write_whole

_SOON = 1e-3  # seconds by which time stamps are rounded


def write_piece(source: Path, start: float, end: float, path: Path) -> tuple[Path, bool]:
    """Write what a video shows from `start` up to `end`, seconds, as a video of its own, without sound.

    path: a name to which the ending is added. -> the file, and whether its coded frames are the source's, bit for bit:
    so it is where the piece begins with a key frame, and none of its frames needs one outside. Else they are H.264 of a
    quality at which no loss is seen, at the times that they had. Raises UserError where the source cannot be read, or
    the place not be written.
    """
    with open_video(source) as video:
        if (chosen := _own_packets(video, start, end)) is not None:
            name = path.with_name(path.name + (".mkv" if video.is_matroska else ".mp4"))
            try:
                write_whole(name, lambda temporary: _copy(video, *chosen, temporary))
                return name, True
            except UserError as error:  # such as a codec that has no place in an mp4
                if getattr(error.__cause__, "errno", None) == errno.ENOSPC:
                    raise
        frames = takewhile(lambda pair: pair[0] < end - _SOON, video.timed(max(start - _SOON, 0)))
        if (first := next(frames, None)) is None:
            raise UserError(f"{source} shows no frame from {start:g} to {end:g} seconds: choose another part of it.")
        frames = chain([first], frames)
        name = path.with_name(path.name + ".mp4")
        write_whole(name, lambda temporary: encode_again(str(temporary), frames, video.rate))
        return name, False


def _own_packets(video: Video, start: float, end: float) -> tuple[int, int] | None:
    """The range of the coded frames that show a piece; None where it cannot be decoded by itself."""
    inside, keys = [], []
    for number, (time, packet) in enumerate(video.packets()):
        if time is None:
            return None
        if start - _SOON < time < end - _SOON:
            inside.append(number)
            keys.append(packet.is_keyframe and abs(time - start) < _SOON)
    if not inside or not keys[0] or inside[-1] - inside[0] + 1 != len(inside):
        return None
    return inside[0], inside[-1] + 1


def _copy(video: Video, first: int, last: int, path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = video.copied_to(container)
        shift: int | None = None
        for _, packet in islice(video.packets(), first, last):
            shift = packet.pts if shift is None else shift
            packet.pts = (packet.pts or 0) - (shift or 0)
            if packet.dts is not None:
                packet.dts -= shift or 0
            packet.stream = stream
            container.mux(packet)
