"""Charts of a request's noise schedule and guidance scales."""

from __future__ import annotations

import altair as alt
import streamlit as st

from sgm import VideoRequest, curves

_LINE = "#1a9a94"  # reads on white and on black


def show_curves(request: VideoRequest) -> None:
    """Draw the sigma of each step and the guidance scale of each frame, beside each other where there is room."""
    sigmas, scales = curves(request)
    with st.container(horizontal=True, key="charts"):
        _draw("Noise (sigma) at each step", sigmas, "Step", alt.Scale(type="log"))
        _draw("Guidance scale of each frame", scales, "Frame", alt.Scale(zero=False))
    if set(scales) == {1.0}:
        st.caption("Every scale is 1: guidance is off, which halves the work.")


def _draw(title: str, values: list[float], axis: str, scale: alt.Scale) -> None:
    points = [{axis: i, "value": round(value, 6)} for i, value in enumerate(values, 1)]
    line = alt.Chart(alt.Data(values=points)).mark_line(color=_LINE, point={"size": 18, "color": _LINE})
    ticks = alt.Axis(tickMinStep=1, tickCount=6, grid=False, format="d")
    with st.container():
        st.caption(title)
        st.altair_chart(
            line.encode(
                x=alt.X(f"{axis}:Q", axis=ticks, scale=alt.Scale(domain=[1, max(2, len(values))])),
                y=alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=4, format="~g")),
                tooltip=[f"{axis}:Q", "value:Q"],
            ).properties(height=220, description=f"{title}: from {values[0]:.4g} to {values[-1]:.4g}.")
        )
