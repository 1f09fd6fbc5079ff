"""The jobs of a browser session, and their link in the page's address."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from typing import Any

import streamlit as st
from PIL import Image

from app import look
from app.create import picture, settings
from app.jobs import Job, table
from app.link import address_of, taken_from
from app.undivided import undivided
from sgm import UserError, VideoRequest, ViewsRequest
from sgm.outputs import BROWSER

_DOUBLE_CLICK = 1.0  # seconds
_seen: set[str] = set()  # ids of the jobs that were shown after their end, since the server was started


def owner() -> str:
    """This browser session as the owner of jobs: by what its browser is known, and an id of its own."""
    return st.session_state.setdefault("owner", f"{_browser()}-{secrets.token_hex(8)}")


def _browser() -> str:
    """What tells this browser from others: the same in all of its tabs, and when the server was started anew.

    A digest of its cookie, which itself stays out of the outputs folder. "" under `streamlit run`.
    """
    cookie = st.context.cookies.get(BROWSER)
    return hashlib.sha256(cookie.encode()).hexdigest()[:16] if isinstance(cookie, str) else ""


def current_job() -> Job | None:
    """The job that this session shows. A new session opens the job, picture and settings in the page's address."""
    if "job" not in st.session_state:
        _open_address(st.query_params.to_dict())
    job_id = st.session_state["job"]
    return table().get(job_id) if job_id else None


@undivided()
def _open_address(address: dict[str, str]) -> None:
    st.session_state["job"] = linked = address.get("job")
    job = table().get(linked) if linked else None
    if job:
        of_page = job.owner and not (job.by_api or job.at_stand)
        if of_page and job.owner.rpartition("-")[0] == _browser():
            st.session_state.setdefault("owner", job.owner)  # a reload, rather than a link: it has the same jobs
            st.session_state["unseen"] = [
                other.id
                for other in table().jobs()
                if (other.owner, other.state, other.group) == (job.owner, "interrupted", "") and other.id not in _seen
            ]
        picture.open_job_picture(job)
    taken = taken_from(address, job and job.request)
    if address.get("sample") in look.SAMPLES | look.CLIPS:
        picture.open_sample(address["sample"])
    elif "upload" in address:
        picture.open_upload(address["upload"], isinstance(taken.request, ViewsRequest))
    if "last" in address:
        picture.open_last(address["last"])
    settings.restore(taken.request, switched_on=address)
    if taken.refused:
        some = "Some settings" if {*taken.names} - {"version"} else "The settings"
        picture.refuse(f"{some} in the address were ignored.", " ".join(taken.refused))


def share(request: VideoRequest, job: Job | None) -> None:
    """Write to the page's address: the job, and what differs from its own or the version's defaults."""
    address = address_of(request, job and job.request) | settings.switched_on()
    if (sample := picture.chosen_sample()) and not (job and job.name == (look.SAMPLES | look.CLIPS)[sample].name):
        address["sample"] = sample
    if (upload := picture.chosen_upload()) and not (job and _uploads().get(job.id) == upload):
        address["upload"] = upload
    if last := picture.chosen_last():
        address["last"] = last
    if st.session_state["job"]:
        address["job"] = st.session_state["job"]
    if address != st.query_params.to_dict():
        st.query_params.from_dict(address)


def _uploads() -> dict[str, str]:
    """The ids of the uploads that the session's jobs were made of: these jobs have the picture, too."""
    return st.session_state.setdefault("uploads", {})


def my_jobs() -> list[Job]:
    """The session's single jobs that are not done yet, the running ones first, then as they will run."""
    mine = [job for job in table().jobs() if job.active and job.owner == owner() and not job.group]
    return sorted(mine, key=lambda job: (job.state != "running", job.place or job.created))


def my_groups() -> dict[str, list[Job]]:
    """The session's sweeps that are not done yet: group -> jobs."""
    groups = {job.group for job in table().jobs() if job.active and job.owner == owner() and job.group}
    found = {group: table().group(group) for group in sorted(groups)}
    return {group: jobs for group, jobs in found.items() if jobs}  # but for those that were deleted meanwhile


def change_line(change: Callable[..., object], *what: Any) -> None:
    """Change what waits of this session's by `change(*what, owner)`; a refusal is kept for `line_refused`."""
    try:
        change(*what, owner())
    except UserError as error:
        st.session_state["line_refused"] = str(error)


def line_refused() -> str:
    """Why the line could not be changed, told once; ""."""
    return st.session_state.pop("line_refused", "")


def edit(job_id: str) -> None:
    """Open a waiting job's settings and its picture, so that `change` gives it others."""
    if job := table().get(job_id):
        picture.open_job_picture(job)
        settings.restore(job.request)
        st.session_state["editing"] = job_id


def editing() -> Job | None:
    """The waiting job whose settings are being changed: until it begins, or another picture is chosen."""
    job_id = st.session_state.get("editing", "")
    job = table().get(job_id) if job_id else None
    if job and job.state == "queued" and picture.is_of(job):
        return job
    if job and job.state != "cancelled" and picture.is_of(job):
        st.session_state["line_refused"] = f"The clip of {job.name} has begun meanwhile, with its settings of before."
    st.session_state["editing"] = ""
    return None


@undivided()
def change(job_id: str, request: VideoRequest, last: Image.Image | None) -> str:
    """Give a waiting job other settings, and its last picture. Returns what is wrong, or ""."""
    try:
        table().edit(job_id, settings.ready(request), owner(), last)
    except UserError as error:
        return str(error)
    st.session_state["editing"] = ""
    return ""


def ended_unseen() -> list[Job]:
    """The session's jobs that have ended and were not shown yet, the first one first."""
    jobs = (table().get(job_id) for job_id in st.session_state.get("unseen", ()))
    return [job for job in jobs if job and not job.active]


def follow(job_id: str) -> None:
    """Show a job."""
    st.session_state["job"] = job_id


def seen(job: Job) -> None:
    """Note that a job is shown."""
    _seen.add(job.id)
    st.session_state["unseen"] = [job_id for job_id in st.session_state.get("unseen", ()) if job_id != job.id]


def forget_job() -> None:
    """Leave this session without a job."""
    st.session_state["job"] = None


@undivided()
def generate(request: VideoRequest, chosen: picture.Picture) -> str:
    """Queue a job, and show it unless one is being shown that is not done. Returns what is wrong, or "".

    A second click on the same, as in a double click, queues nothing.
    """
    before = table().get(st.session_state["job"] or "")
    asked, clicked = (request, id(chosen.image), id(chosen.last)), time.monotonic()
    latest, when, latest_id = st.session_state.get("asked", (None, 0.0, ""))
    same = table().get(latest_id) if latest == asked else None
    if same and same.active and (clicked - when < _DOUBLE_CLICK or not settings.new_seed()):
        return "" if clicked - when < _DOUBLE_CLICK else "This very clip is being made already: change something first."
    try:
        job = table().submit(settings.ready(request), chosen.image, chosen.name, owner(), last=chosen.last)
    except UserError as error:
        return str(error)
    st.session_state["asked"] = asked, time.monotonic(), job.id
    _uploads()[job.id] = picture.chosen_upload()
    if before and before.active:
        st.session_state["unseen"] = [*st.session_state.get("unseen", ()), job.id]
    else:
        follow(job.id)
    return ""


def submit(make: Callable[[str, str], Job], job_id: str) -> None:
    """Queue a job made from another by `make(job_id, owner)`, and show it with its settings."""
    try:
        job = make(job_id, owner())
    except UserError as error:
        picture.refuse("That cannot be made.", str(error))
        return
    _uploads()[job.id] = _uploads().get(job_id, "")
    if not st.session_state.get("last"):
        picture.open_job_last(job)
    settings.restore(job.request)
    follow(job.id)


def reopen(job_id: str) -> None:
    """Open an earlier job with its settings and its picture."""
    if job := table().get(job_id):
        picture.open_job_picture(job)
        settings.restore(job.request)
        follow(job_id)
