"""The History page: all clips on disk, a page of them at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from app import look, places
from app.jobs import Job, still, table
from app.lab import chosen
from app.summary import matches, varied
from sgm import ALL_VERSIONS, UserError

log = logging.getLogger(__name__)

_PER_PAGE = 12
_STATES = {"failed": "Failed", "cancelled": "Cancelled", "interrupted": "Interrupted", "queued": "Waiting"}
_STATES["running"] = "Running"
# Keys of widgets, and the page's number. Their values are kept in the address, over a reload, and for the session, over
# a look at the other page.
_KEPT = ("history_text", "history_version", "history_unfinished", "history_page")


def page() -> StreamlitPage:
    """The page, for navigation."""
    return st.Page(show_page, title="History", icon=":material/history:", url_path="history")


def show_page() -> None:
    _restore()
    st.html(_STYLE)
    st.title("History", anchor=False)
    left, middle, right = st.columns([3, 3, 2], vertical_alignment="bottom")
    text = left.text_input(
        "Search", key="history_text", placeholder="lake, seed 5, DPM++ 2M, 320x192, 26 Nov …"
    ).strip()
    version = middle.selectbox(
        "Model",
        ["", *ALL_VERSIONS],
        format_func=lambda name: ALL_VERSIONS[name].title if name else "All models",
        key="history_version",
    )
    unfinished = right.toggle("Unfinished, too", key="history_unfinished")
    for failure in st.session_state.pop("history_failures", ()):
        st.error(look.plain(failure))
    if left_out := table().left_out:
        some = ", ".join(list(left_out)[:3]) + (", …" if len(left_out) > 3 else "")
        what = f"{len(left_out)} folders hold" if len(left_out) > 1 else "1 folder holds"
        st.caption(f"{what} no clip that can be read: {some}. The server's log says why.")
    jobs = [job for job in table().jobs() if unfinished or job.state == "done"]
    fitting = [job for job in jobs if (not version or job.request.version == version) and matches(job, text)]
    if not fitting:
        st.info("No clip fits." if text or version else "No clips yet. What you create is kept here.")
        _keep()
        return
    pages = -(-len(fitting) // _PER_PAGE)
    page = st.session_state["history_page"] = max(1, min(st.session_state["history_page"], pages))
    cards = fitting[(page - 1) * _PER_PAGE : page * _PER_PAGE]
    toolbar = st.container(key="toolbar")
    with st.container(key="cards"):
        for row in range(0, len(cards), 4):
            for column, job in zip(st.columns(4), cards[row : row + 4], strict=False):
                with column, guard(job):
                    _card(job)
    with toolbar:
        _show_selected([job for job in cards if st.session_state.get(f"select_{job.id}")])
    with st.container(horizontal=True, horizontal_alignment="center", vertical_alignment="center"):
        st.button("Newer", icon=":material/chevron_left:", disabled=page == 1, on_click=_go_to, args=(page - 1,))
        st.caption(
            f"Page {page} of {pages} · {len(fitting)} {'clip' if len(fitting) == 1 else 'clips'}", width="content"
        )
        st.button("Older", icon=":material/chevron_right:", disabled=page == pages, on_click=_go_to, args=(page + 1,))
    _keep()
    if asked := st.session_state.pop("history_dialog", None):
        name, content, about = asked
        st.dialog(name)(content)(about)


@contextmanager
def guard(job: Job) -> Iterator[None]:
    """Show a sentence in place of a job's card for an error of any kind, which costs that card alone."""
    try:
        yield
    except Exception:
        log.exception("the card of job %s cannot be drawn", job.id)
        st.caption(f"Clip {job.id} cannot be shown: its files may be damaged.")


def title(job: Job) -> str:
    """A job's name and date in one line, for buttons: they are told apart by it."""
    name = job.name if len(job.name) <= 60 else f"{job.name[:40]}…{job.name[-16:]}"
    return f"{look.plain(name) or 'picture'}, {look.when(job.created)}"


def _restore() -> None:
    """Set the widgets as the session left them or, in a new session, as the address says."""
    if "history" not in st.session_state:
        given = st.query_params.to_dict()
        number = given.get("page", "")
        st.session_state["history"] = {
            "history_text": given.get("search", ""),
            "history_version": given["model"] if given.get("model") in ALL_VERSIONS else "",
            "history_unfinished": given.get("unfinished") == "yes",
            "history_page": int(number) if number.isdecimal() and len(number) < 7 else 1,
        }
    for key, value in st.session_state["history"].items():
        st.session_state.setdefault(key, value)


def _keep() -> None:
    """Note the widgets' values for the session and in the address."""
    values = st.session_state["history"] = {key: st.session_state[key] for key in _KEPT}
    named = {
        "search": values["history_text"],
        "model": values["history_version"],
        "unfinished": "yes" if values["history_unfinished"] else "",
        "page": str(values["history_page"]) if values["history_page"] > 1 else "",
    }
    address = {name: value for name, value in named.items() if value}
    if address != st.query_params.to_dict():
        st.query_params.from_dict(address)


def _go_to(page: int) -> None:
    st.session_state["history_page"] = page


def _card(job: Job) -> None:
    with st.container(border=True, key=f"card_{job.id}"):
        if picture := _still(job.id, job.state, job):
            st.image(picture, width="stretch", alt=f"First frame of the clip of {job.name}")
        else:
            st.caption("Its picture is missing or damaged.")
        if st.button(f"Open {title(job)}", key=f"open_{job.id}", width="stretch"):
            places.open_clip(job.id)
        parts = [_STATES.get(job.state), job.request.model.title, f"seed {job.request.seed}"]
        st.caption(look.plain(" · ".join(filter(None, [*parts, varied(job.request)]))))
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
            st.checkbox(f"Select {title(job)}", key=f"select_{job.id}", label_visibility="collapsed")
            st.button(
                f"Delete {title(job)}",
                key=f"delete_{job.id}",
                icon=":material/delete:",
                type="tertiary",
                disabled=job.active,
                on_click=_ask,
                args=([job],),
            )


@st.cache_data(max_entries=256, show_spinner=False)
def _still(job_id: str, state: str, _job: Job) -> bytes:
    return still(_job)


def _show_selected(jobs: list[Job]) -> None:
    """The actions on the selected cards of this page; they are shown above the cards."""
    if not jobs:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"{len(jobs)} selected", width="content")
        playable = [job.id for job in jobs if job.state == "done"]
        full = len({*chosen.ids(), *playable}) > chosen.MOST
        if st.button(
            "Compare",
            icon=":material/compare:",
            disabled=not 2 <= len(playable) <= chosen.MOST,
            help=f"Plays 2 to {chosen.MOST} clips in step.",
        ):
            chosen.choose(playable)
            places.go("Compare")
        st.button(
            "Add to compare",
            icon=":material/add:",
            disabled=not playable or full,
            help=f"Beside those that are chosen already, {len(chosen.ids())} of at most {chosen.MOST}.",
            on_click=chosen.add,
            args=playable,
        )
        st.button("Delete selected", icon=":material/delete:", on_click=_ask, args=(jobs,))
        st.button("Select none", type="tertiary", on_click=_select_none, args=(jobs,))


def _ask(jobs: list[Job]) -> None:
    name = "Delete this clip?" if len(jobs) == 1 else f"Delete {len(jobs)} clips?"
    st.session_state["history_dialog"] = name, _confirm, jobs


def _select_none(jobs: list[Job]) -> None:
    for job in jobs:
        st.session_state[f"select_{job.id}"] = False


def _confirm(jobs: list[Job]) -> None:
    """The dialog before jobs are deleted."""
    which = f"The clip of {look.plain(jobs[0].name)}" if len(jobs) == 1 else f"{len(jobs)} clips"
    st.write(f"{which} and all settings will be removed from this computer for good.")
    with st.container(horizontal=True, horizontal_alignment="right"):
        if st.button("Keep it" if len(jobs) == 1 else "Keep them", type="primary"):
            st.rerun()
        if st.button("Delete for good", icon=":material/delete:", on_click=_delete, args=(jobs,)):
            st.rerun()


def _delete(jobs: list[Job]) -> None:
    """Delete jobs, which another browser may have done already. What cannot be deleted is told on the page."""
    for job in jobs:
        try:
            table().delete(job.id)
        except (UserError, OSError) as error:
            st.session_state.setdefault("history_failures", []).append(f"{job.name}: {error}")


# A card's picture opens its clip: the button's area is that of the card, below what else can be clicked. Icons and
# boxes have their names for those who hear the page.
_STYLE = """<style>
.st-key-cards [class*="st-key-card_"] { position: relative; }
.st-key-cards [class*="st-key-open_"] :is(.stButton, .stTooltipIcon, button), .st-key-cards [class*="st-key-open_"] {
  position: static; }
.st-key-cards [data-testid="stElementToolbar"] { display: none; /* Streamlit's Fullscreen, for a still */ }
.st-key-cards [class*="st-key-open_"] button::after { content: ""; position: absolute; inset: 0; cursor: pointer; }
.st-key-cards [class*="st-key-open_"] button p { white-space: normal; overflow-wrap: anywhere; }
.st-key-cards :is([class*="st-key-select_"], [class*="st-key-delete_"]) { position: relative; z-index: 1; }
.st-key-cards [class*="st-key-delete_"] button p { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }
</style>"""
