"""Kinds of files, judged by their content: pictures, clips and shards that can be read, and what else people give."""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sgm import paths
from sgm.errors import UserError, printable
from sgm.media.containers import is_camera_raw


class Kind(NamedTuple):
    """A kind of file. group: "picture", "clip", "shard" for what can be read, "" for others. name: with its article."""

    group: str
    name: str


UNKNOWN = Kind("", "a file of an unknown kind")
HEIC, TIFF = Kind("picture", "a HEIC picture"), Kind("picture", "a TIFF picture")
GIF, WEBP = Kind("picture", "a GIF picture"), Kind("picture", "a WebP picture")
CAMERA_RAW, _SOUND = Kind("", "a camera's raw picture"), Kind("", "a sound file")
HEAD = 4096  # bytes that are looked at
# How files of a kind start, as a regular expression in which a dot is any byte; the first that matches counts.
_STARTS: tuple[tuple[bytes, Kind], ...] = (
    (rb"\xff\xd8\xff", Kind("picture", "a JPEG picture")),
    (rb"\x89PNG\r\n\x1a\n", Kind("picture", "a PNG picture")),
    (rb"GIF8[79]a", GIF),
    (rb"RIFF....WEBP", WEBP),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", Kind("picture", "a BMP picture")),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", Kind("picture", "a JPEG 2000 picture")),
    (rb"P[1-6]\s", Kind("picture", "a PPM picture")),
    (rb"II\*\0....CR\x02|FUJIFILMCCD-RAW|IIU\0|IIR[OS]|MMOR|\0MRM|....ftypcrx ", CAMERA_RAW),
    (rb"II[*+]\0|MM\0[*+]", TIFF),
    (rb"....ftyp(avi[fs]|m[is]f1.{4,60}avif)", Kind("picture", "an AVIF picture")),
    (rb"....ftyp(he[iv][cxms]|m[is]f1)", HEIC),
    (rb"....ftypM4[AB] |ID3|OggS|fLaC|RIFF....WAVE|\xff[\xfb\xf3\xf1]", _SOUND),
    (rb"....(ftyp|moov|mdat)|\0...(wide|free|skip|pnot)", Kind("clip", "an MP4 or QuickTime video")),
    (rb"\x1a\x45\xdf\xa3", Kind("clip", "a Matroska or WebM video")),
    (rb"RIFF....AVI ", Kind("clip", "an AVI video")),
    (rb"\x30\x26\xb2\x75|FLV\x01|\0\0\x01[\xba\xb3]|\x47.{187}\x47", Kind("", "a video of a kind that cannot be read")),
    (rb"%PDF-", Kind("", "a PDF document")),
    (rb"%!PS|\xc5\xd0\xd3\xc6", Kind("", "a PostScript drawing")),
    (rb"8BPS", Kind("", "a Photoshop document")),
    (rb"gimp xcf", Kind("", "a GIMP document")),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", Kind("", "a JPEG XL picture")),
    (rb"\0\0[\x01\x02]\0.\0", Kind("", "an icon")),
    (rb"\x76\x2f\x31\x01|#\?(RADIANCE|RGBE)", Kind("", "a picture of high dynamic range")),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", Kind("", "an archive")),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype\s+html|html)", Kind("", "a web page")),
    (rb"(\xef\xbb\xbf)?\s*<[?!s].{,3000}?(?<=<)svg[\s>]|(\xef\xbb\xbf)?\s*<svg[\s>]", Kind("", "an SVG drawing")),
    (rb"\s*#EXTM3U|ffconcat", Kind("", "a playlist")),
    (rb".{257}ustar", Kind("shard", "a tar archive")),
)
# Endings by which a file of unknown content is a damaged one of the group.
_SUFFIXES = {
    "picture": {".avif", ".bmp", ".gif", ".heic", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"},
    "clip": {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"},
    "shard": {".tar"},
}
_NAMED = 8  # files that are named in one line, the others counted


def kind_of(file: BinaryIO) -> Kind:
    """The kind of an open file, which is left at its start; UNKNOWN where nothing is known of its content."""
    file.seek(0)
    head = file.read(HEAD)
    kind = next((kind for start, kind in _STARTS if re.match(start, head, re.DOTALL)), UNKNOWN)
    if kind == TIFF and is_camera_raw(file):
        kind = CAMERA_RAW
    file.seek(0)
    return kind


def is_clip(content: bytes, name: str = "") -> bool:
    """Whether a file's content is a clip's, damaged or not; if unknown, whether its name ends like one's."""
    kind = kind_of(io.BytesIO(content[:HEAD]))
    return kind.group == "clip" or (kind == UNKNOWN and Path(name).suffix.lower() in _SUFFIXES["clip"])


def listed(names: Sequence[str], comma: str = ", ") -> str:
    """Names in one line, the first few of many."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return comma.join(printable(name) for name in names[:_NAMED]) + more


def natural_order(name: str) -> list[tuple[bool, int, str]]:
    """A key to sort names by, with numbers in them by their value: frame9 before frame10."""
    parts = re.findall(r"\d+|\D+", name.casefold())
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def files_of(folder: Path, group: str, say: Callable[[str], object], *, deep: bool = False) -> list[Path]:
    """The pictures, clips or shards in a folder, sorted, judged by their content, damaged ones by their ending.

    Hidden files, and those of unknown content and ending, are passed over. What else is left out, and why, is said in
    one line. group: "picture", "clip" or "shard". deep: with the folders inside. Raises UserError for a folder without
    any, or one that cannot be read.
    """
    found, left_out = _sorted_out(folder, group, deep)
    line = f"Left out of {folder}: {listed(left_out)}." if left_out else ""
    if not found:
        raise UserError(f"{folder} holds no {group}s that can be read: name the folder that holds them. {line}".strip())
    if line:
        say(line)
    return found


def _sorted_out(folder: Path, group: str, deep: bool) -> tuple[list[Path], list[str]]:
    """The files of a group, and what is left out with the reason."""
    found, left_out = [], []
    for path in paths.contents(folder):
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode) and deep and not path.is_symlink():
                inside = _sorted_out(path, group, deep)
                found += inside[0]
                left_out += inside[1]
                continue
            reason = _against(path, mode, group)
        except UserError as error:
            reason = str(error)
        except OSError as error:
            reason = str(error.strerror or error)
        if reason == "":
            found.append(path)
        elif reason:
            left_out.append(f"{path.name} ({reason})")
    return found, left_out


def _against(path: Path, mode: int, group: str) -> str | None:
    """What speaks against a file as one of a group; "" where nothing does, None where nobody meant it as one.

    Raises OSError where it cannot be read.
    """
    if stat.S_ISDIR(mode):
        return "a folder"
    if not stat.S_ISREG(mode):
        return "no regular file"
    with path.open("rb") as file:
        kind = kind_of(file)
    if kind.group == group or (kind == UNKNOWN and path.suffix.lower() in _SUFFIXES[group]):
        return ""
    if kind == UNKNOWN:  # such as notes.txt and Windows' Thumbs.db
        return None if path.suffix else f"no {group}"
    return kind.name
