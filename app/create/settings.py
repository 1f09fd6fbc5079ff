"""The widgets of a clip's settings, most of them under "Research settings", and the request of their values."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby

import streamlit as st
from streamlit.errors import StreamlitAPIException

from app.create.charts import show_curves
from app.create.fields import FOLLOWING, base_fields, draw, options_of, set_all, set_value, value_of, with_options
from app.create.orbit import choose_orbit, show_orbit, without_effect
from sgm import VERSIONS, Field, Version, VideoRequest, all_fields, best_version

_FIRST = ("camera", "orbit", "motion_bucket", "elevation", "fps", "steps", "seed")
_WITH_PICTURE = ("fit",)
_SWITCHES = ("version", "new_seed", "whole_ranges")
_PRESETS = {
    "Balanced": ("The model's own values.", {}),
    "Calm": ("Motion 60: little moves, and little tears.", {"motion_bucket": 60}),
    "Lively": ("Motion 200: much moves.", {"motion_bucket": 200}),
    "Quick draft": ("A third of the steps: to see what a picture may become.", {"steps": 1 / 3}),
}
_COLUMNS = 3  # of numbers in the research settings


def current_version() -> Version:
    """The chosen version, also before its widget is drawn, since the picture is drawn above it."""
    if "version" not in st.session_state:
        st.session_state["version"] = best_version()
    return VERSIONS[st.session_state["version"]]


def current_size() -> tuple[int, int]:
    """(width, height) in pixels, also before their widgets are drawn; the version's own while they are invalid."""
    version = current_version()
    width, height = (value_of(base_fields(version.name)[side], version) for side in ("width", "height"))
    if width and height and width % version.multiple == 0 and height % version.multiple == 0:
        return width, height
    return version.width, version.height


def choose_version() -> Version:
    """Draw the widget of the model version."""
    st.selectbox(
        "Model",
        list(VERSIONS),
        list(VERSIONS).index(current_version().name),
        format_func=_version_title,  # constant, since Streamlit identifies choices by their titles
        key="version",
    )
    return current_version()


def choose_settings(version: Version) -> VideoRequest:
    """Draw the widgets of a version's fields; the request of their values.

    Raises UserError, after all are drawn, where values are invalid or contradict each other.
    """
    fields = base_fields(version.name)
    _follow_version(version)
    _choose_preset(version)
    if "camera" in fields:
        draw(fields["camera"], version)
    if "orbit" in fields:
        choose_orbit(fields["orbit"], version)
    for name in ("motion_bucket", "elevation"):
        if name in fields and name not in without_effect(st.session_state):
            draw(fields[name], version, slider=True)
    orbit = st.container()
    left, right = st.columns(2)
    with left:
        draw(fields["fps"], version, slider=True)
    with right:
        draw(fields["steps"], version, slider=True)
    left, right = st.columns(2, vertical_alignment="bottom")
    with left:
        draw(fields["seed"], version, disabled=bool(st.session_state.get("new_seed")))
    right.toggle("New seed each time", bool(st.session_state.get("new_seed")), key="new_seed")
    with st.expander("Research settings", key="research"):
        _draw_all((field for name, field in fields.items() if name not in (*_FIRST, *_WITH_PICTURE)), version)
        _choose_ranges(version)
        request = _request(version)
        show_curves(request)
    if request.family.orbits:
        with orbit:
            show_orbit(request)
    return request


def ready(request: VideoRequest) -> VideoRequest:
    """The request to submit: with a random seed, if "New seed each time" is on."""
    if not st.session_state.get("new_seed"):
        return request
    return request.replace(seed=secrets.randbelow(int(request.fields()["seed"].high) + 1))


def restore(request: VideoRequest) -> None:
    """Set the fields to a request, before they are drawn."""
    st.session_state["version"] = request.version
    st.session_state["new_seed"] = False
    st.session_state["followed"] = request.model
    set_all(request, request.model)


@contextmanager
def keeping_undrawn() -> Iterator[None]:
    """Keep the values of widgets that are not drawn in this run, which Streamlit would delete.

    Values of drawn widgets are not set: that would undo changes made in the browser meanwhile.
    """
    for key in st.session_state.get("undrawn", ()):
        if key in st.session_state:
            st.session_state[key] = st.session_state[key]
    yield
    undrawn, names = [], {*all_fields(), *_SWITCHES}
    for key in list(st.session_state):
        if isinstance(key, str) and key.partition(":")[0] in names:
            with suppress(StreamlitAPIException):  # raised for a widget that is drawn
                st.session_state[key] = st.session_state[key]
                undrawn.append(key)
    st.session_state["undrawn"] = undrawn


def _request(version: Version) -> VideoRequest:
    values = {
        field.name: value_of(field, version) for field in with_options(base_fields(version.name).values(), version)
    }
    return VideoRequest(version.name, **{name: value for name, value in values.items() if value is not None})


def _draw_all(fields: Iterable[Field], version: Version) -> None:
    """Draw fields: numbers in columns; fields with choices by themselves, with their options below."""
    for numbers, group in groupby(fields, lambda field: field.kind in (int, float)):
        members = list(group)
        if numbers:
            for start in range(0, len(members), _COLUMNS):
                cells = members[start : start + _COLUMNS]
                for column, field in zip(st.columns(len(cells), vertical_alignment="bottom"), cells, strict=True):
                    with column:
                        draw(field, version)
            continue
        for field in members:
            draw(field, version)
            if options := options_of(field, version):
                with st.container(key=f"options_{field.name}"):
                    _draw_all(options, version)


def _choose_ranges(version: Version) -> None:
    """Draw the switch that extends sliders from the usual to the whole range."""
    sliders = [field for name, field in base_fields(version.name).items() if name in _FIRST and field.usual]
    ends = ", ".join(
        f"{field.label.lower()} {field.low:g} to {field.high:g}"
        for field in sliders
        if field.usual != (field.low, field.high)
    )
    is_on = bool(st.session_state.get("whole_ranges"))
    st.toggle("Sliders over the whole range", is_on, key="whole_ranges", help=f"All that is accepted: {ends}.")


def _follow_version(version: Version) -> None:
    """After a change of version, give fields of `FOLLOWING` the new version's default, unless they were set."""
    before: Version = st.session_state.get("followed", version)
    st.session_state["followed"] = version
    for name in FOLLOWING:
        field = all_fields()[name]
        if value_of(field, before) == getattr(before, name):
            set_value(field, version, getattr(version, name))


def _choose_preset(version: Version) -> None:
    presets: dict[str, dict[str, int]] = {}
    for name in _PRESETS:
        if (values := _preset(name, version)) not in presets.values():
            presets[name] = values
    now = {name: value_of(base_fields(version.name)[name], version) for name in presets["Balanced"]}
    about = " ".join(f"**{name}**: {_PRESETS[name][0]}" for name in presets)
    with st.container(key="preset"):
        st.markdown(f"Preset{': custom' if now not in presets.values() else ''}", help=about)
        # Buttons, which have no state: the state of another widget, sent late by a browser together with a slider's
        # change, would undo both.
        with st.container(horizontal=True, gap="xsmall", key="presets"):
            for name, values in presets.items():
                chosen = values == now
                st.button(
                    name,
                    key=f"preset_{name}",
                    type="primary" if chosen else "secondary",
                    icon=":material/check:" if chosen else None,
                    on_click=_use_preset,
                    args=(name, version),
                )


def _use_preset(name: str, version: Version) -> None:
    for field, value in _preset(name, version).items():
        set_value(base_fields(version.name)[field], version, value)


def _preset(name: str, version: Version) -> dict[str, int]:
    """The values that a preset sets, of the fields that a version has."""
    defaults = {field: getattr(version, field) for field in ("motion_bucket", "steps", "fps")}
    changes = dict(_PRESETS[name][1])
    if share := changes.pop("steps", None):
        changes["steps"] = max(4, int(version.steps * share))
    return {field: value for field, value in (defaults | changes).items() if field in base_fields(version.name)}


def _version_title(name: str) -> str:
    version = VERSIONS[name]
    return f"{version.title} · {version.frames} frames · {version.width} × {version.height}"
