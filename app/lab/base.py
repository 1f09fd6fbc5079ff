"""What the Lab starts from: the picture and the settings of the page Create, which can be changed here, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import streamlit as st

from app import hands, look, models
from app.create import picture, session, settings, templates
from app.jobs import table
from app.lab import grid
from app.summary import summary
from app.undivided import undivided
from sgm import VIEW_VERSIONS, UserError, VideoRequest, version_status


class Base(NamedTuple):
    """request, picture: None for what is wrong or missing."""

    request: VideoRequest | None
    picture: picture.Picture | None

    def said(self) -> str:
        """What it is, in words."""
        if self.picture is None:
            return "Choose a picture first."
        if self.request is None:
            return "This cannot run yet: see Picture and settings."
        return look.plain(f"{self.picture.name} · {summary(self.request)}")


def choose(group: str) -> Base:
    """Draw the fold of all widgets of the page Create, which have one state on all pages, and their charts.

    group: whose grid the page shows.
    """
    session.current_job()  # a new session starts with the defaults there as here
    opened = bool(st.session_state.get("opened"))
    with st.expander("Picture and settings", expanded=not opened, key="base", on_change="rerun"):
        left, right = st.columns(2, gap="large")
        with left:
            chosen = picture.choose_picture(settings.current_version(), *settings.current_size())
        with right:
            request = _choose_movement()
        version = settings.current_version()
        settings.choose_research(version, request)
    _lend(group, picture.pressed(), picture.take_out)
    return Base(_ready(request), None if version.name in VIEW_VERSIONS else chosen)


def choose_settings(group: str) -> VideoRequest | None:
    """Draw the fold of all settings without a picture, for several of them. Returns None where they cannot run."""
    session.current_job()
    with st.expander("Settings", expanded=False, key="base", on_change="rerun"):
        left, right = st.columns(2, gap="large")
        with right:
            request = _choose_movement()
        version = settings.current_version()
        with left:
            picture.choose_fit(version)
        settings.choose_research(version, request)
    _lend(group, {}, lambda which: None)
    return _ready(request)


def _choose_movement() -> VideoRequest | None:
    """Draw the widgets of model and movement. Returns the request; None where it is wrong, which is said."""
    version = settings.choose_version()
    models.show_status(version)
    settings.choose_preset(version)
    templates.choose(version)
    try:
        return settings.choose_settings(version)
    except UserError as error:
        st.error(look.plain(settings.labelled(str(error))))
        return None


def _ready(request: VideoRequest | None) -> VideoRequest | None:
    """The request, if its model's weights are there; None, which is said, of a model that takes clips."""
    if settings.current_version().name in VIEW_VERSIONS:
        st.info("The Lab makes clips of pictures: choose another model for it.", icon=":material/info:")
        return None
    return request if request and version_status(request.version).state == "ready" else None


def _lend(group: str, pressed: Mapping[str, bool], take_out: Callable[[str], None]) -> None:
    version = settings.current_version()
    pressed = {**pressed, **settings.pressed(version), **templates.pressed(version)}
    hands.lend(hands.place(), grid.said(group), pressed, settings.values(version), settings.unready(), take_out)


@undivided()
def start(
    base: Base, requests: Sequence[VideoRequest], axes: Sequence[str], order: Sequence[int], finish: Mapping[str, Any]
) -> None:
    """Queue the cells of a sweep, to be shown in the next run; or say there why that cannot be."""
    if base.picture is None:
        return
    image, name, last = base.picture
    assert not isinstance(image, list)  # see `choose`
    try:
        group = table().submit_group(requests, image, name, session.owner(), axes, order, finish, last)
    except UserError as error:
        grid.fail(str(error))
        return
    st.session_state["group_started"] = group
