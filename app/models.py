"""The status of the model versions: which weights are installed, and how to get the others."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from app.look import plain
from sgm import ALL_VERSIONS, DEFAULT_VERSION, Version, VersionStatus, version_status

_BADGES: dict[str, tuple[str, str, Literal["green", "orange", "gray"]]] = {
    "ready": ("Ready", ":material/check_circle:", "green"),
    "on disk": ("On disk", ":material/error:", "orange"),
    "missing": ("Missing", ":material/download:", "gray"),
}


def show_status(version: Version) -> bool:
    """Show whether a version's weights are installed, and how to get them. Returns whether it can run."""
    status = version_status(version.name)
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="model_status"):
        _badge(status)
        if status.state != "ready":
            st.button(
                "Check again", icon=":material/refresh:", type="tertiary", on_click=_note_check, args=(version.name,)
            )
        elif st.session_state.get("checked") == version.name:  # a visitor has no use for the server's paths
            st.caption(plain(status.location))
        if st.button("All models", icon=":material/list:", type="tertiary"):
            _all_models()
    if status.state != "ready":
        problem = "has weights that cannot be used" if status.path else "has no weights on this computer"
        st.warning(f"**{version.title} {problem}.**", icon=":material/download:")
        _show_remedy(version, status)
        if not status.path and status.page:
            location = f"{plain(version.hub_file)} from there, if you have it, at {plain(str(version.home))}"
            st.caption(f"or put {location}")
    return status.state == "ready"


def _note_check(version: str) -> None:
    st.session_state["checked"] = version


@st.dialog("Models", width="large")
def _all_models() -> None:
    """The dialog with every version's status; "Check again" redraws the dialog alone."""
    left, right = st.columns([5, 2], vertical_alignment="center")
    location = plain(str(ALL_VERSIONS[DEFAULT_VERSION].home.parent))
    left.caption(f"Weights that you have already belong into the folder {location}, under the name in the command.")
    right.button("Check again", icon=":material/refresh:", key="check_all", width="stretch")
    for version in ALL_VERSIONS.values():
        status = version_status(version.name)
        with st.container(border=True):
            with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
                st.markdown(f"**{version.title}** · {version.frames} frames · {version.width} × {version.height}")
                _badge(status)
            if status.state != "ready":
                _show_remedy(version, status)
            else:
                st.caption(f"{plain(status.location)} · {plain(status.licence)}")


def _badge(status: VersionStatus) -> None:
    label, icon, color = _BADGES[status.state]
    st.badge(label, icon=icon, color=color)


def _show_remedy(version: Version, status: VersionStatus) -> None:
    """Show the problem, the licence to accept first, and the command to copy."""
    if status.path:
        st.caption(f"{plain(status.location)}. {plain(status.problem)}")
    if not status.page:
        st.caption(plain(version.how_to_get))
    elif not status.path:
        page = f"[{status.page.removeprefix('https://')}]({status.page})"
        st.caption(f"First accept the licence ({plain(status.licence)}) at {page}, then run")
    if status.command:
        st.code(status.command, language="sh", wrap_lines=True)
