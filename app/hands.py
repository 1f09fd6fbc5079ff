"""What the browser does for the page itself, since Streamlit has no words for it (`hands.js`).

A picture that is pasted or dropped anywhere goes to the uploader, several of them, folders and ZIPs to that of the page
Batch, unless they are a clip's frames; what is too large is refused before it is sent; focus stays where it was when a
widget is drawn anew; buttons say what they are and whether they are chosen; progress and the finished clip are
announced; numbers that a field does not accept are told beside Generate; clips begin to play.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import streamlit as st
from streamlit.components import v2
from streamlit.delta_generator import DeltaGenerator

from app import places
from app.upload import LARGEST, LARGEST_ZIP, MOST

_KEY = "hands"
_LIMITS = {"picture": LARGEST, "zip": LARGEST_ZIP, "files": MOST}  # MB of each, and how many


@cache
def _code() -> str:
    return (Path(__file__).parent / "hands.js").read_text(encoding="utf-8")


def component(name: str, code: str) -> Callable[..., object]:
    """A component whose JavaScript works on the page itself."""
    # Registered at every run: each runtime of Streamlit, as in tests, has a list of its own.
    return v2.component(f"sgm_{name}", js=code, isolate_styles=False)


def place() -> DeltaGenerator:
    """A place for `lend`, before all that is not always drawn: moved on the page, its script would end and start."""
    return st.container(key="hands_place")


def lend(
    place: DeltaGenerator,
    said: str,
    pressed: Mapping[str, bool],
    values: Mapping[str, str],
    notes: Mapping[str, str],
    take_out: Callable[[str], None],
    frames: bool = False,
) -> None:
    """Give the page its hands; once a run.

    place: see `place`. said: announced to those who hear the page, where it is another text than before. pressed: keys
    of buttons, and whether each is the chosen one of its group. values: labels of number fields, and the value that
    would run. notes: titles of choices in lists, and what is said beside them. take_out: called when an upload is taken
    out by hand, with "first" or "last", the picture that it is. Of one that is replaced, the uploader says the same, so
    the click is told: as a state, which no later message can overtake. frames: whether several files are the frames of
    one clip.

    Ends the script's run where several files were dropped on a page other than Batch: it leads there.
    """

    def on_removed() -> None:
        clicks = st.session_state[_KEY].get("removed")
        if clicks and clicks != st.session_state.get("removed"):
            st.session_state["removed"] = clicks
            take_out(str(clicks).partition(" ")[0])

    data = {"said": said, "pressed": dict(pressed), "values": dict(values), "notes": dict(notes)}
    data |= {"limits": _LIMITS, "frames": frames}
    with place:
        component(_KEY, _code())(
            key=_KEY,
            data=data,
            on_refused_change=_note_refused,
            on_several_change=_note_several,
            on_removed_change=on_removed,
            on_ended_change=lambda: None,  # all is drawn anew: see app/create/progress.js
        )

    if st.session_state.get("several"):  # which Batch has taken out
        places.go("Batch")


def _note_several() -> None:
    st.session_state["several"] = int(st.session_state[_KEY]["several"])


def _note_refused() -> None:
    st.session_state["too_large"] = str(st.session_state[_KEY]["refused"])
