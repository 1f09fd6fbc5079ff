"""Charts of what a request will do: its noise schedule beside all others, and its guidance scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import altair as alt
import streamlit as st

from sgm import SCHEDULES, VideoRequest, curves, guidance_curve, schedule_curves

# Of lines in their order: colours that read on white and on black, and dashes for those who see these alike.
_COLOURS = ("#1a9a94", "#c8741a", "#8a6fd1", "#c6507a", "#6f7f92")
_DASHES = ([12, 3], [7, 3], [2, 2], [8, 3, 2, 3], [4, 2])
_SOLID = [1, 0]


def show_curves(request: VideoRequest) -> None:
    """Draw the sigmas of all schedules over each other, the request's own emphasised, and its guidance scales."""
    for note in request.notes:
        st.caption(f":material/info: {note}")
    titles = {name: schedule.title or name for name, schedule in SCHEDULES.items()}
    sigmas = schedule_curves(request)
    scales, guidance = curves(request)[1], guidance_curve(request)
    draw_lines(
        "Noise (sigma) at each step",
        {titles[name]: sigmas[name] for name in titles if name in sigmas},
        "Step",
        titles[request.schedule],
        log=True,
    )
    with st.container(horizontal=True, key="charts"):
        draw_lines("Guidance scale of each frame", {"": scales}, "Frame")
        if set(guidance) != {max(scales)}:
            draw_lines("Largest guidance scale at each step", {"": guidance}, "Step")
    if set(scales) == {1.0} and not request.needs_uc:
        st.caption("Every scale is 1: guidance is off, which halves the work.")


def draw_lines(
    title: str, lines: Mapping[str, Sequence[float]], axis: str, chosen: str | None = None, log: bool = False
) -> None:
    """Draw a chart of lines over 1, 2, 3, …, with a legend where there are several; one of them may be emphasised.

    lines: name -> values; their order gives their colours. chosen: the emphasised one's name, or the only one's.
    """
    chosen = next(iter(lines)) if chosen is None else chosen
    points = [
        {axis: i, "value": float(f"{value:.6g}"), "line": name}
        for name, values in lines.items()
        for i, value in enumerate(values, 1)
    ]
    legend = alt.Legend(
        orient="bottom",
        columns=2,
        title=None,
        symbolType="stroke",
        symbolSize=200,
        labelLimit=0,
        columnPadding=12,
        offset=4,
        padding=0,
    )
    dashes = [_SOLID if name == chosen else dash for name, dash in zip(lines, cycle(_DASHES), strict=False)]
    look = {"field": "line", "type": "nominal", "legend": legend if len(lines) > 1 else None}
    is_chosen = alt.datum.line == chosen
    ticks = alt.Axis(tickMinStep=1, tickCount=6, grid=False, format="d")
    longest = max(map(len, lines.values()))
    # Without domains of their own, Vega warns of infinite extents while it has no data yet.
    low, high = min(map(min, lines.values())), max(map(max, lines.values()))
    scale = alt.Scale(type="log" if log else "linear", domain=[low, high if high > low else low + 1])
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X(f"{axis}:Q", axis=ticks, scale=alt.Scale(domain=[1, max(2, longest)])),
        y=alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=4, format=".4~g")),
        color=alt.Color(**look, scale=alt.Scale(domain=list(lines), range=list(_COLOURS))),
        tooltip=[*(["line:N"] if len(lines) > 1 else []), f"{axis}:Q", "value:Q"],
    )
    drawn = base.mark_line().encode(
        strokeDash=alt.StrokeDash(**look, scale=alt.Scale(domain=list(lines), range=dashes)),
        strokeWidth=alt.condition(is_chosen, alt.value(3), alt.value(1.25)),
    )
    dots = base.mark_point(filled=True, opacity=1, size=24).transform_filter(is_chosen)
    values = lines[chosen]
    others = f" Beside it: {', '.join(name for name in lines if name != chosen)}." if len(lines) > 1 else ""
    about = f"{title}{chosen and ', '}{chosen}: from {values[0]:.4g} to {values[-1]:.4g}.{others}"
    with st.container():
        st.caption(title)
        st.altair_chart((drawn + dots).properties(height=220 if len(lines) == 1 else 300, description=about))
