"""The player of a finished clip, with its downloads, its link and its recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import streamlit as st

from app import look
from app.jobs import Job, table
from sgm import EXPORTS, RECIPE_TEXTS, UserError, is_marked, loop_order, orbit_of

_RECIPES = {"yaml": "YAML", "command": "Command line", "python": "Python"}
_LANGUAGES = {"yaml": "yaml", "command": "sh", "python": "python"}


def play(job: Job, content: bytes) -> None:
    """Show the video, looping and muted. content: its MP4, b"" where none could be encoded."""
    if not content:
        st.info("This clip could not be encoded as a video: save its frames under More formats.")
        return
    with st.container(key="clip"):
        st.video(content, loop=True, autoplay=True, muted=True, alt=f"The clip made of {job.name}")


def offer_downloads(job: Job, content: bytes) -> None:
    """Buttons that download the clip as MP4, whose content is given, and in other formats."""
    name = f"{Path(job.name).stem}-{job.id}"
    if content:
        st.download_button(
            "Download MP4",
            content,
            f"{name}.mp4",
            "video/mp4",
            type="primary",
            icon=":material/download:",
            on_click="ignore",
        )
    with st.popover("More formats"):
        for title, (suffix, mime, _) in EXPORTS.items():
            st.download_button(
                title, _exported(job, title), f"{name}{suffix}", mime, on_click="ignore", width="stretch"
            )
        if job.request.family.orbits:
            suffix, mime, _ = EXPORTS["WebP"]
            st.download_button(
                "Turntable (WebP)",
                _turntable(job),
                f"{name}-turntable{suffix}",
                mime,
                on_click="ignore",
                width="stretch",
                help="Loops without a seam: from the last view to the first it is one step of the orbit.",
            )
        lossless, but = table().lossless(job), ", but carry the watermark" if is_marked(job.settings) else ""
        st.caption(
            f"Made of the frames as the model drew them: the PNGs have lost nothing{but}."
            if lossless
            else "Made of the MP4: the frames as the model drew them were not kept."
        )


def offer_link(job: Job) -> None:
    """A popover with the clip's address and its recipe as text."""
    with st.popover("Link", icon=":material/link:"):
        here = (st.context.url or "").partition("?")[0]
        st.caption("Opens this clip, with its settings, on this computer:")
        st.code(f"{here}?job={job.id}", language=None, wrap_lines=True)
        if len(address := st.query_params.to_dict()) > 1:
            st.caption("With what was changed on this page since:")
            st.code(f"{here}?{urlencode(address)}", language=None, wrap_lines=True)
        st.caption("Its recipe makes it again. PICTURE stands for the path of the picture.")
        try:
            texts = {name: text(job.settings) for name, text in RECIPE_TEXTS.items()}
        except UserError as error:
            st.info(look.plain(str(error)))
            return
        for tab, (name, text) in zip(st.tabs([_RECIPES.get(name, name) for name in texts]), texts.items(), strict=True):
            with tab:
                st.code(text, language=_LANGUAGES.get(name), wrap_lines=True)


def _exported(job: Job, title: str) -> Callable[[], bytes]:
    """The exported file for a download button, encoded only when it is clicked."""
    return lambda: EXPORTS[title][2](*table().frames(job), job.settings)


def _turntable(job: Job) -> Callable[[], bytes]:
    """The turntable for a download button, encoded only when it is clicked."""

    def write() -> bytes:
        frames, fps = table().frames(job)
        return EXPORTS["WebP"][2](frames[loop_order(*orbit_of(job.request))], fps, job.settings)

    return write
