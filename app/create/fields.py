"""Widgets of a request's fields, drawn from the table of fields; their values are in Streamlit's session state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import streamlit as st

from sgm import VIEW_VERSIONS, Field, Version, VideoRequest, all_fields, default_of, request_class

# Fields with a default for each version, but one value for all versions once it is set.
FOLLOWING = ("motion_bucket",)
# Fields -> those whose defaults depend on them.
FOLLOWED = {"speed": ("steps", "schedule"), "sampler": ("guider", "max_guidance")}
KEPT = "session"  # `persist_state` of widgets: their values outlive runs, and pages, in which they are not drawn
_EMPTY = {"decode_chunk": "All frames"}  # fields that may stay empty, and what that means
_RUNS = 2  # after code has set a field, in which the browser is told its value
_EXACT = "%.15g"  # 15 digits, without trailing zeros


@cache
def base_fields(version: str) -> dict[str, Field]:
    """The fields that a version has whatever is chosen, by name, in the table's order: without options of choices."""
    fields = request_class(version)(version).fields()
    choices = (choice for field in fields.values() if field.choices for choice in field.choices().values())
    options = {option.name for choice in choices for option in choice.options.values()}
    return {name: field for name, field in fields.items() if name not in options}


def options_of(field: Field, version: Version) -> list[Field]:
    """The options of a field's present choice, as of a sampler."""
    return list(field.choices()[value_of(field, version)].options.values()) if field.choices else []


def with_options(fields: Iterable[Field], version: Version) -> Iterator[Field]:
    """The fields, each followed by the options of its present choice."""
    for field in fields:
        yield field
        yield from with_options(options_of(field, version), version)


def key_of(field: Field, version: Version) -> str:
    """The field's key in the session state, set to the field's default if it is new.

    A field with a default for each version has a key for each version, so that each has a value of its own; so have
    those of views: lists with another number in each, an object's share of the frame.
    """
    of_views = version.name in VIEW_VERSIONS and (field.kind is tuple or hasattr(version, field.name))
    shared = (field.default is not None and not of_views) or field.name in FOLLOWING
    key = field.name if shared else f"{field.name}:{version.name}"
    if key not in st.session_state:
        st.session_state[key] = _initial(field, version)
    return key


def value_of(field: Field, version: Version) -> Any:
    """The widget's value, drawn or not; None if it is empty. Raises UserError for a list with other text."""
    value = st.session_state[key_of(field, version)]
    return field.parse(value) if field.kind is tuple else value


def put(key: str, value: Any) -> None:
    """Set a widget's value before it is drawn."""
    st.session_state[key] = value
    if key.partition(":")[0] in _EMPTY:
        st.session_state.setdefault("told", {})[key] = 0


def keep_reshaped(key: str, shape: object) -> None:
    """Set a widget to its own value where its range or choices are others than before.

    To Streamlit it is another widget then, which has the value that was kept when it last became another.
    """
    shapes: dict[str, object] = st.session_state.setdefault("shapes", {})
    if shapes.get(key, shape) != shape:
        put(key, st.session_state[key])
    shapes[key] = shape


def set_value(field: Field, version: Version, value: Any) -> None:
    """Set the widget's value, None for empty, before it is drawn."""
    key = key_of(field, version)
    put(key, field.text(value) if field.kind is tuple else value)


def followed_key(name: str, version: Version) -> str:
    """Where the value of a field stands, such as the speed, at whose defaults a version's widgets were set."""
    return f"{name}_of:{version.name}"


def set_all(request: VideoRequest, version: Version) -> None:
    """Set every field to the request's value, and fields that the request does not have to their defaults."""
    st.session_state["widened"] = {}
    for name in FOLLOWED:
        st.session_state[followed_key(name, version)] = getattr(request, name)
    choices, fields = request.choices(), request.fields()
    for name, field in all_fields().items():
        if name in fields:
            set_value(field, version, None if name in _EMPTY and name not in choices else getattr(request, name))
        else:
            put(key_of(field, version), _initial(field, version))


def draw(
    field: Field, version: Version, *, slider: bool = False, disabled: bool = False, on_change: Callable | None = None
) -> None:
    """Draw the widget. slider: draw numbers with a usual range as sliders, widened where the value is outside it."""
    key = key_of(field, version)
    # The value is passed besides the session state, for browsers that draw the widget only after a later run.
    value, about = st.session_state[key], _help_text(field, version)
    if field.choices:
        titles = _titles(field)
        if len(titles) > 3:
            names = list(titles)
            st.selectbox(
                field.label, names, names.index(value), titles.__getitem__, key, about, on_change, persist_state=KEPT
            )
        else:
            st.segmented_control(
                field.label,
                titles,
                default=value,
                required=True,
                format_func=titles.__getitem__,
                key=key,
                help=about,
                on_change=on_change,
                persist_state=KEPT,
            )
    elif field.kind is tuple:
        if field.unit:  # a list with a number for each frame
            st.text_area(
                f"{field.label}, in {field.unit}", value, key=key, help=about, height="content", persist_state=KEPT
            )
        else:
            st.text_input(field.label, value, key=key, help=about, persist_state=KEPT)
    elif slider and field.usual:
        _draw_slider(field, key, value, about, disabled)
    else:
        integer = field.kind is int
        step = version.multiple if field.unit == "pixels" else field.step or (1 if integer else 0.01)
        if field.name in _EMPTY:
            # A browser lets a field be emptied whose start value is empty, and may draw what code has set a run later.
            told: dict[str, int] = st.session_state.setdefault("told", {})
            told[key] = told.get(key, _RUNS) + 1
            if told[key] <= _RUNS:
                st.session_state[key] = value
            value, on_change = None, lambda: told.update({key: _RUNS})
        st.number_input(
            field.label,
            field.kind(field.low),
            field.kind(field.high),
            value,
            field.kind(step),
            "%d" if integer else _EXACT,
            key,
            about,
            on_change,
            placeholder=_EMPTY.get(field.name),
            disabled=disabled,
            persist_state=KEPT,
        )


def _draw_slider(field: Field, key: str, value: Any, about: str, disabled: bool) -> None:
    usual = field.usual or (field.low, field.high)
    shown = (field.low, field.high) if st.session_state.get("whole_ranges") else usual
    # The widened range never shrinks: the handle would jump while it is dragged.
    widened = st.session_state.setdefault("widened", {})
    low, high = widened.get(key, (value, value))
    widened[key] = low, high = min(low, value), max(high, value)
    step = field.kind(field.step or 1)
    ends = field.kind(min(low, shown[0])), field.kind(max(high, shown[1]))
    keep_reshaped(key, ends)
    st.slider(
        field.label,
        *ends,
        value,
        step,
        "%d" if field.kind is int else _EXACT + ("°" if field.unit == "degrees" else ""),
        key,
        about,
        on_change=None if field.kind is int else _round_to_step,
        args=(key, step),
        disabled=disabled,
        persist_state=KEPT,
    )
    if not usual[0] <= value <= usual[1]:
        st.caption(f":material/warning: Outside the usual range, {usual[0]:g} to {usual[1]:g}.")


def _round_to_step(key: str, step: float) -> None:
    """Round a slider's value to its step: browsers add steps up, with rounding errors."""
    st.session_state[key] = round(round(st.session_state[key] / step) * step, 9)


def _titles(field: Field) -> Mapping[str, str]:
    """Choice -> title, all different, since Streamlit identifies choices by their titles."""
    titles = {name: field.title(name) for name in field.choices()} if field.choices else {}
    counts = Counter(titles.values())
    return {name: f"{title} ({name})" if counts[title] > 1 else title for name, title in titles.items()}


def _help_text(field: Field, version: Version) -> str:
    if field.default is not None or field.name in _EMPTY:
        return field.help
    return f"{field.help} {version.title} starts with {field.title(default_of(field, version.name))}."


def _initial(field: Field, version: Version) -> Any:
    """A widget's initial value: the field's default."""
    if field.name in _EMPTY:
        return None
    value = default_of(field, version.name)
    return field.text(value) if field.kind is tuple else value
