"""The bar at the bottom: Generate with what it will run, the progress of the session's jobs, and the finished clips."""

from __future__ import annotations

import html

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import look
from app.create import progress, session, settings, stills
from app.create.picture import Picture, chosen
from app.jobs import Job, table
from app.summary import varied
from sgm import VIEW_VERSIONS, VideoRequest, ViewsRequest
from sgm.amounts import duration


def offer(request: VideoRequest | None, picture: Picture | None) -> tuple[DeltaGenerator, str]:
    """Draw Generate, before all that a click on it changes, so that nothing is drawn twice.

    Returns the bar, for `show`, and what is wrong with what was asked for, or "".
    """
    place, problem = st.container(horizontal=True, vertical_alignment="center", key="bar"), ""
    editing = session.editing()
    with place:
        clicked = st.button(
            "Change waiting clip" if editing else "Generate",
            type="primary",
            icon=":material/edit:" if editing else ":material/play_arrow:",
            shortcut="Ctrl+Enter",
            disabled=request is None or picture is None,
        )
        if editing:
            st.button("Leave it", on_click=lambda: st.session_state.update(editing=""))
    if clicked and request and picture and editing:
        problem = session.change(editing.id, request, picture.last)
        if not problem:
            st.rerun()
    elif clicked and request and picture:
        problem = session.generate(request, picture)
    return place, problem


def show(
    place: DeltaGenerator, request: VideoRequest | None, picture: Picture | None, job: Job | None, problem: str
) -> None:
    """Draw the rest of the bar. job: the one that the page shows; the others: see `offer`."""
    mine = session.my_jobs()
    lead = job if job and job.active else next(iter(mine), None)
    with place:
        if lead:
            _thumb(stills.preview(lead, small=True), f"Go to the preview of {lead.name}")
            progress.show(lead.id, sum(other.id != lead.id for other in mine))
            if job is None or lead.id != job.id:
                about = f"Show how the clip of {look.plain(lead.name)} comes along."
                st.button("Show", help=about, on_click=session.follow, args=(lead.id,))
        elif job and job.state == "done":
            _thumb(stills.poster(job), f"Done: go to the clip of {job.name}", "Done")
        for ended in session.ended_unseen()[:1]:
            label = "Done" if ended.state == "done" else "Not made"
            st.button(
                f"{label}: {look.plain(ended.name)}",
                icon=":material/check_circle:" if ended.state == "done" else ":material/error:",
                on_click=session.follow,
                args=(ended.id,),
                key="ended",
            )
        if not lead or request is None or picture is None:
            st.caption(_will_run(request, picture), width="stretch")
    if lead and request and picture:
        with st.container(key="next"):
            what = "It will run" if session.editing() else "Generate will run"
            st.caption(f"{what}: {_will_run(request, picture)}")
    if problem:
        st.error(look.plain(problem))


def said(job: Job | None) -> str:
    """What is announced to those who hear the page: how the page's job, and the latest other one, stand."""
    jobs = [*session.ended_unseen()[:1], *([job] if job else [])]
    return " ".join(_announced(job) for job in jobs)


def _announced(job: Job) -> str:
    if job.state == "done":
        return f"The clip of {job.name} is finished."
    return f"Making the clip of {job.name}." if job.active else f"The clip of {job.name} was not made."


def _thumb(picture: str, about: str, word: str = "") -> None:
    """Show a small picture that leads to the result, where a small screen has it out of sight."""
    label = f"<b>{word}</b>" if word else ""
    st.html(f'<button type="button" class="goto" aria-label="{html.escape(about)}">{picture}{label}</button>')


def _will_run(request: VideoRequest | None, picture: Picture | None) -> str:
    """What Generate will run, or what it waits for."""
    of_clip = settings.current_version().name in VIEW_VERSIONS
    if picture is None:
        what = "clip" if of_clip else "picture"
        opened = chosen()
        if opened and settings.ends_at_last() and not st.session_state.get("last"):
            return "Choose the last picture first, or another end: see Picture."
        return f"The object is not cut out yet: see {what.capitalize()}." if opened else f"Choose a {what} first."
    if request is None:
        return f"This cannot run yet: see {'Views' if of_clip else 'Movement'}."
    views = f"{request.model.num_views} views, " if isinstance(request, ViewsRequest) else ""
    took = duration(table().seconds_for(request))
    cost = f"{views}{request.frames / request.fps:.1f} s of video, made in about {took}"
    return look.plain(" · ".join(filter(None, [cost, varied(request, seed_known=not settings.new_seed())])))
