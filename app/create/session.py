"""The job of a browser session, and its link in the page's address."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import streamlit as st

from app.create import picture, settings
from app.jobs import Job, table
from app.link import address_of, request_from
from sgm import UserError, VideoRequest


def owner() -> str:
    """This browser session's id as the owner of jobs."""
    return st.session_state.setdefault("owner", secrets.token_hex(8))


def current_job() -> Job | None:
    """This session's job. A new session opens the job and the settings in the page's address."""
    linked = st.query_params.get("job")
    if "job" not in st.session_state:
        st.session_state["job"] = linked
        job = table().get(linked) if linked else None
        if job:
            picture.open_job_picture(job)
        try:
            settings.restore(request_from(st.query_params.to_dict(), job and job.request))
        except UserError as error:
            picture.refuse("The settings in the address were ignored.", str(error))
            if job:
                settings.restore(job.request)
    job_id = st.session_state["job"]
    return table().get(job_id) if job_id else None


def share(request: VideoRequest, job: Job | None) -> None:
    """Write the job, and the settings that differ from its own or the version's defaults, to the page's address."""
    address = address_of(request, job and job.request)
    if st.session_state["job"]:
        address["job"] = st.session_state["job"]
    if address != st.query_params.to_dict():
        st.query_params.from_dict(address)


def follow(job: Job) -> None:
    """Make a job this session's job."""
    st.session_state["job"] = job.id


def forget_job() -> None:
    """Leave this session without a job."""
    st.session_state["job"] = None


def submit(make: Callable[[str, str], Job], job_id: str) -> None:
    """Submit a job made from another by `make(job_id, owner)`, and show its settings."""
    try:
        job = make(job_id, owner())
    except UserError as error:
        picture.refuse("That cannot be made.", str(error))
        return
    settings.restore(job.request)
    follow(job)


def reopen(job_id: str) -> None:
    """Open an earlier job with its settings and its picture."""
    if job := table().get(job_id):
        settings.restore(job.request)
        picture.open_job_picture(job)
        follow(job)
