"""A group's clips as one ZIP: the MP4s, contact sheets, and what was not made. Does not import Streamlit."""

from __future__ import annotations

import io
import itertools
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from app.jobs import Job, table
from sgm import UserError
from sgm.paths import folded

_LONGEST_PART = 80  # characters of a picture's name, and of a label


def archive(jobs: Sequence[Job], labels: Mapping[str, str], sheets: Sequence[Callable[[], bytes]]) -> bytes:
    """The ZIP of a group.

    labels: id -> what follows the picture's name in the clip's. sheets: each gives a PNG; one that raises UserError is
    left out.
    """
    file, names, failures = io.BytesIO(), set[str](), list[str]()
    with zipfile.ZipFile(file, "w") as packed:  # stored: all in it is compressed already
        for job in jobs:
            reason = job.message or f"It was {job.state}."
            if job.state == "done":
                try:
                    content, reason = table().video(job), "It could not be encoded: see it on the page."
                except UserError as error:
                    content, reason = b"", str(error)
                if content:
                    packed.writestr(_name(job, labels[job.id], names), content)
                    continue
            failures.append(f"{job.name}, {labels[job.id]}: {reason}")
        for number, sheet in enumerate(sheets, 1):
            try:
                packed.writestr(f"contact-sheet{f'-{number}' if number > 1 else ''}.png", sheet())
            except UserError as error:
                failures.append(f"contact sheet {number}: {error}")
        if failures:
            packed.writestr("not-made.txt", "\n".join([*failures, ""]))
    return file.getvalue()


def _name(job: Job, label: str, taken: set[str]) -> str:
    """A name that every system takes, of the picture's and a label; with -2, -3, ... where that is taken."""
    plain = [re.sub(r"[^\w .,=()+-]", "_", part)[:_LONGEST_PART].strip(" .") for part in (Path(job.name).stem, label)]
    stem = "-".join(filter(None, plain)) or "clip"
    names = itertools.chain([f"{stem}.mp4"], (f"{stem}-{number}.mp4" for number in itertools.count(2)))
    name = next(name for name in names if folded(name) not in taken)
    taken.add(folded(name))
    return name
