"""A job's progress, which the browser itself asks for and draws (`progress.js`).

A run of the page's Python, of a fragment even, has the browser draw all that Streamlit knows: five times the cost.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.requests import Request
from starlette.responses import JSONResponse

from app import hands, look
from app.jobs import Job, doing, table
from sgm.amounts import duration


@cache
def _code() -> str:
    return (Path(__file__).parent / "progress.js").read_text(encoding="utf-8")


@st.fragment
def show(job_id: str, others: int) -> None:
    """Draw the progress of an active job, and Cancel; the whole page is redrawn when it ends.

    others: how many more jobs of the session are to come.
    """
    job = table().get(job_id)
    if job is None or not job.active:
        st.rerun()
    data = {**_told(job), "address": f"/progress/{job_id}", "every": 1000 * look.POLL, "at": time.monotonic()}
    data["more"] = f" · {others} more to come" if others else ""
    with st.container(horizontal=True, vertical_alignment="center", key="progress"):
        hands.component("progress", _code())(key="progress_drawn", data=data, on_look_change=lambda: None)
        st.button(
            "Cancel",
            icon=":material/close:",
            on_click=table().cancel,
            args=(job_id,),
            disabled=job.stopping,
            key="cancel",
        )


async def answer(request: Request) -> JSONResponse:
    """What is to be drawn of a job, for `progress.js`; of one that has ended, or is unknown, that it is not active.

    Takes less time than a thread's turn while a clip is made.
    """
    job = table().get(request.path_params["id"])
    seen, moving = request.query_params.get("seen"), "moving" in request.query_params
    told: dict[str, Any] = _told(job, seen, moving) if job and job.active else {"active": False}
    return JSONResponse(told, headers={"cache-control": "no-store"})


def _told(job: Job, seen: str | None = "", moving: bool = False) -> dict[str, Any]:
    """seen: the number of the preview that the browser has; None: it wants no other. moving: rather than a still."""
    picture, number = job.preview, str(job.preview_number)
    if moving and job.moving:
        picture, number = job.moving, f"{number} moving"
    preview = look.inline(picture) if picture and seen is not None and seen != number else ""
    return {
        "active": True,
        "percent": round(100 * job.fraction) if job.state == "running" else 0,
        "text": _text(job),
        "stopping": job.stopping,
        "note": job.progress.note if job.progress else "",
        "number": number,
        "preview": preview,
        "about": f"A preview of the clip of {job.name}",
    }


def _text(job: Job) -> str:
    """The job's position in the queue or its phase, and the time left."""
    left = "" if job.seconds_left is None else duration(job.seconds_left)
    if job.stopping:
        return "Stopping, once this part of the model is loaded …" if job.phase == "load" else "Stopping …"
    if job.state == "queued":
        if job.message:
            return job.message
        before = table().jobs_before(job.id)
        text = f"Number {before} in line" if before else "Starting"
        return f"{text}, done in about {left}" if left else text
    return f"{doing(job)} · {left} left" if left else doing(job)
