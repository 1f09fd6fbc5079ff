"""The templates' buttons, beside those of the presets, and the fold in which they are saved, imported and deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from app import look, templates
from app.create import settings
from app.jobs import table
from sgm import UserError, Version, VideoRequest

_LARGEST = 1  # MB of an import
_ICON = ":material/bookmark:"


def choose(version: Version) -> None:
    """Draw a button for each template, the present one marked, and the fold."""
    try:
        known, problem = templates.templates(table().folder), ""
    except UserError as error:
        known, problem = {}, str(error)
    ready = {name: request for name, request in known.items() if isinstance(request, VideoRequest)}
    with st.container(horizontal=True, gap="xsmall", vertical_alignment="center", key="templates"):
        for name, request in ready.items():
            chosen = _is_present(request, version)
            st.button(
                look.plain(name),
                key=f"template_{name}",
                type="primary" if chosen else "secondary",
                icon=":material/check:" if chosen else _ICON,
                on_click=settings.use,
                args=(request,),
            )
        with st.popover("Templates", icon=_ICON, type="tertiary"):
            _show_fold(known)
    for sentence in filter(None, [problem, st.session_state.pop("template_refused", "")]):
        st.error(look.plain(settings.labelled(sentence)))


def pressed(version: Version) -> dict[str, bool]:
    """The templates' buttons, and whether each is the present one."""
    try:
        known = templates.templates(table().folder)
    except UserError:
        return {}
    return {
        f"template_{name}": _is_present(request, version)
        for name, request in known.items()
        if isinstance(request, VideoRequest)
    }


def _is_present(request: VideoRequest, version: Version) -> bool:
    """Whether these are the widgets' values, whatever their seed."""
    if request.version != version.name:
        return False
    try:
        now = settings.current_request()
    except UserError:
        return False
    return request.replace(seed=now.seed) == now


def _show_fold(known: dict[str, VideoRequest | str]) -> None:
    st.caption("Keep the settings of this page, but for the seed, under a name:")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.text_input("Name", key="template_name", max_chars=60)
        st.button("Save", icon=":material/save:", on_click=_save)
    round_ = st.session_state.setdefault("template_round", 0)
    key = f"template_upload_{round_}"
    st.file_uploader(
        "Import a YAML", key=key, max_upload_size=_LARGEST, on_change=_import, args=(key,), help="A recipe, too."
    )
    for name, request in known.items():
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
            st.markdown(look.plain(name), width="stretch")
            if isinstance(request, VideoRequest):
                st.download_button(
                    "Export",
                    templates.text(request),
                    f"{name}.yaml",
                    "application/yaml",
                    key=f"template_export_{name}",
                    type="tertiary",
                    icon=":material/download:",
                    on_click="ignore",
                )
            st.button(
                "Delete",
                key=f"template_delete_{name}",
                type="tertiary",
                icon=":material/delete:",
                on_click=_try,
                args=(templates.delete, table().folder, name),
            )
        if isinstance(request, str):
            st.caption(look.plain(f"It cannot be used: {request}"))


def _save() -> None:
    def save() -> None:
        name = st.session_state["template_name"]
        templates.save(table().folder, name, settings.current_request(), settings.PRESETS)
        st.session_state["template_name"] = ""

    _try(save)


def _import(key: str) -> None:
    """Keep what was dropped as a template of its file's name, once it is checked."""
    if (file := st.session_state[key]) is None:
        return

    def keep() -> None:
        request = templates.parse(file.getvalue(), file.name)
        templates.save(table().folder, Path(file.name).stem, request, settings.PRESETS)

    st.session_state["template_round"] += 1
    _try(keep)


def _try(act: Callable[..., object], *args: object) -> None:
    """Do what may be refused; the refusal is told in the next run."""
    try:
        act(*args)
    except UserError as error:
        st.session_state["template_refused"] = str(error)
