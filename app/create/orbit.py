"""The widgets of an orbit around an object, and its plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st
from PIL import Image

from app.create.fields import base_fields, draw, options_of, set_value, value_of
from app.look import room
from sgm import ORBITS, Field, Version, VideoRequest, ViewsRequest, draw_orbit, orbit_of


def choose_orbit(field: Field, version: Version) -> None:
    """Draw the widgets of the kind of orbit and of its lists of angles."""
    draw(field, version, on_change=lambda: _fill_lists(version))
    if lists := options_of(field, version):
        with st.container(key=f"options_{field.name}"):
            for option in lists:
                draw(option, version)
            st.button(
                "Start from an even orbit", icon=":material/restart_alt:", on_click=_set_even_orbit, args=(version,)
            )


def without_effect(values: Mapping[Any, Any]) -> set[str]:
    """The fields without an effect, given the other values: `elevation`, where each frame has its own."""
    return {"elevation"} if values.get("orbit") == "list" and _has_list(values, "elevations") else set()


def show_orbit(request: VideoRequest) -> None:
    """Show a plot of the camera's path."""
    orbit = st.session_state["orbit_shown"] = orbit_of(request)
    low, high = min(orbit[0]), max(orbit[0])
    plot = _orbit_plot(*orbit, st.context.theme.type == "dark")
    about = f"The orbit: {request.frames} views around the object, at elevations of {low:.4g}° to {high:.4g}°"
    with room("orbit_plot", plot.size):
        st.image(plot, width="stretch", output_format="PNG", alt=about)
    if request.options.get("orbit") == "dynamic" and st.session_state.get("new_seed"):
        st.caption("Each new seed draws another orbit than this one.", text_alignment="center")


def choose_views(version: Version) -> None:
    """Draw the widgets of the angles of a clip's views, where the version has them."""
    fields = base_fields(version.name)
    if lists := [fields[name] for name in ("azimuths", "elevations") if name in fields]:
        for field in lists:
            draw(field, version)
        about = "The views that the model makes unless others are given."
        st.button(
            "Start from the model's own",
            icon=":material/restart_alt:",
            help=about,
            on_click=_set_own_views,
            args=(version,),
        )


def _set_own_views(version: Version) -> None:
    request, fields = ViewsRequest(version.name), base_fields(version.name)
    for name, values in zip(("elevations", "azimuths"), request.family.degrees(request), strict=True):
        set_value(fields[name], version, values)


def show_views(request: ViewsRequest) -> None:
    """Show a plot of the views, in the order in which the walk goes through them."""
    elevations, azimuths = request.family.degrees(request)
    views = sorted(((a - azimuths[0]) % 360, e) for a, e in zip(azimuths[1:], elevations[1:], strict=True))
    views.append((360.0, elevations[0]))  # the input's own, which is drawn as the last
    plot = _orbit_plot(tuple(e for _, e in views), tuple(a for a, _ in views), st.context.theme.type == "dark")
    about = f"The views: {', '.join(f'{azimuth:.4g}°' for azimuth, _ in views[:-1])} around the object from the clip's"
    with room("orbit_plot", plot.size):
        st.image(plot, width="stretch", output_format="PNG", alt=about)
    st.caption(
        f"{len(views) - 1} new views; the line is the walk's way, once around while the clip goes on.",
        text_alignment="center",
    )


def _fill_lists(version: Version) -> None:
    """Fill empty lists with the orbit that was shown before."""
    if st.session_state["orbit"] == "list" and not any(
        _has_list(st.session_state, name) for name in ORBITS["list"].options
    ):
        _set_lists(st.session_state.get("orbit_shown", ((), ())), version)


def _set_even_orbit(version: Version) -> None:
    fields = base_fields(version.name)
    values = {name: value_of(fields[name], version) for name in ("frames", "elevation")}
    _set_lists(orbit_of(VideoRequest.fitting(version.name, values)), version)


def _set_lists(orbit: tuple[Sequence[float], Sequence[float]], version: Version) -> None:
    lists = ORBITS["list"].options
    for name, values in zip(("elevations", "azimuths"), orbit, strict=True):
        set_value(lists[name], version, [round(value, 1) for value in values])


def _has_list(values: Mapping[Any, Any], name: str) -> bool:
    """Whether a list is not empty, as numbers or as the text of a widget."""
    value = values.get(name) or ()
    return bool(value.strip() if isinstance(value, str) else value)


@st.cache_data(max_entries=16, show_spinner=False)
def _orbit_plot(elevations: tuple[float, ...], azimuths: tuple[float, ...], dark: bool) -> Image.Image:
    return draw_orbit(elevations, azimuths, dark=dark)
