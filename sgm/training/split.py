"""Splitting clips at their cuts into a new folder to train on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from glob import escape
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import NamedTuple

from sgm.errors import UserError
from sgm.media.cutting import write_piece
from sgm.paths import check_writable, exists, numbered, replacing, writes_explained
from sgm.training.shards import clips_and_shards
from sgm.training.survey import Row


class Split(NamedTuple):
    """What a split left. folder: the new one; whole: clips without a cut, which are there as they are; copied, encoded:
    pieces, with the source's coded frames or encoded again; short: pieces of too few frames, which are left out."""

    folder: Path
    whole: int
    copied: int
    encoded: int
    short: int


def check_split(place: Path, target: Path) -> None:
    """Raise UserError where the clips of a place cannot be split into a new folder `target`."""
    if target.resolve().is_relative_to(place.resolve()):
        raise UserError(f"--split {target} lies in {place}, the clips' own folder: choose another place.")
    if clips_and_shards(place, lambda line: None)[1]:
        raise UserError("--split takes a folder of clips: unpack shards first (tar -xf shard.tar -C FOLDER).")
    check_writable(target.absolute().parent)


def split_clips(
    place: Path,
    rows: Sequence[Row],
    target: Path,
    frames: int,
    show: Callable[[str, float], object] = lambda phase, share: None,
) -> Split:
    """Make a folder of what can be trained on of a folder's clips, each cut into its scenes; the source stays as it is.

    A clip without a cut gets a second name (a hard link) there, or a copy where the disk has no links. Pieces are
    numbered; those of fewer than `frames` frames are not there, nor clips of which training would take nothing. The
    folder, `target` or with -2, -3, … behind it where that is taken, appears when it is complete. Raises UserError
    where it cannot be written, as on a full disk.
    """
    chosen = sorted((row for row in rows if row.samples), key=lambda row: bool(row.cuts))  # whole ones keep their names
    check_writable(target.absolute().parent, sum(row.bytes for row in chosen if row.cuts))
    whole = copied = encoded = short = 0
    with writes_explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = next(name for name in numbered(target) if not exists(name))
        with replacing(folder, new=True) as unfinished:
            for number, row in enumerate(chosen):
                source, name = place / row.clip, unfinished / row.clip
                name.parent.mkdir(parents=True, exist_ok=True)
                show(f"split {number + 1}/{len(chosen)}", number / len(chosen))
                if not row.cuts:
                    _link(source, next(free for free in numbered(name) if not exists(free)))
                    whole += 1
                    continue
                for piece, (start, end) in enumerate(pairwise([0.0, *row.cuts, inf]), 1):
                    if (min(end, row.seconds) - start) * row.fps < frames - 0.5:
                        short += 1
                        continue
                    place_of_piece = _free(name.with_name(f"{name.stem}-{piece:03}"))
                    if write_piece(source, start, end, place_of_piece)[1]:
                        copied += 1
                    else:
                        encoded += 1
    return Split(folder, whole, copied, encoded, short)


def _link(source: Path, name: Path) -> None:
    try:
        os.link(source.resolve(), name)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, name)


def _free(name: Path) -> Path:
    """The name, or with -2, -3, … behind it, that no clip of the folder has, whatever its ending."""
    return next(free for free in numbered(name) if not any(free.parent.glob(f"{escape(free.name)}.*")))
