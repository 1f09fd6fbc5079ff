"""The job of a browser session: which one it is, and how it comes by another."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import streamlit as st

from app.create import picture, settings
from app.jobs import Job, table
from app.link import address_of, request_from
from sgm import UserError, VideoRequest


def owner() -> str:
    """This browser session, as the queue knows it."""
    return st.session_state.setdefault("owner", secrets.token_hex(8))


def current_job() -> Job | None:
    """This session's job. A new session takes over the one that its address names, and the settings in it."""
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
    """Let the address say what the fields say: the job, and what differs from its settings or the model's own."""
    address = address_of(request, job and job.request)
    if st.session_state["job"]:
        address["job"] = st.session_state["job"]
    if address != st.query_params.to_dict():
        st.query_params.from_dict(address)


def follow(job: Job) -> None:
    """Make a job this session's own."""
    st.session_state["job"] = job.id


def forget_job() -> None:
    st.session_state["job"] = None


def submit(make: Callable[[str, str], Job], job_id: str) -> None:
    """Put a job that follows from another into the queue; its settings become the fields'."""
    try:
        job = make(job_id, owner())
    except UserError as error:
        picture.refuse("That cannot be made.", str(error))
        return
    settings.restore(job.request)
    follow(job)


def reopen(job_id: str) -> None:
    """Make an earlier job, its settings and its picture this session's own."""
    if job := table().get(job_id):
        settings.restore(job.request)
        picture.open_job_picture(job)
        follow(job)
