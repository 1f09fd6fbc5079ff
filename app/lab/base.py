"""What the Lab starts from: the picture and the settings of the page Create, which can be changed here, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import streamlit as st

from app import hands, look, models
from app.create import picture, session, settings
from app.jobs import table
from app.lab import grid
from app.summary import summary
from sgm import UserError, VideoRequest


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
    request, problem = None, ""
    opened = bool(st.session_state.get("opened"))
    with st.expander("Picture and settings", expanded=not opened, key="base", on_change="rerun"):
        left, right = st.columns(2, gap="large")
        with left:
            chosen = picture.choose_picture(settings.current_version(), *settings.current_size())
        with right:
            version = settings.choose_version()
            ready = models.show_status(version)
            try:
                request = settings.choose_settings(version)
            except UserError as error:
                problem = settings.labelled(str(error))
                st.error(look.plain(problem))
        settings.choose_research(version, request)
    pressed = picture.pressed() | settings.pressed(version)
    hands.lend(hands.place(), grid.said(group), pressed, settings.values(version), settings.unready(), picture.take_out)
    return Base(request if ready else None, chosen)


def start(
    base: Base, requests: Sequence[VideoRequest], axes: Sequence[str], order: Sequence[int], finish: Mapping[str, Any]
) -> None:
    """Queue the cells of a sweep, to be shown in the next run; or say there why that cannot be."""
    if base.picture is None:
        return
    image, name = base.picture
    try:
        group = table().submit_group(requests, image, name, session.owner(), axes, order, finish)
    except UserError as error:
        grid.fail(str(error))
        return
    st.session_state["group_started"] = group
