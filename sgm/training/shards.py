"""Shards: tar archives of clips, KEY.mp4 beside KEY.json or KEY.txt, read as a stream (the WebDataset convention).

Python's tarfile reads them: the package webdataset would also run shell commands that stand for names of shards, and
unpickle members by their endings.
"""

from __future__ import annotations

import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from sgm.errors import UserError, printable
from sgm.media.kinds import files_of, is_clip, listed
from sgm.paths import is_file, is_folder, refusals_explained, user_path

MAX_CLIP = 1 << 30  # bytes of a clip, which is held in memory
_MAX_HEADER = 1 << 20  # bytes of a member's name and attributes
_MAX_PARTS = 1 << 22  # of 512 bytes, in which a header is looked for behind a damaged one
_MAX_LIST = 16 << 20  # bytes of a file that lists shards
_BUFFER, _BUFFER_BYTES = 256, 1 << 30  # clips that wait to be shuffled, and their bytes


class Sample(NamedTuple):
    """A clip of a shard. name: the shard's and the member's; content: the video file."""

    name: str
    content: bytes


def clips_and_shards(place: Path, say: Callable[[str], object]) -> tuple[list[Path], list[Path]]:
    """The clips that lie in a folder, or else the shards that a place stands for; the other list is empty.

    A place of shards is a folder of them, one tar archive, or a text file that lists some, a path a line, relative to
    its own folder. What else lies in a folder is said in one line. Raises UserError where there is neither.
    """
    if not is_folder(place):
        return [], _listed(place)
    try:
        return files_of(place, "clip", say, deep=True), []
    except UserError as error:
        try:
            return [], files_of(place, "shard", say, deep=True)
        except UserError:
            raise error from None


def _listed(place: Path) -> list[Path]:
    """A shard itself, or those of a list. Raises UserError for a list of what is not there, and for other files."""
    with refusals_explained(place, verb="read"), place.open("rb") as file:
        head = file.read(_MAX_LIST + 1)
    if head[257:262] == b"ustar" or place.suffix.lower() == ".tar":
        return [place]
    lines = [] if b"\0" in head else [line.strip() for line in head.decode(errors="replace").splitlines()]
    paths = [place.parent / user_path(line) for line in lines if line and not line.startswith("#")]
    if place.suffix.lower() != ".txt" or not paths or len(head) > _MAX_LIST:
        raise UserError(
            f"{place} is a file: give a folder of clips or of shards, a shard (.tar), or a list of shards (.txt, a "
            "path a line)."
        )
    if missing := [str(path) for path in paths if not is_file(path)]:
        raise UserError(f"{place} lists what is not there: {listed(missing)}.")
    return paths


def samples(
    shard: Path, say: Callable[[str], object], chosen: Callable[[int], bool] = lambda number: True
) -> Iterator[Sample]:
    """The clips of a shard, one after the other, whole in memory. Nothing is unpacked to a disk.

    Compressed archives are not read. Links, devices, names that lead out of the archive, what is no clip, and clips of
    more than MAX_CLIP bytes are left out, in one line; so is what is damaged: a member costs itself only. chosen: tells
    by a clip's number whether it is wanted; others are skipped unread.
    """
    refused: list[str] = []
    number = 0
    try:
        with shard.open("rb") as file:
            # ignore_zeros: past a damaged header, the next whole one is looked for.
            headers: Any = _Headers(file)
            archive: Any = tarfile.TarFile(fileobj=headers, ignore_zeros=True)
            end = 0
            while (member := archive.next()) is not None:
                archive.members.clear()  # else it keeps all
                headers.count, headers.damaged = 0, False
                if member.size < 0 or archive.offset <= end:
                    raise tarfile.ReadError("a member has a negative size")
                if member.offset > end + tarfile.RECORDSIZE:  # less may lie between two archives in one file
                    refused.append(f"{(member.offset - end) / 1e6:.1f} MB before {printable(member.name)} (damaged)")
                end = archive.offset
                if member.isdir() or _is_note(member.name):
                    continue
                if reason := _against(member):
                    refused.append(f"{printable(member.name)} ({reason})")
                    continue
                number += 1
                if not chosen(number - 1):
                    continue
                file.seek(member.offset_data)
                content = file.read(member.size)
                if len(content) < member.size:
                    raise tarfile.ReadError(f"{member.name} is cut short")
                if is_clip(content, member.name):
                    yield Sample(f"{shard.name}/{member.name}", content)
                else:
                    refused.append(f"{printable(member.name)} (no clip)")
            if headers.damaged:  # newer Pythons pass over a header whose size is negative, too
                raise tarfile.ReadError("its last header cannot be read")
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        refused.append(f"what follows, since the archive is damaged ({printable(error, 80)})")
    if refused:
        say(f"Left out of {shard}: {listed(refused)}.")


class _Headers:
    """A file of which tarfile, that reads headers alone through it, gets bounded parts, and so many of them."""

    mode, name = "rb", None

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count, self.damaged = 0, False  # parts since the last whole header, and whether any is more than zeros
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int = -1) -> bytes:
        self.count += 1
        if not 0 <= size <= _MAX_HEADER or self.count > _MAX_PARTS:
            raise tarfile.ReadError("it has no header where one should be")
        part = self._file.read(size)
        self.damaged = self.damaged or any(part)
        return part


def _against(member: tarfile.TarInfo) -> str:
    """Why a member is not looked at; "" where nothing speaks against it."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    if not member.isreg() or member.issparse():
        return "a link or no regular file"
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return "a name that leads out of the archive"
    if member.size > MAX_CLIP:
        return f"larger than {MAX_CLIP >> 30} GB"
    return ""


def _is_note(name: str) -> bool:
    """Whether a member stands beside a clip, or is none that anybody meant: captions, attributes, hidden files."""
    path = PurePosixPath(name)
    return path.name.startswith(".") or path.suffix.lower() in (".json", ".txt")


def stream(
    shards: Sequence[Path], say: Callable[[str], object], seed: object, part: int = 0, parts: int = 1
) -> Iterator[Sample]:
    """The clips of all shards once, shuffled, the same for the same seed: the share `part` of `parts`, as of a rank.

    Whole shards are dealt out where there are at least as many as parts, else clips of each. Clips are drawn from a
    buffer of `_BUFFER` clips, or of fewer that take `_BUFFER_BYTES`.
    """
    order = list(shards)
    random.Random(str(seed)).shuffle(order)
    whole = len(order) >= parts
    chance = random.Random(f"{seed}, part {part}")
    buffer: list[Sample] = []
    held = 0  # bytes

    def drawn() -> Sample:
        at = chance.randrange(len(buffer))
        buffer[at], buffer[-1] = buffer[-1], buffer[at]
        return buffer.pop()

    for shard in order[part::parts] if whole else order:
        for sample in samples(shard, say, lambda number: whole or number % parts == part):
            buffer.append(sample)
            held += len(sample.content)
            while len(buffer) > _BUFFER or held > _BUFFER_BYTES:
                held -= len((out := drawn()).content)
                yield out
    while buffer:
        yield drawn()
