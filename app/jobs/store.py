"""The outputs folder with every job's files, locked so that one process owns it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.jobs.record import ID, Job, restore, save, small_jpeg, write
from sgm import Clip, UserError, encode_video, read_frames, stitch, write_frames, write_video
from sgm.outputs import take

log = logging.getLogger(__name__)


class Store:
    """An outputs folder, locked until `close`. Raises FolderInUse or UserError as sgm.outputs.FolderLock does."""

    def __init__(self, folder: Path, address: str = "") -> None:
        self.folder = folder
        self._lock = take(folder, address)

    def close(self) -> None:
        """Release the folder's lock."""
        self._lock.release()

    def jobs(self) -> list[Job]:
        """The jobs of earlier runs of the server, the oldest first, in the states of `restore`.

        Other and unreadable folders are not changed; incomplete folders and files of a killed server are deleted.
        """
        jobs = []
        for folder in self.folder.iterdir():
            if folder.name.startswith(".") and ID.fullmatch(folder.name[1:]):
                shutil.rmtree(folder, ignore_errors=True)
            elif job := restore(folder):
                jobs.append(job)
        return sorted(jobs, key=lambda job: job.created)

    def add(self, job: Job, picture: Image.Image) -> None:
        """Write a new job's folder, by a hidden temporary name. Raises UserError if it cannot be written."""
        hidden = replace(job, folder=self.folder / f".{job.id}")
        try:
            hidden.folder.mkdir(parents=True)
            picture.save(hidden.picture, format="PNG", compress_level=1)
            save(hidden)
            os.replace(hidden.folder, job.folder)
        except OSError as error:
            shutil.rmtree(hidden.folder, ignore_errors=True)
            raise UserError(
                f"The clip cannot be stored in {self.folder}: {error.strerror or error}. "
                "Free some space there, or name another folder in SGM_OUTPUTS and start the app again."
            ) from error

    def hide(self, job: Job) -> Path:
        """Rename a job's folder to a hidden name, to be deleted by the caller. Returns its path. Raises OSError."""
        hidden = job.folder.with_name(f".{job.id}")
        if job.folder.exists():
            os.replace(job.folder, hidden)
        return hidden

    def write_clip(self, job: Job, clip: Clip, before: Sequence[Job]) -> dict[str, Any]:
        """Write a finished clip's files, and its film where it extends the clips `before`.

        Returns the job's fields that describe failed writes: the clip stays in memory, to be downloaded or saved later.
        """
        try:
            write_video(job.clip, clip.frames, clip.fps, clip.settings)
        except UserError as error:
            log.warning("%s", error)
            message = (
                "Finished, but there was no room to save it: download it now, or make room and save it again. "
                "It is gone when the app ends."
            )
            return {
                "message": message,
                "unsaved": encode_video(clip.frames, clip.fps, clip.settings),
                "unwritten": clip,
            }
        try:
            write(job.poster, small_jpeg(Image.fromarray(clip.frames[0])))
            write_frames(job.frames, clip.frames, clip.fps)
            if before:
                frames = stitch([film_frames(before[-1], before)[0], clip.frames])
                links = [*(link.settings for link in before), clip.settings]
                write_video(job.folder / "film.mp4", frames, clip.fps, clip.settings | {"links": links})
        except (OSError, UserError, ValueError) as error:
            log.warning("job %s: %s", job.id, error)
            return {"message": f"The clip is saved, but not all that goes with it: {error}", "unwritten": clip}
        return {}


def is_lossless(chain: Sequence[Job]) -> bool:
    """Whether lossless frames of all clips of a film are stored. False for an empty chain."""
    return bool(chain) and all(link.frames.is_file() for link in chain)


def film_frames(job: Job, chain: Sequence[Job]) -> tuple[np.ndarray, float]:
    """The frames of a finished job's film, uint8 (T, H, W, 3), and frames a second; lossless if `is_lossless(chain)`.

    chain: the clips that make up the film, the job last, or empty if one of them has been deleted. Raises UserError if
    the files have been deleted.
    """
    if is_lossless(chain):
        clips, rates = zip(*(read_frames(link.frames) for link in chain), strict=True)
        return stitch(clips), rates[-1]
    return read_frames(job.unsaved or job.film)
