"""The Sweep page: settings and values to vary, what that costs, and the grid of clips that fills."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from app import look
from app.create import settings
from app.jobs import table
from app.lab import base, grid
from sgm import Axis, Cell, UserError, VideoRequest, cells, making_order, sweep_fields, version_status
from sgm.amounts import duration

_MOST = 200  # clips of one sweep from the page
_MOST_AXES = 4
_FIRST = {"steps": "", "seed": ""}  # what a new page offers


def page() -> StreamlitPage:
    """The page, for navigation."""
    return st.Page(show_page, title="Sweep", icon=":material/grid_view:", url_path="sweep")


def show_page() -> None:
    group = _restore()
    st.title("Sweep", anchor=False)
    above, fold = st.container(), st.container()
    with fold:
        start = base.choose(group)
    with above:
        left, right = st.columns([10, 7], gap="large")
        with left:
            st.header("What varies", anchor=False)
            axes = _choose_axes()
        with right, st.container(key="start"):
            st.header("What it costs", anchor=False)
            _show_price(start, axes)
    _keep(grid.show_one_of("Sweep", group))


def command(request: VideoRequest, axes: Sequence[Axis], last: bool = False) -> str:
    """The command line that makes the same sweep. last: whether some of its clips end at a last picture."""
    varied, fields = {axis.name for axis in axes}, request.fields()
    words = ["sgm", "sweep", "PICTURE", *(["--last", "LAST"] if last else [])]
    words += [] if "version" in varied else ["--version", request.version]
    for name, value in {"seed": request.seed, **request.choices()}.items():
        if name not in varied:
            words += [f"--{name.replace('_', '-')}", fields[name].text(value).replace(", ", ",")]
    return shlex.join([*words, *(word for axis in axes for word in ("--vary", str(axis)))])


def _restore() -> str:
    """Set the rows as the session left them or, in a new one, as the address says. Returns the group to be shown."""
    if "sweep" not in st.session_state:
        given = [text.partition("=") for text in st.query_params.get_all("vary")]
        rows = {name: values for name, _, values in given if name in sweep_fields()}
        st.session_state["sweep"] = list((rows or _FIRST).items())[:_MOST_AXES]
        st.session_state["group"] = st.query_params.get("group", "")
    return st.session_state.get("group", "")


def _keep(group: str) -> None:
    """Note the group for the session, and all in the address."""
    grid.note("group", group)
    vary = [f"{name}={values}" for name, values in st.session_state["sweep"] if values]
    address = ({"group": [group]} if group else {}) | ({"vary": vary} if vary else {})
    if {name: st.query_params.get_all(name) for name in st.query_params} != address:
        st.query_params.from_dict(address)


def _choose_axes() -> list[Axis] | None:
    """Draw a row for each setting that varies. Returns the axes; None where a row is wrong, which is said there."""
    rows: list[tuple[str, str]] = st.session_state["sweep"]
    fields, axes, wrong = sweep_fields(), [], False
    for i, (name, text) in enumerate(list(rows)):
        others = {other for other, _ in rows} - {name}
        names = [other for other in fields if other not in others]
        setting, values, out = st.columns([5, 8, 1], vertical_alignment="bottom")
        with setting:
            chosen = st.selectbox(
                f"Setting {i + 1}", names, names.index(name), format_func=_label, key=f"vary_{i}_{name}"
            )
        if chosen != name:
            rows[i] = chosen or name, ""
            st.rerun()
        with values:
            rows[i] = name, _choose_values(name, text, f"Values of {_label(name)}", f"values_{i}_{name}")
        out.button(
            f"Leave out {_label(name)}",
            key=f"without_{i}",
            icon=":material/close:",
            type="tertiary",
            on_click=rows.__delitem__,
            args=(i,),
        )
        if rows[i][1]:
            try:
                axes.append(Axis.parse(f"{name}={rows[i][1]}"))
            except UserError as error:
                wrong = True
                st.error(look.plain(settings.labelled(str(error))))
    left = next(name for name in fields if name not in dict(rows))
    full = len(rows) >= _MOST_AXES
    st.button("Another setting", icon=":material/add:", disabled=full, on_click=rows.append, args=((left, ""),))
    return None if wrong else axes


def _label(name: str) -> str:
    return sweep_fields()[name].label


def _choose_values(name: str, text: str, label: str, key: str) -> str:
    """Draw the widget of a setting's values. Returns them as text."""
    field = sweep_fields()[name]
    if field.choices:
        known = [choice for choice in field.choices() if name != "version" or version_status(choice).state == "ready"]
        given = [choice for choice in text.split(",") if choice in known]
        return ",".join(st.multiselect(label, known, given, format_func=field.title, key=key))
    if field.kind is str:
        return st.text_input(label, text, key=key, placeholder="pan:0.5,pan:1", help=field.help).strip()
    example = "0,12.5 / 0,25" if field.kind is tuple else "1..4" if name == "seed" else "10,25,50 or 10..50..20"
    form = "Lists have / between them." if field.kind is tuple else "A range is START..END or START..END..STEP."
    about = f"{field.help} From {field.low:g} to {field.high:g}. {form}"
    return st.text_input(label, text, key=key, placeholder=example, help=about).strip()


def _show_price(start: base.Base, axes: list[Axis] | None) -> None:
    """Draw the price of the sweep, the button that starts it, and the command that makes the same."""
    st.caption(f"From {start.said()}" if start.request and start.picture else start.said())
    of: list[Cell] = []
    to_last = False
    if start.request and axes:
        try:
            if (count := math.prod(len(axis.values) for axis in axes)) > _MOST:
                raise UserError(f"These are {count:,} clips, more than the {_MOST} of a sweep here: vary less.")
            made = cells(start.request, axes)
            to_last = any(cell.request.takes_last for cell in made)
            if to_last and start.picture and start.picture.last is None:
                raise UserError(
                    'Some of these clips end at a last picture: choose it, with the end "At a last picture".'
                )
            of = made
            st.markdown(_price([cell.request for cell in of]))
        except UserError as error:
            st.error(look.plain(settings.labelled(str(error))))
    elif start.request and axes is not None:
        st.caption("Give values to a setting: then the price stands here.")
    with st.container(horizontal=True):
        if st.button("Start", type="primary", icon=":material/play_arrow:", disabled=not (of and start.picture)):
            numbers = {cell: i for i, cell in enumerate(of)}
            order = [numbers[cell] for cell in making_order(of)]
            base.start(start, [cell.request for cell in of], [str(axis) for axis in axes or ()], order, {})
            st.rerun()
        if of and start.request:
            with st.popover("Command", icon=":material/terminal:"):
                paths = "PICTURE and LAST stand for the paths" if to_last else "PICTURE stands for the path"
                st.caption(f"Makes the same on the command line. {paths} of the picture{'s' * to_last}.")
                st.code(command(start.request, axes or (), to_last), language="sh", wrap_lines=True)


def _price(requests: Sequence[VideoRequest]) -> str:
    clips = "1 clip" if len(requests) == 1 else f"{len(requests)} clips"
    evaluations = sum(request.evaluations for request in requests)
    took = duration(table().seconds_for_all(requests))
    return f"**{clips}** · {evaluations:,} evaluation{'s' * (evaluations > 1)} of the network · about **{took}**"
