"""The bar at the bottom: Generate with the expected time, or the active job's progress and Cancel."""

from __future__ import annotations

import streamlit as st

from app import look
from app.create import session, settings
from app.create.picture import Picture
from app.jobs import Job, doing, table
from sgm import UserError, VideoRequest


def show_generate(request: VideoRequest | None, picture: Picture | None) -> None:
    """Generate, with the expected time. A session has one job at a time, so a second click submits none."""
    with st.container(horizontal=True, vertical_alignment="center", key="bar"):
        clicked = st.button(
            "Generate",
            type="primary",
            icon=":material/play_arrow:",
            shortcut="Ctrl+Enter",
            disabled=request is None or picture is None,
        )
        if picture is None:
            opened = st.session_state.get("opened")
            st.caption("The object is not cut out yet: see Picture." if opened else "Choose a picture first.")
        elif request is None:
            st.caption("This cannot run yet: see Movement.")
        else:
            st.caption(_cost_caption(request))
    if clicked and request and picture:
        try:
            job = table().submit(settings.ready(request), picture.image, picture.name, session.owner())
        except UserError as error:
            st.error(look.plain(str(error)))
            return
        session.follow(job)
        st.rerun()


@st.fragment(run_every=look.POLL)
def show_progress(job_id: str) -> None:
    """Progress and Cancel of an active job, redrawn at every poll; when the job ends, the whole page is redrawn."""
    job = table().get(job_id)
    if job is None or not job.active:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center", key="bar"):
        st.progress(job.fraction if job.state == "running" else 0.0, _progress_text(job))
        st.button(
            "Cancel",
            icon=":material/close:",
            on_click=table().cancel,
            args=(job_id,),
            disabled=job.stopping,
            key="cancel",
        )
    if job.progress and job.progress.note:
        st.caption(job.progress.note)


def _cost_caption(request: VideoRequest) -> str:
    """The clip's length, and the time that the job will take."""
    return f"{request.frames / request.fps:.1f} s of video, made in about {look.duration(table().seconds_for(request))}"


def _progress_text(job: Job) -> str:
    """The job's position in the queue or its phase, and the time left."""
    left = "" if job.seconds_left is None else look.duration(job.seconds_left)
    if job.stopping:
        return "Stopping, once this part of the model is loaded …" if job.phase == "load" else "Stopping …"
    if job.state == "queued":
        before = table().jobs_before(job.id)
        text = f"Number {before} in line" if before else "Starting"
        return f"{text}, done in about {left}" if left else text
    return f"{doing(job)} · {left} left" if left else doing(job)
