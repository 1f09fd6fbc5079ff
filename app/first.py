"""A first load without layout shift: nothing is drawn before the browser has style sheet and fonts."""

from __future__ import annotations

import time

import streamlit as st

from app.hands import component

_LONGEST = 2  # seconds
# The fonts are those of Streamlit's texts and icons.
_CODE = """export default function ({ setStateValue }) {
  const styled = () => getComputedStyle(document.documentElement).getPropertyValue("--styled");
  const style = new Promise((done) => {
    const look = (left) => (styled() || !left ? done() : setTimeout(look, 10, left - 1));
    look(200);
  });
  const fonts = ["Source Sans", "Material Symbols Rounded"].map((name) => document.fonts.load(`1rem "${name}"`));
  Promise.allSettled([style, ...fonts]).then(() => setStateValue("ready", true));
}"""


def wait_for_browser() -> None:
    """Hold a session's first run until the browser has style sheet and fonts, two seconds at most.

    What the browser drew before would move (layout shift).
    """
    if "styled" in st.session_state or not st.context.url:
        return
    with st.bottom:  # where it moves nothing
        component("first", _CODE)(key="first", on_ready_change=_note)
    deadline = time.monotonic() + _LONGEST
    while time.monotonic() < deadline:
        time.sleep(0.01)
        _ = "styled" in st.session_state  # here Streamlit begins the run anew, once the browser has told
    _note()


def _note() -> None:
    st.session_state["styled"] = True
