"""The player of several clips in step: what `compare.js` draws in the browser, and the frames that it gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import streamlit as st
from streamlit import runtime
from streamlit.components import v2

from app.jobs import Job, table
from app.lab.sheets import Sheet, draw_sheet, scale_of
from app.look import POLL
from sgm import UserError, printable

Action = tuple[str, str, str]  # name, what its button shows, and what it does, for people
OPEN: Action = ("open", "↗", "Open on Create")


@cache
def _code(suffix: str) -> str:
    return (Path(__file__).parent / f"compare.{suffix}").read_text(encoding="utf-8")


def letters(jobs: Sequence[object]) -> list[str]:
    """The letters by which clips are named."""
    return list(ascii_uppercase[: len(jobs)])


def scale_for(jobs: Sequence[Job]) -> float:
    """The scale at which so many clips together are sent to a browser."""
    return scale_of([table().chain(job.id) or [job] for job in jobs])


def tile(
    job: Job,
    letter: str,
    label: str,
    actions: Sequence[Action],
    scale: float = 1,
    lossless: bool = False,
    note: str = "",
) -> dict[str, Any]:
    """A clip for `play`: its frames, or where it is not finished, a note in their place."""
    width, height = job.request.size
    made: dict[str, Any] = {"id": job.id, "letter": letter, "label": printable(label), "actions": actions, "note": note}
    made |= {"width": width, "height": height}
    if job.state != "done":
        return made
    try:
        sheet = (_lossless if lossless else _small)(job.id, scale, job)
    except UserError:
        return made | {"note": "Its files are gone or damaged."}
    values = {name: getattr(sheet, name) for name in ("columns", "frames", "width", "height", "fps")}
    return made | values | {"url": _served(sheet, job.id)}


def play(
    key: str,
    tiles: Sequence[dict[str, Any] | None],
    does: Mapping[str, Callable[[str], object]],
    view: str = "grid",
    gain: int = 1,
    columns: int = 0,
    heads: Sequence[str] = (),
    sides: Sequence[str] = (),
    watched: bool = False,
) -> str:
    """Play clips in step. Returns the id of one that is to be opened, or "".

    tiles: in rows of `columns`, or of 3; None for an empty place. does: what an action does with a clip's id; it may
    return the id of another one, to be opened. view: "grid", or of two clips "wipe" or "difference", of which each
    value is multiplied by `gain`, a power of two. heads, sides: labels of columns and rows. watched: run the fragment
    around it at every poll. The player asks for that, since it knows when not to.
    """

    def on(name: str) -> Callable[[], None]:
        def act() -> None:
            st.session_state["player_opens"] = does[name](str(st.session_state[key][name]))

        return act

    # Registered at every run: each runtime of Streamlit, as in tests, has a list of its own.
    mount = v2.component("sgm_player", js=_code("js"), css=_code("css"), isolate_styles=False)
    view = view if all(some and "url" in some for some in tiles) else "grid"
    data = {"view": view, "gain": gain, "columns": columns, "clips": tiles}
    data |= {name: list(labels) if any(labels) else [] for name, labels in (("heads", heads), ("sides", sides))}
    if watched:
        data |= {"every": 1000 * POLL, "at": time.monotonic()}  # other data each time, so that the player goes on
    changes: dict[str, Any] = {f"on_{name}_change": on(name) for name in does}
    state = mount(key=key, data=data, on_open_change=lambda: None, on_look_change=lambda: None, **changes)
    return str(state.get("open") or st.session_state.pop("player_opens", None) or "")


@st.cache_resource(max_entries=4, show_spinner="Reading the clips …")  # of which each may have 40 MB
def _lossless(job_id: str, scale: float, _job: Job) -> Sheet:
    return draw_sheet(*table().frames(_job), scale, lossless=True)


@st.cache_resource(max_entries=64, show_spinner="Reading the clips …")
def _small(job_id: str, scale: float, _job: Job) -> Sheet:
    return draw_sheet(*table().frames(_job), scale, lossless=False)


def _served(sheet: Sheet, job_id: str) -> str:
    """The address of a sheet, so that no message carries it; while the session shows it, as with `st.image`."""
    if not runtime.exists():
        return ""
    url = runtime.get_instance().media_file_mgr.add(sheet.content, sheet.mime, f"player.{job_id}")
    base = str(st.get_option("server.baseUrlPath")).strip("/")
    return f"/{base}{url}" if base else url
