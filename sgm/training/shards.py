"""Shards: tar archives of clips, KEY.mp4 beside KEY.json or KEY.txt, read as a stream (the WebDataset convention).

Python's tarfile reads them: the package webdataset would also run shell commands that stand for names of shards, and
unpickle members by their endings.
"""

from __future__ import annotations

import os
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from sgm.errors import UserError, printable
from sgm.media.kinds import HEAD, files_of, is_clip, listed
from sgm.paths import is_file, is_folder, refusals_explained, user_path

MAX_CLIP = 1 << 30  # bytes of a clip, which is held in memory
_MAX_HEADER = 1 << 20  # bytes of a member's name and attributes
_MAX_PARTS = 1 << 22  # of 512 bytes, in which a header is looked for behind a damaged one
_MAX_LIST = 16 << 20  # bytes of a file that lists shards
_TOGETHER = 512  # clips that are shuffled at once


class Sample(NamedTuple):
    """A clip of a shard: where its bytes are. name: the shard's and the member's; end: where the next member begins."""

    name: str
    shard: Path
    at: int
    size: int
    end: int

    def read(self) -> bytes:
        """The video file. Raises UserError where it cannot be read any more."""
        with refusals_explained(self.shard, verb="read"), self.shard.open("rb") as file:
            file.seek(self.at)
            return file.read(self.size)


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


def samples(shard: Path, say: Callable[[str], object], start: int = 0) -> Iterator[Sample]:
    """The clips of a shard, one after the other, of which the headers alone are read, from the byte `start` on.

    Compressed archives are not read. Links, devices, names that lead out of the archive, what is no clip, and clips of
    more than MAX_CLIP bytes are left out, in one line; so is what is damaged: a member costs itself only.
    """
    refused: list[str] = []
    try:
        with shard.open("rb") as file:
            size, end = os.fstat(file.fileno()).st_size, file.seek(start)
            # ignore_zeros: past a damaged header, the next whole one is looked for.
            headers: Any = _Headers(file)
            archive: Any = tarfile.TarFile(fileobj=headers, ignore_zeros=True)
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
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} is cut short")
                file.seek(member.offset_data)
                if is_clip(file.read(min(member.size, HEAD)), member.name):
                    yield Sample(
                        f"{shard.name}/{member.name.removeprefix('./')}", shard, member.offset_data, member.size, end
                    )
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


class Place(NamedTuple):
    """A place in a stream: in a pass, behind `taken` of the clips shuffled together that begin in a shard at a byte."""

    turn: int = 0
    shard: int = 0
    at: int = 0
    taken: int = 0


def stream(
    shards: Sequence[Path], say: Callable[[str], object], seed: object, part: int, parts: int, start: Place
) -> Iterator[tuple[Sample, Place]]:
    """The clips of all shards, pass after pass, each shuffled by the seed: the share `part` of `parts`, as of a rank.

    Each with the place behind it, from which as `start` the same clips follow. Whole shards are dealt out where there
    are at least as many as parts, else clips of each. `_TOGETHER` clips in a row are shuffled. Ends after a pass
    without any.
    """
    place, found = start, True
    while found:
        order, found = list(shards), place > Place(place.turn)
        random.Random(f"{seed}, pass {place.turn}").shuffle(order)
        whole = len(order) >= parts
        mine = order[part::parts] if whole else order
        rest = _located(mine, say, place)
        while chunk := list(islice(rest, _TOGETHER)):
            together = [sample for _, sample in chunk]
            random.Random(f"{seed}, {place[:3]}").shuffle(together)
            own = together if whole else together[part::parts]
            for taken, sample in enumerate(own[place.taken :], place.taken + 1):
                found = True
                yield sample, place._replace(taken=taken)
            place = Place(place.turn, chunk[-1][0], chunk[-1][1].end)
        place = Place(place.turn + 1)


def _located(shards: Sequence[Path], say: Callable[[str], object], start: Place) -> Iterator[tuple[int, Sample]]:
    """The clips of shards from a place on, each with its shard's number."""
    for number in range(start.shard, len(shards)):
        for sample in samples(shards[number], say, start.at if number == start.shard else 0):
            yield number, sample
