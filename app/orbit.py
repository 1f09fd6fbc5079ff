"""The fields of an orbit around an object, and what it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st
from PIL import Image

from sgm import ORBITS, UserError, VideoRequest, draw_orbit, orbit_of

_TITLES = {"same": "One elevation", "dynamic": "From the seed", "list": "Own list"}
_LISTS = {
    "elevations": ("Elevations", "One for each frame, -90 to 90. Empty: one elevation all around."),
    "azimuths": ("Azimuths", "One for each frame, 0 to 360, rising; the last is the picture's own view. Empty: even."),
}


def choose_orbit(frames: int) -> bool:
    """The orbit's kind, and the lists that it may need; whether there is an elevation to be asked for, too."""
    st.session_state.setdefault("orbit", ORBITS[0])
    kind = st.segmented_control(
        "Orbit",
        ORBITS,
        default=st.session_state["orbit"],
        required=True,
        format_func=lambda name: _TITLES[name],
        key="orbit",
        on_change=_start_list,
        help="**One elevation**: evenly around. **From the seed**: uneven, up and down around the elevation, and "
        "back to where it began. **Own list**: a degree for each frame.",
    )
    if kind == "list":
        for field, (label, about) in _LISTS.items():
            st.session_state.setdefault(field, "")
            title = f"{label} of the {frames} frames, in degrees"
            st.text_area(title, st.session_state[field], key=field, help=about, height=100)
        st.button("Start from an even orbit", icon=":material/restart_alt:", on_click=_even, args=(frames,))
    return kind != "list" or not st.session_state["elevations"].strip()


def chosen_orbit() -> dict[str, Any]:
    """What the fields ask for. Raises UserError for what is no number."""
    kind = st.session_state["orbit"]
    lists = _LISTS if kind == "list" else {}
    return {"orbit": kind} | {field: numbers(lists[field][0], st.session_state[field]) for field in lists}


def show_orbit(request: VideoRequest) -> None:
    """Where the camera goes, before anything is computed."""
    orbit = st.session_state["orbit_shown"] = orbit_of(request)
    low, high = min(orbit[0]), max(orbit[0])
    st.image(
        _drawn(*orbit, st.context.theme.type == "dark"),
        width="stretch",
        output_format="PNG",
        alt=f"The orbit: {request.frames} views around the object, at elevations of {low:.4g}° to {high:.4g}°",
    )
    if request.orbit == "dynamic" and st.session_state.get("new_seed"):
        st.caption("Each new seed draws another orbit than this one.", text_alignment="center")


def describe_orbit(settings: dict[str, Any]) -> str:
    """In few words."""
    named = {"list": "own orbit", "dynamic": "drawn orbit around elevation {}°"}.get(str(settings.get("orbit")))
    return (named or "elevation {}°").format(settings.get("elevation"))


def numbers(label: str, text: str) -> tuple[float, ...]:
    """Numbers with commas, spaces or lines between. Raises UserError."""
    try:
        return tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError as error:
        word = str(error).rpartition(": ")[2]
        raise UserError(f"{label} must be numbers with commas between, as in 0, 12.5, 30; got {word}.") from None


def text_of(values: Sequence[float]) -> str:
    """What `numbers` reads."""
    return ", ".join(str(value).removesuffix(".0") for value in values)


def _start_list() -> None:
    """A list starts as the orbit that was shown before."""
    if st.session_state["orbit"] == "list" and not any(st.session_state.get(field) for field in _LISTS):
        _write(st.session_state.get("orbit_shown", ((), ())))


def _even(frames: int) -> None:
    elevation = st.session_state.get("elevation", 0.0)
    _write(orbit_of(VideoRequest("sv3d_p", frames=frames, elevation=elevation)))


def _write(orbit: tuple[Sequence[float], Sequence[float]]) -> None:
    for field, values in zip(_LISTS, orbit, strict=True):
        st.session_state[field] = text_of([round(value, 1) for value in values])


@st.cache_data(max_entries=16, show_spinner=False)
def _drawn(elevations: tuple[float, ...], azimuths: tuple[float, ...], dark: bool) -> Image.Image:
    return draw_orbit(elevations, azimuths, dark=dark)
