"""The player of several clips in step: what `compare.js` draws in the browser, and the frames that it gets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import ascii_uppercase

import streamlit as st
from streamlit import runtime
from streamlit.components import v2

from app.jobs import Job, table
from app.lab import chosen
from app.lab.sheets import Sheet, draw_sheet, scale_of
from app.summary import told_apart
from sgm import printable

KEY = "player"


@cache
def _code(suffix: str) -> str:
    return (Path(__file__).parent / f"compare.{suffix}").read_text(encoding="utf-8")


def letters(jobs: Sequence[Job]) -> list[str]:
    """The letters by which clips are named."""
    return list(ascii_uppercase[: len(jobs)])


def play(jobs: Sequence[Job], shown: Sequence[Job], view: str, gain: int) -> str:
    """Play the clips `shown`, some of `jobs`, in step. Returns the id of one that is to be opened, or "".

    view: "grid", or of two clips "wipe" or "difference", of which each value is multiplied by `gain`, a power of two.
    Raises UserError where a clip's files are gone.
    """
    scale = scale_of([table().chain(job.id) or [job] for job in shown])
    clips, names = [], {job.id: names for job, *names in zip(jobs, letters(jobs), told_apart(jobs), strict=True)}
    for job in shown:
        # A difference of two is one of frames as they were drawn; of many, what the eye cannot see is left out.
        sheet = _sheet(job.id, scale, len(shown) == 2, job)
        clips.append(
            {
                "id": job.id,
                "letter": names[job.id][0],
                "label": printable(names[job.id][1] or job.name),
                "url": _served(sheet, job.id),
                **{name: getattr(sheet, name) for name in ("columns", "frames", "width", "height", "fps")},
            }
        )
    # Registered at every run: each runtime of Streamlit, as in tests, has a list of its own.
    mount = v2.component("sgm_player", js=_code("js"), css=_code("css"), isolate_styles=False)
    state = mount(
        key=KEY,
        data={"view": view, "gain": gain, "clips": clips},
        on_open_change=lambda: None,
        on_removed_change=lambda: chosen.remove(str(st.session_state[KEY]["removed"])),
    )
    return str(state.get("open") or "")


@st.cache_data(max_entries=18, show_spinner="Reading the clips …")
def _sheet(job_id: str, scale: float, lossless: bool, _job: Job) -> Sheet:
    return draw_sheet(*table().frames(_job), scale, lossless)


def _served(sheet: Sheet, job_id: str) -> str:
    """The address of a sheet, so that no message carries it; while the session shows it, as with `st.image`."""
    if not runtime.exists():
        return ""
    url = runtime.get_instance().media_file_mgr.add(sheet.content, sheet.mime, f"player.{job_id}")
    base = str(st.get_option("server.baseUrlPath")).strip("/")
    return f"/{base}{url}" if base else url
