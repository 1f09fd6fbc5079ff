"""One field of a request as a widget, drawn by its row of the table of fields; its value lives in the session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import streamlit as st

from sgm import Field, Version, VideoRequest, all_fields

# Fields whose default is the version's own although a value that was set serves every version.
FOLLOWING = ("motion_bucket",)
_EMPTY = {"decode_chunk": "All frames"}  # fields that may stay empty, and what that means
_EXACT = "%.15g"  # 15 digits, without the zeros at their end


@cache
def own_fields(version: str) -> dict[str, Field]:
    """The fields of a version whatever is chosen, by name and in the table's order: all but the choices' options."""
    fields = VideoRequest(version).fields()
    choices = (choice for field in fields.values() if field.choices for choice in field.choices().values())
    options = {option.name for choice in choices for option in choice.options.values()}
    return {name: field for name, field in fields.items() if name not in options}


def options_of(field: Field, version: Version) -> list[Field]:
    """The fields that a chooser's present choice brings."""
    return list(field.choices()[value_of(field, version)].options.values()) if field.choices else []


def taken(fields: Iterable[Field], version: Version) -> Iterator[Field]:
    """The fields, each followed by the options of what is chosen."""
    for field in fields:
        yield field
        yield from taken(options_of(field, version), version)


def key_of(field: Field, version: Version) -> str:
    """The field's key in the session, which is set to the start value if it is new.

    A field whose default is the version's own has a key for each version, so that each goes on with its own value.
    """
    shared = field.default is not None or field.name in FOLLOWING
    key = field.name if shared else f"{field.name}:{version.name}"
    if key not in st.session_state:
        st.session_state[key] = _start(field, version)
    return key


def value_of(field: Field, version: Version) -> Any:
    """What the widget holds, drawn or not; None where it is empty. Raises UserError for a list of no numbers."""
    value = st.session_state[key_of(field, version)]
    return field.parse(value) if field.kind is tuple else value


def set_value(field: Field, version: Version, value: Any) -> None:
    """Set the field; None: empty. To be called before it is drawn."""
    st.session_state[key_of(field, version)] = field.text(value) if field.kind is tuple else value


def set_all(request: VideoRequest, version: Version) -> None:
    """Set every field to the request's value, and those that it does not take back to their start."""
    st.session_state["widened"] = {}
    chosen, own = request.choices(), request.fields()
    for name, field in all_fields().items():
        if name in own:
            set_value(field, version, None if name in _EMPTY and name not in chosen else getattr(request, name))
        else:
            st.session_state[key_of(field, version)] = _start(field, version)


def draw(
    field: Field, version: Version, *, slider: bool = False, disabled: bool = False, on_change: Callable | None = None
) -> None:
    """Draw the widget. slider: for a number with a usual range, which grows to hold whatever value is set."""
    key = key_of(field, version)
    # The value is in the session already; a browser that draws the widget only after a later run would not know it.
    value, about = st.session_state[key], _help(field, version)
    if field.choices:
        titles = _titles(field)
        if len(titles) > 3:
            names = list(titles)
            st.selectbox(field.label, names, names.index(value), titles.__getitem__, key, about, on_change)
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
            )
    elif field.kind is tuple:
        if field.unit:  # one for each frame, then
            st.text_area(f"{field.label}, in {field.unit}", value, key=key, help=about, height="content")
        else:
            st.text_input(field.label, value, key=key, help=about)
    elif slider and field.usual:
        _draw_slider(field, key, value, about)
    else:
        whole = field.kind is int
        step = version.multiple if field.unit == "pixels" else field.step or (1 if whole else 0.01)
        st.number_input(
            field.label,
            field.kind(field.low),
            field.kind(field.high),
            value,
            field.kind(step),
            "%d" if whole else _EXACT,
            key,
            about,
            placeholder=_EMPTY.get(field.name),
            disabled=disabled,
        )


def _draw_slider(field: Field, key: str, value: Any, about: str) -> None:
    usual = field.usual or (field.low, field.high)
    shown = (field.low, field.high) if st.session_state.get("whole_ranges") else usual
    # A range that shrank with the value would take the slider out of the hand that moves it.
    widened = st.session_state.setdefault("widened", {})
    low, high = widened.get(key, (value, value))
    widened[key] = low, high = min(low, value), max(high, value)
    step = field.kind(field.step or 1)
    st.slider(
        field.label,
        field.kind(min(low, shown[0])),
        field.kind(max(high, shown[1])),
        value,
        step,
        "%d" if field.kind is int else _EXACT + ("°" if field.unit == "degrees" else ""),
        key,
        about,
        on_change=None if field.kind is int else _onto_step,
        args=(key, step),
    )
    if not usual[0] <= value <= usual[1]:
        st.caption(f":material/warning: Outside the usual range, {usual[0]:g} to {usual[1]:g}.")


def _onto_step(key: str, step: float) -> None:
    """A slider that was moved: browsers add its steps up, with the errors of floats."""
    st.session_state[key] = round(round(st.session_state[key] / step) * step, 9)


def _titles(field: Field) -> Mapping[str, str]:
    """The choices' titles, all different: Streamlit tells choices apart by them."""
    titles = {name: field.title(name) for name in field.choices()} if field.choices else {}
    counts = Counter(titles.values())
    return {name: f"{title} ({name})" if counts[title] > 1 else title for name, title in titles.items()}


def _help(field: Field, version: Version) -> str:
    if field.default is not None or field.name in _EMPTY:
        return field.help
    return f"{field.help} {version.title} starts with {field.title(_start(field, version))}."


def _start(field: Field, version: Version) -> Any:
    """What a widget holds at first."""
    if field.default is not None:
        return field.text(field.default) if field.kind is tuple else field.default
    if field.name in _EMPTY:
        return None
    return getattr(_usual(version.name), field.name, getattr(version, field.name, None))


@cache
def _usual(version: str) -> VideoRequest:
    return VideoRequest(version)
