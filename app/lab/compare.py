"""The Compare page: clips in step under one scrubber, the settings that differ between them, and their scores."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from app import places
from app.jobs import Job
from app.lab import chosen, player
from app.lab.scores import show_table
from app.summary import told_apart

_VIEWS = {"grid": "Side by side", "wipe": "Wipe", "difference": "Difference"}
_GAINS = (1, 2, 4, 8, 16, 32)
# Keys of widgets, kept in the address and, over a look at another page, in the session.
_KEPT = ("compare_view", "compare_pair", "compare_gain")


def page() -> StreamlitPage:
    """The page, for navigation."""
    return st.Page(show_page, title="Compare", icon=":material/compare:", url_path="compare")


def show_page() -> None:
    jobs = chosen.clips()
    if len(jobs) < 2:
        st.title("Compare", anchor=False)
        _tell_lost(len(jobs))
        more = "two to nine clips" if not jobs else "another clip, to nine in all"
        st.info(f"Choose {more} in History, or by “Add to compare” below a clip.", icon=":material/compare:")
        _keep([])
        return
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="bottom", key="compare"):
        st.title("Compare", anchor=False)
        view, shown, gain = _choose_view(jobs)
    _tell_lost(len(jobs))
    names = dict(zip([job.id for job in jobs], zip(player.letters(jobs), told_apart(jobs), strict=True), strict=True))
    scale, actions = player.scale_for(shown), (player.OPEN, ("removed", "×", "Remove"))
    tiles = []
    for job in shown:
        letter, label = names[job.id]
        # A difference of two is one of frames as they were drawn; of many, what the eye cannot see is left out.
        tiles.append(player.tile(job, letter, label or job.name, actions, scale, lossless=len(shown) == 2))
    if opened := player.play("player", tiles, {"removed": chosen.remove}, view, gain):
        places.open_clip(opened)
    st.caption(_told(shown, view))
    _keep(jobs)
    show_table(jobs)


def _tell_lost(found: int) -> None:
    if lost := len(chosen.ids()) - found:
        which = "1 chosen clip is" if lost == 1 else f"{lost} chosen clips are"
        st.caption(f"{which} not finished, or no longer on the server.")


def _choose_view(jobs: Sequence[Job]) -> tuple[str, list[Job], int]:
    """Draw the widgets of the view: which it is, the clips that it shows, and the gain of a difference."""
    given = st.session_state.setdefault("compare_kept", st.query_params.to_dict())
    for key in _KEPT:
        st.session_state.setdefault(key, given.get(key.removeprefix("compare_")))
    if st.session_state["compare_view"] not in _VIEWS:
        st.session_state["compare_view"] = "grid"
    pairs = [f"{a}{b}" for a in player.letters(jobs) for b in player.letters(jobs) if a != b]
    if st.session_state["compare_pair"] not in pairs:
        st.session_state["compare_pair"] = pairs[0]
    if str(st.session_state["compare_gain"]) not in map(str, _GAINS):
        st.session_state["compare_gain"] = 8
    st.session_state["compare_gain"] = int(st.session_state["compare_gain"])
    with st.container(horizontal=True, width="content", vertical_alignment="bottom"):
        st.segmented_control("View", _VIEWS, required=True, format_func=_VIEWS.__getitem__, key="compare_view")
        view = st.session_state["compare_view"]
        if view != "grid":
            st.selectbox("Clips", pairs, format_func=" and ".join, key="compare_pair", width=140)
        if view == "difference":
            st.selectbox("Amplified", _GAINS, format_func="{} ×".format, key="compare_gain", width=110)
    if view == "grid":
        return view, list(jobs), 1
    pair = [jobs[player.letters(jobs).index(one)] for one in st.session_state["compare_pair"]]
    return view, pair, st.session_state["compare_gain"]


def _told(shown: Sequence[Job], view: str) -> str:
    """What is to be known of the view, and its keys."""
    said = ["**Space** plays, **←** and **→** go by a frame, **Home** and **End** to the first and the last."]
    if len({(job.request.fps, job.request.frames) for job in shown}) > 1:
        said.append("All run in the time of one clock, each at its own rate; a shorter clip holds its last frame.")
    if view == "difference":
        said.append("Black is alike. Frames are compared as the model drew them, before any video's compression.")
    if view != "grid" and len({job.request.size for job in shown}) > 1:
        said.append("The second clip is drawn in the first one's size.")
    return " ".join(said)


def _keep(jobs: Sequence[Job]) -> None:
    """Note the view for the session, and all in the address."""
    values = {key.removeprefix("compare_"): st.session_state.get(key) for key in _KEPT}
    st.session_state["compare_kept"] = {name: str(value) for name, value in values.items() if value}
    address = {"clips": ",".join(chosen.ids())} if chosen.ids() else {}
    if jobs and values["view"] != "grid":
        address |= {"view": str(values["view"]), "pair": str(values["pair"])}
        address |= {"gain": str(values["gain"])} if values["view"] == "difference" else {}
    if address != st.query_params.to_dict():
        st.query_params.from_dict(address)
