"""The outputs folder with every job's files, locked so that one process owns it."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.jobs.record import ID, Input, Job, Unreadable, ViewsClip, restore, save, small_jpeg, write
from sgm import Clip, UserError, encode_video, read_frames, read_settings, stitch, write_clip, write_frames, write_video
from sgm.outputs import take
from sgm.paths import patiently, refusals_explained, writes_explained

log = logging.getLogger(__name__)

_GONE = "This clip has been deleted from the server, or its files are damaged."
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


class Store:
    """An outputs folder, locked until `close`. Raises FolderInUse or UserError as sgm.outputs.FolderLock does.

    left_out: folder names of records that cannot be read -> the reason, after `jobs`.
    """

    def __init__(self, folder: Path, address: str = "") -> None:
        self.folder = folder
        self.left_out: dict[str, str] = {}
        self._lock = take(folder, address)

    def close(self) -> None:
        """Release the folder's lock."""
        self._lock.release()

    def jobs(self) -> list[Job]:
        """The jobs of earlier runs of the server, the oldest first, in the states of `restore`.

        Other and unreadable folders are not changed; incomplete folders and files of a killed server are deleted.
        Raises UserError where the folder cannot be read.
        """
        jobs = []
        with refusals_explained(self.folder):
            entries = sorted(self.folder.iterdir())
        for folder in entries:
            if folder.name.startswith(".") and ID.fullmatch(folder.name[1:]):
                shutil.rmtree(folder, ignore_errors=True)  # of a link, nothing
                continue
            try:
                if folder.is_symlink() or folder.is_dir():
                    jobs += filter(None, [restore(folder)])
            except (Unreadable, OSError) as error:
                self.left_out[folder.name] = str(error)
                log.warning("%s is left out of the history: %s", folder, error)
        return sorted(jobs, key=lambda job: job.created)

    def add(self, job: Job, picture: Input | Path, last: Image.Image | Path | None = None) -> None:
        """Write a new job's folder, by a hidden temporary name. Raises UserError if it cannot be written.

        picture: also the file of another job's picture, which costs no room where the file system has hard links. last:
        likewise, the last picture.
        Where the outputs folder was deleted meanwhile, it is made and locked anew; FolderInUse if another owns it now.
        """
        self._lock.renew()
        hidden = replace(job, folder=self.folder / f".{job.id}")
        try:
            hidden.folder.mkdir(parents=True)
            _put(picture, hidden.picture)
            if last is not None:
                _put(last, hidden.last)
            save(hidden)
            patiently(os.replace, hidden.folder, job.folder)
        except OSError as error:
            shutil.rmtree(hidden.folder, ignore_errors=True)
            raise UserError(
                f"The clip cannot be stored in {self.folder}: {error.strerror or error}. "
                "Free some space there, or name another folder in SGM_OUTPUTS and start the app again."
            ) from error

    def put_last(self, job: Job, last: bytes) -> None:
        """Write another last picture of a job, a PNG. Raises UserError where it cannot be written."""
        with writes_explained(job.last):
            write(job.last, last)

    def hide(self, job: Job) -> Path:
        """Rename a job's folder to a hidden name, to be deleted by the caller. Returns its path. Raises OSError."""
        hidden = job.folder.with_name(f".{job.id}")
        if job.folder.exists():
            os.replace(job.folder, hidden)
        return hidden

    def write_clip(self, job: Job, clip: Clip, before: Sequence[Job]) -> dict[str, Any]:
        """Write a finished clip's files, and its film where it extends the clips `before`.

        Returns the job's fields that describe the outcome. Whatever fails, the clip is not lost: it stays in memory, to
        be downloaded or saved later.
        """

        def film() -> None:
            if before:
                frames = stitch([film_frames(before[-1], before)[0], clip.frames], (False, job.request.takes_last))
                links = [*(link.settings for link in before), clip.settings]
                write_video(job.folder / "film.mp4", frames, clip.fps, clip.settings | {"links": links})

        def parts() -> None:
            for name, part in clip.parts.items() if isinstance(clip, ViewsClip) else ():
                write_video(job.folder / f"{name}.mp4", part.frames, part.fps, part.settings)

        failures = [
            self._failure(job, part)
            for part in (
                lambda: write_video(job.clip, clip.frames, clip.fps, clip.settings),
                lambda: write(job.poster, small_jpeg(Image.fromarray(clip.frames[0]))),
                lambda: write_frames(job.frames, clip.frames, clip.fps),
                film,
                parts,
            )
        ]
        fields: dict[str, Any] = {}
        if failures[0]:
            cause = failures[0].__cause__ or failures[0]  # the system's error, rather than our sentence about it
            reason, remedy = f"it could not be saved ({getattr(cause, 'strerror', None) or cause})", "mend that"
            if getattr(cause, "errno", None) in _NO_ROOM:
                reason, remedy = "there was no room to save it", "make room"
            fields["message"] = (
                f"Finished, but {reason}: download it now, or {remedy} and save it again. It is gone when the app ends."
            )
            with contextlib.suppress(Exception):  # then its frames alone are in memory
                fields["unsaved"] = encode_video(clip.frames, clip.fps, clip.settings)
        elif failure := next(filter(None, failures), None):
            fields["message"] = f"The clip is saved, but not all that goes with it: {failure}"
        return fields | {"unwritten": clip} if any(failures) else fields

    def _failure(self, job: Job, part: Callable[[], object]) -> Exception | None:
        """Write a part of a clip. Returns the error of any kind, which is logged."""
        try:
            self._lock.renew()
            part()
        except Exception as error:
            log.warning("job %s: %s", job.id, error, exc_info=not isinstance(error, (UserError, OSError)))
            return error
        return None


def as_png(picture: Image.Image) -> bytes:
    """A picture as it is stored with a job."""
    picture.save(file := io.BytesIO(), "PNG", compress_level=1)
    return file.getvalue()


def _put(picture: Input | Path, target: Path) -> None:
    """Write a job's picture or clip, given it or another job's file of it. Raises OSError."""
    if isinstance(picture, Path):
        _link(picture, target)
    elif isinstance(picture, list):
        write_clip(target, picture)
    else:
        write(target, as_png(picture))


def _link(source: Path, target: Path) -> None:
    """Give a file another name, or copy it. Raises OSError."""
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def is_lossless(chain: Sequence[Job]) -> bool:
    """Whether lossless frames of all clips of a film are stored. False for an empty chain."""
    return bool(chain) and all(link.unwritten or link.has(link.frames) for link in chain)


def film_frames(job: Job, chain: Sequence[Job]) -> tuple[np.ndarray, float]:
    """The frames of a finished job's film, uint8 (T, H, W, 3), and frames a second; lossless if `is_lossless(chain)`.

    chain: the clips that make up the film, the job last, or empty if one of them has been deleted. Raises UserError if
    the files have been deleted or are damaged.
    """

    def joined() -> tuple[np.ndarray, float]:
        links = chain or [job]
        clips, rates = zip(*map(clip_frames, links), strict=True)
        return stitch(clips, [link.request.takes_last for link in links]), rates[-1]

    def as_stored() -> tuple[np.ndarray, float]:
        return read_frames(job.unsaved or job.film)

    for way in (joined, as_stored) if is_lossless(chain) else (as_stored, joined):
        with contextlib.suppress(UserError):
            return way()
    raise UserError(_GONE)


def clip_frames(job: Job) -> tuple[np.ndarray, float]:
    """The frames of a job's own clip, as `film_frames` gives them, of whichever of its files is whole.

    Raises UserError if none of them is.
    """
    if job.unwritten:
        return job.unwritten.frames, job.unwritten.fps
    for path in (job.frames, job.clip):
        if job.has(path):
            with contextlib.suppress(UserError):
                frames, fps = read_frames(path)
                if len(frames) == job.request.frames:
                    return frames, fps
    raise UserError(_GONE)


def film_video(job: Job, chain: Sequence[Job]) -> bytes:
    """A finished job's film as an MP4: its file or, where that is missing or damaged, its frames encoded anew.

    b"" where there are only frames and no encoder. Raises UserError as `film_frames` does.
    """
    if job.unsaved:
        return job.unsaved
    with contextlib.suppress(OSError, UserError):
        if job.has(job.film) and not (job.film == job.clip and len(chain) > 1):
            content = job.film.read_bytes()
            read_settings(content)  # raises for what is no video
            if _is_whole(content):
                return content
    frames, fps = film_frames(job, chain)
    with contextlib.suppress(Exception):
        return encode_video(frames, fps, job.settings)
    return b""


def _is_whole(content: bytes) -> bool:
    """Whether an MP4's boxes end with the file: players show what there is of one that was cut short."""
    at = 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        if size < 8:  # the last one, or a large one: an encoder that is not ours
            return True
        at += size
    return at == len(content)
