"""What the browser does at the stand: its style sheet, and the script that opens the camera and starts anew at rest."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import streamlit as st
from PIL import Image
from streamlit.components import v2

from app import look
from app.jobs import Job
from app.stand.host import stand
from app.stand.texts import Say
from app.upload import LARGEST

COOKIE = "sgm_film"  # holds the token of the film that the screen shows, over a reload and a new start of the server

_KEY = "stand"
_PREVIEW_EVERY = 2.0  # seconds: to draw a picture costs the browser more than all else
_PREVIEW = """export default ({ data }) => {
  for (const picture of data ? document.querySelectorAll("img[data-job]") : []) picture.src = data;
};"""


@cache
def _code(suffix: str) -> str:
    return (Path(__file__).parent / f"stand.{suffix}").read_text(encoding="utf-8")


def style() -> str:
    """The style sheet; the buttons of the host's pictures show them."""
    pictures = [
        f".st-key-picture_{number} button {{ --picture: url(/picture/{number}); }}"
        for number, _ in enumerate(stand().pictures)
    ]
    return f"<style>{_code('css')}{''.join(pictures)}</style>"


def inline(picture: Image.Image) -> str:
    """A picture as a data URL."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=88)
    return look.inline(file.getvalue())


def show_preview(job: Job) -> None:
    """Put a new preview of a job in the place of its picture, if the browser has had none just now."""
    mark, now = (job.id, hash(job.preview)), time.monotonic()
    sent, when = st.session_state.get("preview_sent", (None, 0.0))
    new = bool(job.preview) and mark != sent and now - when > _PREVIEW_EVERY
    if new:
        st.session_state["preview_sent"] = mark, now
    component = v2.component("sgm_preview", js=_PREVIEW, isolate_styles=False)
    component(key="preview", data=look.inline(job.preview) if new and job.preview else "", height=1)


def attend(stage: str, rest: float, language: str, token: str, say: Say, refuse: Callable[[], None]) -> None:
    """Have the script attend to the page; once a run.

    stage: another one with each step of the visit. rest: seconds without a touch after which the page starts anew; 0
    for never. token: of the film that is shown. refuse: called for a picture that is too large to be sent.
    """
    said = {key: say(key) for key in ("still_there", "touch", "moment", "reading")}
    data = {"stage": stage, "rest": rest, "language": language, "token": token, "cookie": COOKIE, "said": said}
    data |= {"megabytes": LARGEST, "mark": st.session_state.get("mark", "")}
    with st.container(key="attendant"):
        v2.component("sgm_stand", js=_code("js"), isolate_styles=False)(
            key=_KEY, data=data, on_refused_change=refuse, on_mark_change=_send_back
        )


def _send_back() -> None:
    """Show the script that this server hears it."""
    st.session_state["mark"] = st.session_state[_KEY]["mark"]
