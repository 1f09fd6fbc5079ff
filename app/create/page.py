"""The Create page: the picture and its movement on the left, the clip on the right, Generate at the bottom."""

from __future__ import annotations

from collections import Counter

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from app import hands, look, models
from app.create import bar, picture, result, session, settings, templates
from app.jobs import table
from sgm import VIEW_VERSIONS, UserError


def page() -> StreamlitPage:
    """The page, for navigation. Made of a function: of a page in a file, Streamlit would reload that file alone."""
    return st.Page(show_page, title="Create", icon=":material/movie:", url_path="create", default=True)


def show_page() -> None:
    session.current_job()  # whose settings a new session shows
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center", key="head"):
        of_clip = settings.current_version().name in VIEW_VERSIONS
        st.title("Views of a clip" if of_clip else "Image to video", anchor=False)
        badges = st.container(horizontal=True, width="content", vertical_alignment="center", gap="small")
    left, right = st.columns([7, 10], gap="large")
    request = None
    with left:
        st.header("1 · Clip" if of_clip else "1 · Picture", anchor=False)
        if not of_clip:
            settings.follow_picture()
        chosen = picture.choose_picture(settings.current_version(), *settings.current_size())
        st.header("2 · Views" if of_clip else "2 · Movement", anchor=False)
        version = settings.choose_version()
        ready = models.show_status(version)
        settings.choose_preset(version)
        templates.choose(version)
        try:
            request = settings.choose_settings(version)
        except UserError as error:
            st.error(look.plain(settings.labelled(str(error))))
    asked = request if ready else None, chosen
    with st.bottom:
        place, problem = bar.offer(*asked)
        for_hands = hands.place()
    job = session.current_job()
    if request:
        session.share(request, job)
    with badges:
        _show_devices()
        if waiting := table().waiting():
            st.badge(f"{waiting} waiting", icon=":material/hourglass_empty:", color="gray")
    with right, st.container(key="result"):
        st.header("Result", anchor=False)
        result.show_result(job)
        if not (job and job.active):
            result.show_recent(job)
    settings.choose_research(version, request)
    with st.bottom:
        bar.show(place, *asked, job, problem)
        pressed = picture.pressed() | settings.pressed(version) | templates.pressed(version)
        told = settings.values(version), settings.unready()
        hands.lend(for_hands, bar.said(job), pressed, *told, picture.take_out, version.name in VIEW_VERSIONS)


def _show_devices() -> None:
    """A badge for the devices that make clips, and one for each that was taken out."""
    devices = table().devices()
    at_work = Counter(state.about for state in devices if not state.reason)
    if at_work:
        named = at_work if len(at_work) == 1 else Counter(about.partition(" · ")[0] for about in at_work.elements())
        text = ", ".join(f"{count} × {about}" if count > 1 else about for about, count in named.items())
        st.badge(text, icon=":material/memory:", color="gray")
    for state in devices:
        if state.reason:
            st.badge(f"{state.device} is out", icon=":material/error:", color="red", help=look.plain(state.reason))
