"""Going on from a clip: onward, or up to a picture at which the film then ends."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app import look, upload
from app.create import picture, session, settings
from app.jobs import LONGEST_CHAIN, Job, extension_of, table
from sgm import UserError, describe_fit, prepare_picture

_ABOUT = (
    "Goes on from near the end, and ends at a picture of your choice, cropped as the clip's own is. Twice the work of "
    "other clips: this one is made from either end."
)
_SHOWN = 240  # pixels, the width of the picture in the fold


def offer(job: Job) -> None:
    """Draw the button that extends a finished clip and, where its model can aim, the fold that does so to a picture."""
    links = len(table().chain(job.id))
    cannot = bool(job.unsaved or job.parts) or job.request.family.orbits or not 0 < links < LONGEST_CHAIN
    st.button(
        "Extend",
        icon=":material/add:",
        disabled=cannot,
        help=f"Go on from near the end, as one film of at most {LONGEST_CHAIN} clips. This is clip {links or 1}.",
        on_click=session.submit,
        args=(table().extend, job.id),
    )
    if not cannot and job.request.family.bounded:
        with st.popover("Extend to …", icon=":material/last_page:"):
            _choose_goal(job)


def _choose_goal(job: Job) -> None:
    """Draw the place of the picture at which the film is to end, and the button that makes it."""
    st.caption(_ABOUT)
    key = f"upload_goal_{job.id}"
    st.file_uploader("Picture at the end", key=key, on_change=_open, args=(key,), max_upload_size=upload.LARGEST)
    goal: picture.Opened | str | None = st.session_state.get("goals", {}).get(key)
    if isinstance(goal, str):
        st.error(f"{picture.UNREADABLE}\n\n{look.plain(goal)}", icon=":material/broken_image:")
    elif goal:
        try:
            request = extension_of(job.request, to_last=True)
        except UserError as error:  # of guidance that does not go with two pictures
            st.error(look.plain(settings.labelled(str(error))))
            return
        make = partial(table().extend, last=goal.image)
        st.button("Extend to this picture", type="primary", on_click=session.submit, args=(make, job.id))
        st.image(prepare_picture(goal.image, request), width=_SHOWN, alt=f"The end of the film, {goal.name}")
        st.caption(describe_fit(goal.image.size, *request.size, request.fit))


def _open(key: str) -> None:
    """Read the upload, or note why it cannot be read; one that is taken out is forgotten."""
    goals, file = st.session_state.setdefault("goals", {}), st.session_state[key]
    goals.clear()  # of other clips, which hold megabytes
    if file is None:
        return
    try:
        image = upload.read_upload(file.getvalue(), file.name).picture
        goals[key] = picture.Opened(key, image, file.name) if image else None
    except UserError as error:
        goals[key] = str(error)
