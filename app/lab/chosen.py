"""The clips that are chosen to be compared: a list of ids, in the session and in the page's address."""

from __future__ import annotations

import streamlit as st

from app.jobs import Job, table

MOST = 9
_KEY = "compared"


def ids() -> list[str]:
    """The chosen clips' ids, in the order in which they were chosen. A new session has those of its address."""
    if _KEY not in st.session_state:
        st.session_state[_KEY] = list(dict.fromkeys(filter(None, st.query_params.get("clips", "").split(","))))[:MOST]
    return st.session_state[_KEY]


def choose(job_ids: list[str]) -> None:
    """Choose these clips and no others."""
    st.session_state[_KEY] = job_ids[:MOST]


def add(*job_ids: str) -> None:
    """Choose these clips, too."""
    choose(list(dict.fromkeys([*ids(), *job_ids])))


def remove(job_id: str) -> None:
    """Choose this clip no longer."""
    choose([other for other in ids() if other != job_id])


def clips() -> list[Job]:
    """The chosen clips that are finished and still there."""
    jobs = (table().get(job_id) for job_id in ids())
    return [job for job in jobs if job and job.state == "done"]
