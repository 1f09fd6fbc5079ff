"""What stands in a picture's file beside its pixels, looked at before it is decoded: PNG chunks, scans, TIFF tags."""

from __future__ import annotations

import contextlib
import re
import struct
import warnings
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

from PIL.TiffImagePlugin import ImageFileDirectory_v2

MAX_PROFILE = 16 << 20  # bytes of a PNG's colour profile, unpacked; of printers they have up to 4 MB
_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that bear on the pixels. Pillow refuses a picture for a text that is too long, which browsers do not read.
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf"}
# Markers of a JPEG's segments, without those that stand within a scan or have no length.
_MARKER, _SCAN, _END = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]"), 0xDA, 0xD9
_TAGS = _SUBFILE, _COLOURS, _SUB_DIRECTORIES, _SAMPLE_FORMAT, _DNG_VERSION = 254, 262, 330, 339, 50706
_FILTER_ARRAY, _LINEAR_RAW = 32803, 34892  # colours that only cameras' raw pictures have
_FLOATS = 3


def png_pixels(data: bytes) -> tuple[bytes, bytes | None]:
    """A PNG without texts, further frames and colour profile, and the profile; other content as it is, and None."""
    if not data.startswith(_PNG):
        return data, None
    kept: list[bytes | memoryview] = [_PNG]
    profile, at, view = None, len(_PNG), memoryview(data)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind in _PNG_CHUNKS:
            kept.append(view[at:end])
        elif kind == b"iCCP" and profile is None:
            profile = _unpacked(data[at + 8 : end - 4].partition(b"\0")[2][1:])
        at = end
    return b"".join(kept), profile


def _unpacked(content: bytes) -> bytes | None:
    """Zlib's content, None where it is damaged or larger than MAX_PROFILE."""
    stream = zlib.decompressobj()
    with contextlib.suppress(zlib.error):
        unpacked = stream.decompress(content, MAX_PROFILE)
        return unpacked if stream.eof else None
    return None


def jpeg_scans(data: bytes) -> int:
    """The number of scans of a JPEG's first picture, each of which passes over all its pixels; 0 for other content."""
    if not data.startswith(b"\xff\xd8"):
        return 0
    at, scans = 2, 0
    while marker := _MARKER.search(data, at):
        at, kind = marker.end(), marker[0][1]
        if kind == _END:
            break
        scans += kind == _SCAN
        at += int.from_bytes(data[at : at + 2], "big")  # the segment; a scan's data behind it hold none of the markers
    return scans


def is_camera_raw(file: BinaryIO) -> bool:
    """Whether a TIFF is a camera's raw picture: what Pillow would read of it is the preview."""
    tags = _tiff_tags(file)
    small_first = _SUB_DIRECTORIES in tags and bool(_number(tags, _SUBFILE) & 1)
    return _DNG_VERSION in tags or _number(tags, _COLOURS) in (_FILTER_ARRAY, _LINEAR_RAW) or small_first


def has_floats(file: BinaryIO) -> bool:
    """Whether a TIFF's values are floating-point numbers."""
    return _number(_tiff_tags(file), _SAMPLE_FORMAT) == _FLOATS


def _tiff_tags(file: BinaryIO) -> Mapping[int, Any]:
    """The tags of a TIFF's first picture, none where they are damaged. Leaves the file at its start."""
    with contextlib.suppress(Exception), warnings.catch_warnings():  # of damaged ones, of any kind
        warnings.simplefilter("ignore")
        file.seek(0)
        head = file.read(16)
        tags = ImageFileDirectory_v2(head if head[2:3] == b"+" else head[:8])
        file.seek(tags.next)
        tags.load(file)
        file.seek(0)
        return {tag: tags[tag] for tag in _TAGS if tag in tags}
    file.seek(0)
    return {}


def _number(tags: Mapping[int, Any], tag: int) -> int:
    """A tag's value, the first one of several; 0 where there is none."""
    value = tags.get(tag, 0)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else 0
