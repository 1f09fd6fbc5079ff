"""The Drafts page: a few seeds in few steps beside each other, and the chosen one with all steps."""

from __future__ import annotations

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from app import look
from app.create import session, settings
from app.jobs import Job, next_seed, stored_last, stored_picture, table
from app.lab import base, grid
from sgm import Axis, UserError
from sgm.amounts import duration

_SEEDS = 4
_FINISH = ("finish", "✓", "Finish with all steps")


def page() -> StreamlitPage:
    """The page, for navigation."""
    return st.Page(show_page, title="Drafts", icon=":material/draw:", url_path="drafts")


def show_page() -> None:
    group = st.session_state.setdefault("drafts_group", st.query_params.get("group", ""))
    st.title("Drafts", anchor=False)
    above, fold = st.container(), st.container()
    with fold:
        start = base.choose(group)
    with above, st.container(key="start"):
        _show_start(start)
    grid.keep("drafts_group", grid.show_one_of("Drafts", group, [_FINISH], {"finish": _finish}))


def _show_start(start: base.Base) -> None:
    """Draw what drafts are, what they cost, and the button that makes them."""
    st.caption(
        f"Makes {_SEEDS} takes, of this seed and the next ones, in few steps. ✓ makes one of them with all steps. The "
        "finished clip has its draft's camera and size, and mostly its movement; details, and at times more, come out "
        "otherwise: fewer steps follow the same way less closely."
    )
    st.caption(start.said())
    if start.request is None or start.picture is None:
        return
    request = start.request
    steps = settings.draft_steps(request.model)
    try:
        if steps >= request.steps or "sigmas" in request.options:
            raise UserError(f"A draft takes {steps} steps; give more than that for the finished clip.")
        requests = [next_seed(request, i).replace(steps=steps) for i in range(_SEEDS)]
    except UserError as error:
        st.info(look.plain(settings.labelled(str(error))))
        return
    drafts, whole = table().seconds_for_all(requests), table().seconds_for_all([request])
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(f"Make {_SEEDS} drafts", type="primary", icon=":material/draw:"):
            axes = [str(Axis("seed", tuple(cell.seed for cell in requests)))]
            base.start(start, requests, axes, range(_SEEDS), {"steps": request.steps})
            st.rerun()
        st.caption(
            f"{steps} steps instead of {request.steps}: about {duration(drafts)} for all; then about "
            f"{duration(whole)} for the chosen one."
        )


def finished(job_id: str, owner: str) -> Job:
    """Queue the finished clip of a draft. Raises UserError where it, or its picture, has been deleted."""
    job = table().get(job_id)
    if job is None:
        raise UserError("This draft is no longer on the server.")
    return table().submit(
        job.request.replace(**job.finish), stored_picture(job), job.name, owner, last=stored_last(job)
    )


def _finish(job_id: str) -> str:
    """Queue the finished clip of a draft. Returns its id; "" where it cannot be made, which is said."""
    try:
        return finished(job_id, session.owner()).id
    except UserError as error:
        grid.fail(str(error))
        return ""
