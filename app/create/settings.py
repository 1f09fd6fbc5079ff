"""The widgets of a clip's settings, most of them under "Research settings", and the request of their values.

They have one state, on whichever page they are drawn.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Container, Iterable
from contextlib import suppress
from itertools import groupby
from typing import Any

import streamlit as st

from app.create.charts import show_curves
from app.create.fields import (
    FOLLOWED,
    FOLLOWING,
    KEPT,
    base_fields,
    draw,
    followed_key,
    options_of,
    put,
    set_all,
    set_value,
    value_of,
    with_options,
)
from app.create.loras import any_loras, choose_loras
from app.create.orbit import choose_orbit, choose_views, show_orbit, show_views, without_effect
from app.presets import CALM, LIVELY
from app.undivided import undivided
from sgm import (
    ALL_VERSIONS,
    SAMPLERS,
    Field,
    UserError,
    Version,
    VideoRequest,
    ViewsRequest,
    all_fields,
    best_version,
    request_class,
    version_status,
)

_FIRST = ("camera", "orbit", "motion_bucket", "depth", "elevation", "elevations", "azimuths", "fps", "steps", "seed")
_WITH_PICTURE = ("fit",)
_SWITCHES = ("new_seed", "whole_ranges", "research")
_PRESETS = {
    "Balanced": ("The model's own values.", {}),
    "Calm": ("Motion 60: little moves, and little tears.", CALM),
    "Lively": ("Motion 200: much moves.", LIVELY),
    "Quick draft": ("{draft} steps instead of {steps}: to see what a picture may become.", {"steps": 0}),
}

PRESETS = tuple(_PRESETS)  # their names


def current_version() -> Version:
    """The chosen version, also before its widget is drawn, since the picture is drawn above it."""
    if "version" not in st.session_state:
        st.session_state["version"] = best_version()
    return ALL_VERSIONS[st.session_state["version"]]


def current_size() -> tuple[int, int]:
    """(width, height) in pixels, also before their widgets are drawn; the version's own while they are invalid."""
    version = current_version()
    width, height = _size(version)
    if width and height and width % version.multiple == 0 and height % version.multiple == 0:
        return width, height
    return version.width, version.height


@undivided()
def follow_picture() -> None:
    """Give a picture that has just been opened, or meets another model, the size of its shape: upright or the own one.

    A size that was set by hand, or came with a clip or an address, stays.
    """
    version, key = current_version(), _opened_key()
    seen, given = _sized().get(version.name, ("", (version.width, version.height)))
    if key and key != seen:
        if given == _size(version):
            image = st.session_state["opened"].image
            given = _size_for(version, upright=image.height > image.width)
            _use(dict(zip(("width", "height"), given, strict=True)), version)
        _sized()[version.name] = key, given


def size_for(request: VideoRequest, upright: bool) -> tuple[int, int]:
    """(width, height) of a clip of another picture: of its shape, unless the request's size was set by hand."""
    version = current_version()
    _, given = _sized().get(version.name, ("", (version.width, version.height)))
    return _size_for(version, upright) if given == request.size else request.size


def _sized() -> dict[str, tuple[str, tuple[int, int] | None]]:
    """Version -> the picture that it was last shown, and the size that pictures gave it; None for one set by hand."""
    return st.session_state.setdefault("sized", {})


def _opened_key() -> str:
    opened = st.session_state.get("opened")
    return opened.key if opened else ""


def _size(version: Version) -> tuple[int, int]:
    width, height = (value_of(base_fields(version.name)[side], version) for side in ("width", "height"))
    return width, height


def _size_for(version: Version, upright: bool) -> tuple[int, int]:
    """The version's own size or, for an upright picture, the upright one that suits it, if there is one."""
    own = version.width, version.height
    return next((size for size in version.sizes if size[1] > size[0]), own) if upright else own


def choose_version() -> Version:
    """Draw the widget of the model version."""
    st.selectbox(
        "Model",
        list(ALL_VERSIONS),
        list(ALL_VERSIONS).index(current_version().name),
        format_func=_version_title,  # constant, since Streamlit identifies choices by their titles
        key="version",
        persist_state=KEPT,
    )
    version = current_version()
    _follow_version(version)
    _follow_choices(version)
    return version


def choose_settings(version: Version) -> VideoRequest:
    """Draw the widgets of how a version's clip moves; the request of all widgets' values, drawn here or not.

    Raises UserError, after all are drawn, where values are invalid or contradict each other.
    """
    fields = base_fields(version.name)
    if "camera" in fields:
        draw(fields["camera"], version)
    if "orbit" in fields:
        choose_orbit(fields["orbit"], version)
    for name in ("motion_bucket", "depth", "elevation"):
        if name in fields and ("orbit" not in fields or name not in without_effect(st.session_state)):
            draw(fields[name], version, slider=True)
    choose_views(version)
    orbit = st.container()
    left, right = st.columns(2)
    with left:
        draw(fields["fps"], version, slider=True)
    with right:
        draw(fields["steps"], version, slider=True, disabled=_follow_list(version))
    left, right = st.columns(2, vertical_alignment="bottom")
    with left:
        draw(fields["seed"], version, disabled=bool(st.session_state.get("new_seed")))
    right.toggle("New seed each time", new_seed(), key="new_seed", persist_state=KEPT)
    _choose_size(version)
    if any_loras(version):
        choose_loras(version)
    request = _request(version)
    if note := version.size_note(*request.size):
        st.caption(f":material/warning: {note}")
    if request.family.orbits:
        with orbit:
            show_orbit(request)
    if isinstance(request, ViewsRequest):
        with orbit:
            show_views(request)
    return request


def current_request() -> VideoRequest:
    """The request of all widgets' values, drawn or not. Raises UserError where they are invalid."""
    return _request(current_version())


def choose_research(version: Version, request: VideoRequest | None) -> None:
    """Draw the fold of the other fields' widgets, and beside them the charts of the request, if there is one."""
    # Its state is kept in Python, so that it is as it was left, and nobody pays for charts in a fold.
    st.session_state["fold"] = bool(st.session_state.get("research"))
    research = st.expander("Research settings", key="fold", on_change=_note_fold)
    with research:
        left, right = st.columns(2, gap="large")
        with left:
            others = (*_FIRST, *_WITH_PICTURE, "lora")
            _draw_all((field for name, field in base_fields(version.name).items() if name not in others), version)
            if not any_loras(version):
                choose_loras(version)
            _choose_ranges(version)
        if research.open and request:
            with right, st.container(key="charts_place"):
                show_curves(request)


def _note_fold() -> None:
    st.session_state["research"] = st.session_state["fold"]


def draft_steps(version: Version) -> int:
    """How many steps a quick draft takes."""
    return max(4, version.steps // 3)


def new_seed() -> bool:
    """Whether each clip gets a seed of its own."""
    return bool(st.session_state.get("new_seed"))


def ready(request: VideoRequest) -> VideoRequest:
    """The request to submit: with a random seed, if "New seed each time" is on."""
    if not new_seed():
        return request
    return request.replace(seed=secrets.randbelow(int(request.fields()["seed"].high) + 1))


def keep_seed(seed: int) -> None:
    """Set the seed, for all clips from now on."""
    set_value(all_fields()["seed"], current_version(), seed)
    put("new_seed", False)


def use(request: VideoRequest) -> None:
    """Set the fields to a request, but for the seed and the switches."""
    seed = value_of(all_fields()["seed"], current_version())
    restore(request.replace(seed=request.seed if seed is None else seed), switched_on())


def switched_on() -> dict[str, str]:
    """The switches that are on, as query parameters."""
    return {name: "on" for name in _SWITCHES if st.session_state.get(name)}


def restore(request: VideoRequest, switched_on: Container[str] = ()) -> None:
    """Set the fields to a request, before they are drawn, and the switches that are named on."""
    put("version", request.version)
    st.session_state["followed"] = request.model
    for name in _SWITCHES:
        if name == "new_seed" or name in switched_on:
            put(name, name in switched_on)
    set_all(request, request.model)
    by_picture = request.size in {_size_for(request.model, upright) for upright in (False, True)}
    _sized()[request.version] = _opened_key(), request.size if by_picture else None


def pressed(version: Version) -> dict[str, bool]:
    """The buttons that set several fields, and whether each is the present one."""
    groups = ("preset", "ending", "size") if len(version.sizes) > 1 else ("preset", "ending")
    now = {group: _present(group, version) for group in groups}
    return {
        f"{group}_{name}": values == now[group] for group in groups for name, values in _offers(group, version).items()
    }


def unready() -> dict[str, str]:
    """Titles of the versions that cannot run, and what there is of their weights."""
    states = {name: version_status(name).state for name in ALL_VERSIONS}
    return {_version_title(name): state for name, state in states.items() if state != "ready"}


def values(version: Version) -> dict[str, str]:
    """Labels of number fields -> their values, as people see them."""
    fields = with_options(base_fields(version.name).values(), version)
    values = {field.label: (field, value_of(field, version)) for field in fields if field.kind in (int, float)}
    return {label: field.text(value) for label, (field, value) in values.items() if value is not None}


def labelled(message: str) -> str:
    """A message with the labels that people see in place of the fields' names, as "Lowest scale" for min_guidance."""
    labels = {name: field.label for name, field in all_fields().items() if field.label.lower() != name}
    names = "|".join(map(re.escape, labels))
    # Some names are words: these are names where they start a sentence about a value.
    pattern = rf"\b(?:{names})\b(?= must| does)|\b(?:{'|'.join(name for name in labels if '_' in name)})\b"
    return re.sub(pattern, lambda name: labels[name[0]], message)


def _follow_list(version: Version) -> bool:
    """Whether a list of sigmas says how many steps there are; then these are set to its length."""
    fields = {field.name: field for field in with_options(base_fields(version.name).values(), version)}
    if "sigmas" not in fields:
        return False
    with suppress(UserError):  # which is said where the list stands
        sigmas = value_of(fields["sigmas"], version)
        set_value(fields["steps"], version, max(1, len(sigmas) - (sigmas[-1:] == (0.0,))))
    return True


def _request(version: Version) -> VideoRequest:
    values = {
        field.name: value_of(field, version) for field in with_options(base_fields(version.name).values(), version)
    }
    if "sigmas" in values:
        del values["steps"]
    return request_class(version.name)(
        version.name, **{name: value for name, value in values.items() if value is not None}
    )


def _draw_all(fields: Iterable[Field], version: Version) -> None:
    """Draw fields: numbers beside each other; fields with choices by themselves, with their options below."""
    for numbers, group in groupby(fields, lambda field: field.kind in (int, float)):
        members = list(group)
        if numbers:
            with st.container(horizontal=True, vertical_alignment="bottom", key=f"numbers_{members[0].name}"):
                for field in members:
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
    is_on, about = bool(st.session_state.get("whole_ranges")), f"All that is accepted: {ends}."
    st.toggle("Sliders over the whole range", is_on, key="whole_ranges", help=about, persist_state=KEPT)


@undivided()
def _follow_version(version: Version) -> None:
    """After a change of version, give fields of `FOLLOWING` the new version's default, unless they were set."""
    before: Version = st.session_state.get("followed", version)
    st.session_state["followed"] = version
    for name in FOLLOWING:
        field = all_fields()[name]
        if value_of(field, before) == getattr(before, name):
            set_value(field, version, getattr(version, name))


@undivided()
def _follow_choices(version: Version) -> None:
    """After a change of speed or sampler, give what depends on it the new default, unless it was set."""
    fields, kind = all_fields(), request_class(version.name)
    own = kind(version.name)
    for chooser, followers in FOLLOWED.items():
        key, now = followed_key(chooser, version), value_of(fields[chooser], version)
        before = st.session_state.get(key, getattr(own, chooser))
        st.session_state[key] = now
        with suppress(UserError):  # of a sampler that the version does not take, which is said
            old, new = (kind(version.name, **{chooser: value}).settings() for value in (before, now))
            for name in followers if now != before else ():
                if name in old and name in new and value_of(fields[name], version) == old[name]:
                    set_value(fields[name], version, new[name])


def ends_at_last() -> bool:
    """Whether the clip is to end at a last picture."""
    return _present("ending", current_version()).get("ends") == "last"


def choose_end() -> None:
    """Draw the buttons that say where the clip ends, if the version leaves a choice."""
    version = current_version()
    if request_class(version.name)(version.name).family.bounded:
        about = "Two pictures take twice the work: the clip is made from either end. A loop begins and ends at one."
        _offer("ending", "End", about, version)


def choose_preset(version: Version) -> None:
    """Draw a button for each preset, the present one marked."""
    counts = {"draft": draft_steps(version), "steps": version.steps}
    about = " ".join(f"**{name}**: {_PRESETS[name][0].format(**counts)}" for name in _presets(version))
    _offer("preset", "Preset", about, version)


def _choose_size(version: Version) -> None:
    if len(version.sizes) > 1:
        about = (
            f"Sizes that suit the model, whose own is {version.width} × {version.height}. A quick one has fewer "
            "pixels, and takes less time. More are below, in its fields."
        )
        _offer("size", "Size", about, version)


def _offer(group: str, label: str, about: str, version: Version) -> None:
    """Draw buttons that set several fields at once, the present one marked."""
    offers, now = _offers(group, version), _present(group, version)
    with st.container(key=group):
        st.markdown(f"{label}{': custom' if now not in offers.values() else ''}", help=about)
        # Buttons, which have no state: the state of another widget, sent late by a browser together with a slider's
        # change, would undo both.
        with st.container(horizontal=True, gap="xsmall", key=f"{group}s"):
            for name, values in offers.items():
                chosen = values == now
                st.button(
                    name,
                    key=f"{group}_{name}",
                    type="primary" if chosen else "secondary",
                    icon=":material/check:" if chosen else None,
                    on_click=_press,
                    args=(group, values, version),
                )


def _offers(group: str, version: Version) -> dict[str, dict[str, Any]]:
    """What the buttons of a group, "preset", "ending" or "size", set."""
    if group == "ending":
        between = {ends: {"sampler": "bounded", "ends": ends} for ends in ("last", "loop")}
        open_end = {"sampler": version.sampler, "ends": "loop"}
        return {"Anywhere": open_end, "At a last picture": between["last"], "Where it began": between["loop"]}
    if group == "size":
        return {_size_title(w, h, version): {"width": w, "height": h} for w, h in version.sizes}
    return _presets(version)


def _size_title(width: int, height: int, version: Version) -> str:
    quick = width * height < version.width * version.height
    return f"{width} × {height}" + (", quick" if quick else "")


def _present(group: str, version: Version) -> dict[str, Any]:
    """The present values of the fields that a group sets."""
    names, fields = next(iter(_offers(group, version).values())), all_fields()
    present = {name: value_of(fields[name], version) for name in names}
    if group == "ending" and not SAMPLERS[present["sampler"]].bounded:
        return _offers(group, version)["Anywhere"]
    return present


def _press(group: str, values: dict[str, Any], version: Version) -> None:
    _use(values, version)
    if group == "size":
        _sized()[version.name] = _opened_key(), None


def _use(values: dict[str, Any], version: Version) -> None:
    for name, value in values.items():
        set_value(all_fields()[name], version, value)


def _presets(version: Version) -> dict[str, dict[str, int]]:
    """The presets that differ from each other for a version, and the values that they set."""
    presets: dict[str, dict[str, int]] = {}
    for name in _PRESETS:
        if (values := _preset(name, version)) not in presets.values():
            presets[name] = values
    return presets


def _preset(name: str, version: Version) -> dict[str, int]:
    """The values that a preset sets, of the fields that a version has."""
    defaults = {field: getattr(version, field) for field in ("motion_bucket", "steps", "fps")}
    changes: dict[str, int] = dict(_PRESETS[name][1])
    if "steps" in changes:
        changes["steps"] = draft_steps(version)
    return {field: value for field, value in (defaults | changes).items() if field in base_fields(version.name)}


def _version_title(name: str) -> str:
    version = ALL_VERSIONS[name]
    return f"{version.title} · {version.frames} frames · {version.width} × {version.height}"
