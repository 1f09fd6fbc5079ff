"""The History page: all clips on disk, a page of them at a time."""

from __future__ import annotations

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from app import look
from app.create import page as create
from app.jobs import Job, table
from sgm import VERSIONS, UserError

_PER_PAGE = 12
_STATES = {"failed": "Failed", "cancelled": "Cancelled", "interrupted": "Interrupted", "queued": "Waiting"}


def page() -> StreamlitPage:
    """The page, for navigation."""
    return st.Page(show_page, title="History", icon=":material/history:", url_path="history")


def show_page() -> None:
    st.html(look.style())
    st.title("History", anchor=False)
    left, middle, right = st.columns([3, 3, 2], vertical_alignment="bottom")
    text = left.text_input("Search", key="history_text", placeholder="Name, seed or sampler").strip().lower()
    version = middle.selectbox(
        "Model",
        [None, *VERSIONS],
        format_func=lambda name: VERSIONS[name].title if name else "All models",
        key="history_version",
    )
    unfinished = right.toggle("Unfinished, too", key="history_unfinished")
    matching = [job for job in table().jobs() if _fits(job, text, version, unfinished)]
    if not matching:
        st.info("No clip fits." if text or version else "No clips yet. What you create is kept here.")
        return
    pages = -(-len(matching) // _PER_PAGE)
    page = min(st.session_state.get("history_page", 1), pages)
    with st.container(key="cards"):
        cards = matching[(page - 1) * _PER_PAGE : page * _PER_PAGE]
        for row in range(0, len(cards), 4):
            for column, job in zip(st.columns(4), cards[row : row + 4], strict=False):
                with column:
                    _card(job)
    with st.container(horizontal=True, horizontal_alignment="center", vertical_alignment="center"):
        st.button("Newer", icon=":material/chevron_left:", disabled=page == 1, on_click=_go_to, args=(page - 1,))
        st.caption(
            f"Page {page} of {pages} · {len(matching)} {'clip' if len(matching) == 1 else 'clips'}", width="content"
        )
        st.button("Older", icon=":material/chevron_right:", disabled=page == pages, on_click=_go_to, args=(page + 1,))


def _fits(job: Job, text: str, version: str | None, unfinished: bool) -> bool:
    if not (unfinished or job.state == "done") or (version and job.request.version != version):
        return False
    names = " ".join(value for value in job.request.settings().values() if isinstance(value, str))
    words = f"{job.name} seed {job.request.seed} {names} {job.id}".lower()
    return all(word in words for word in text.split())


def _go_to(page: int) -> None:
    st.session_state["history_page"] = page


def _card(job: Job) -> None:
    with st.container(border=True):
        poster = next((path for path in (job.poster, job.picture) if path.is_file()), None)
        if poster:
            st.image(poster, width="stretch", alt=f"First frame of the clip of {job.name}")
        version = VERSIONS[job.request.version]
        end = _STATES.get(job.state)
        st.markdown(f"**{look.plain(job.name)}**" + (f" · {end}" if end else ""))
        st.caption(f"{version.title} · seed {job.request.seed} · {look.when(job.created)}")
        with st.container(horizontal=True):
            if st.button("Open", key=f"open_{job.id}", help=f"Open the clip of {job.name}"):
                st.session_state.pop("job", None)  # so that the Create page opens the job of its address
                st.switch_page(create.page(), query_params={"job": job.id})
            if st.button("Delete", key=f"delete_{job.id}", help=f"Delete the clip of {job.name}", disabled=job.active):
                _confirm(job)


@st.dialog("Delete this clip?")
def _confirm(job: Job) -> None:
    st.write(f"The clip of {look.plain(job.name)} and its settings will be removed from this computer for good.")
    with st.container(horizontal=True, horizontal_alignment="right"):
        if st.button("Keep it"):
            st.rerun()
        if st.button("Delete for good", type="primary"):
            try:
                table().delete(job.id)
            except (UserError, OSError) as error:
                st.error(look.plain(str(error)))
                return
            st.rerun()
