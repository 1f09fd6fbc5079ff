"""What is dropped at once: pictures and ZIPs of pictures, of which nothing is unpacked that is too large to be one.

Does not import Streamlit. No name in a ZIP becomes a path: pictures stay in memory, as they were uploaded, until they
are opened one by one.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import NamedTuple

from PIL import Image

from app.upload import LARGEST, LARGEST_ZIP, MOST, one_at_a_time
from sgm import PictureError, UserError, is_clip, open_picture, printable

TOGETHER = 500  # MB, of all pictures
_MOST_ENTRIES = 2000  # of a ZIP, folders and what is no picture included
_LARGEST_DIRECTORY = 600 * _MOST_ENTRIES  # bytes of a ZIP's list of entries
_MOST_RATIO = 500  # of a file's size to its packed size: no picture shrinks like that
_THUMB = 128  # pixels
_END = struct.Struct("<4s4H2LH")  # of a ZIP's list: signature, …, its size (the sixth), …
_TOO_MANY = f"It lists more than the {_MOST_ENTRIES:,} files that a ZIP may have here: drop a part of it."
_PASSED_OVER = ("__MACOSX", ".", "Thumbs.db", "desktop.ini")  # beginnings of names that systems put beside pictures


class Entry(NamedTuple):
    """A picture that was dropped. size: in bytes; read: gives its content. thumb: of it, a JPEG."""

    name: str
    size: int
    read: Callable[[], bytes]
    thumb: bytes = b""

    def open(self, keep_alpha: bool = False) -> Image.Image:
        """The picture. Raises PictureError for what is none."""
        with one_at_a_time:
            return open_picture(self.read(), self.name, keep_alpha=keep_alpha)

    def checked(self) -> Entry:
        """The entry with its thumb. Raises UserError for what cannot be read as a picture."""
        content = self.read()
        if is_clip(content):
            raise PictureError(f"{self.name} is a clip: its first frame, saved as a picture, can be taken.")
        with one_at_a_time:
            image = open_picture(content, self.name)
        image.thumbnail((_THUMB, _THUMB))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
        return self._replace(thumb=file.getvalue())


class Bundle:
    """The pictures of one drop after the other. left_out: what is none of them: names, each with the reason."""

    def __init__(self) -> None:
        self.pictures: list[Entry] = []
        self.left_out: list[tuple[str, str]] = []

    def add(self, name: str, content: bytes, follow: Callable[[int, int], object] = lambda done, of: None) -> None:
        """Take in a picture, or those of a ZIP; what cannot be read is left out.

        follow: called with how many are looked at, and of how many.
        """
        try:
            entries = self._entries(name, content) if content[:4] == b"PK\3\4" else [_whole(name, content)]
        except UserError as error:
            self.left_out.append((name, str(error)))
            return
        for number, entry in enumerate(entries):
            follow(number, len(entries))
            try:
                self._check_room(entry)
                self.pictures.append(entry.checked())
            except UserError as error:
                self.left_out.append((entry.name, str(error)))

    def _check_room(self, entry: Entry) -> None:
        """Raise UserError where one more is too much."""
        if entry.size > LARGEST << 20:
            raise UserError(f"It is larger than the {LARGEST} MB that a picture may have.")
        if len(self.pictures) >= MOST:
            raise UserError(f"It is beyond the {MOST} pictures of a batch: make another batch of it.")
        if entry.size + sum(other.size for other in self.pictures) > TOGETHER << 20:
            raise UserError(f"With it, the pictures are larger than {TOGETHER} MB: make another batch of it.")

    def _entries(self, name: str, content: bytes) -> list[Entry]:
        """What may be the pictures of a ZIP, judged by its list alone. Raises UserError for one that cannot be used."""
        if len(content) > LARGEST_ZIP << 20:
            raise UserError(f"It is larger than the {LARGEST_ZIP} MB that a ZIP may have: drop a part of it.")
        if _directory(content) > _LARGEST_DIRECTORY:
            raise UserError(_TOO_MANY)
        try:
            archive = zipfile.ZipFile(io.BytesIO(content))
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise UserError(f"It cannot be read as a ZIP: it is damaged ({printable(error, 80)}).") from error
        found = []
        if len(archive.infolist()) > _MOST_ENTRIES:
            raise UserError(_TOO_MANY)
        for info in archive.infolist():
            path = PurePosixPath(info.filename.replace("\\", "/"))
            if (
                not path.name
                or info.is_dir()
                or any(part.startswith(_PASSED_OVER) and part != ".." for part in path.parts)
            ):
                continue
            if reason := _against(info, path):
                self.left_out.append((f"{name}: {printable(info.filename, 80)}", reason))
                continue
            found.append(Entry(path.name, info.file_size, _reader(archive, info)))
        if not found:
            raise UserError("It holds no picture that can be used.")
        if sum(min(entry.size, LARGEST << 20) for entry in found) > TOGETHER << 20:
            raise UserError(f"Unpacked, it is larger than the {TOGETHER} MB of a batch: drop a part of it.")
        return found


def _whole(name: str, content: bytes) -> Entry:
    return Entry(name, len(content), lambda: content)


def _reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with archive.open(info) as file:
                return file.read(info.file_size + 1)  # no more than it says, whatever it holds
        except Exception as error:  # of any kind: each way of packing has its own
            raise UserError(f"It cannot be unpacked: it is damaged ({printable(error, 80)}).") from error

    return read


def _against(info: zipfile.ZipInfo, path: PurePosixPath) -> str:
    """What speaks against a file of a ZIP, by what its list says; "" for nothing."""
    if ".." in path.parts or path.is_absolute() or ":" in path.parts[0]:
        return "Its path leads out of the ZIP."
    if info.flag_bits & 1:
        return "It needs a password."
    if path.suffix.lower() in (".zip", ".7z", ".rar", ".gz", ".tar"):
        return "It is an archive in an archive: unpack it first."
    if info.file_size > _MOST_RATIO * max(info.compress_size, 1):
        return f"It is packed to less than a {_MOST_RATIO}th of its size, as no picture is."
    return ""


def _directory(content: bytes) -> int:
    """The size of a ZIP's list of entries, in bytes, by its end: more than any where that is not plain."""
    at = len(content) - _END.size  # as zipfile looks for it: without a comment behind it, else the last one there is
    if content[at : at + 4] != b"PK\5\6" or content[-2:] != b"\0\0":
        at = content.rfind(b"PK\5\6", -_END.size - 0x10000)
    if at < 0 or at + _END.size > len(content):
        return 0  # no ZIP: zipfile says so
    if content[max(at - 20, 0) : at].startswith(b"PK\6\7"):  # a list of billions, of which zipfile believes that alone
        return 1 << 62
    return _END.unpack_from(content, at)[5]
