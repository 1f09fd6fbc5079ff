"""The clip whose object is to be seen from other sides: opened, and shown as the model sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import streamlit as st
from PIL import Image

from app.create import cutout
from app.create.fields import base_fields, value_of
from app.look import plain, video
from sgm import UserError, Version, ViewsRequest, encode_video, open_clip


class OpenedClip(NamedTuple):
    """The chosen clip's file, and its name. key: identifies it."""

    key: str
    content: bytes
    name: str


def chosen() -> OpenedClip | None:
    """The session's clip."""
    return st.session_state.get("opened_clip")


def choose(key: str, content: bytes, name: str) -> None:
    """Choose a clip's file."""
    st.session_state["opened_clip"] = OpenedClip(key, content, name)


def read(version: Version) -> list[Image.Image] | None:
    """The frames that a version takes of the session's clip; None where none can be read, which is said."""
    clip = chosen()
    if clip is None:
        return None
    most = wanted(version)
    key = (clip.key, most)
    if st.session_state.get("clip_frames", (None,))[0] != key:
        try:
            opened = open_clip(clip.content, most, name=clip.name)
        except UserError as error:
            st.error(plain(str(error)), icon=":material/broken_image:")
            return None
        st.session_state["clip_frames"] = key, opened.frames, opened.described(clip.name, most)
    return st.session_state["clip_frames"][1]


def show(
    clip: OpenedClip, frames: list[Image.Image], version: Version, size: tuple[int, int], fitted: Mapping[str, Any]
) -> list[Image.Image] | None:
    """Show the frames that the model sees, fitted as in the job. Returns what a job is given of them, None for nothing.

    fitted: the values of the field "fit" and of its options.
    """
    note = ""
    if fitted["fit"] == "object":
        found = cutout.object_of_clip(f"{clip.key}, {len(frames)} frames", frames)
        if found is None:
            return None
        frames, note = found
    key = (clip.key, wanted(version), version.name, size, *fitted.values())
    if st.session_state.get("clip_seen", (None,))[0] != key:
        try:
            width, height = size
            request = ViewsRequest(version.name, width=width, height=height, frames=wanted(version), **fitted)
            seen = request.family.prepare_clip(frames, request)
        except UserError as error:
            st.error(plain(str(error)), icon=":material/content_cut:")
            return None
        st.session_state["clip_seen"] = key, encode_video(np.stack([np.asarray(frame) for frame in seen]), request.fps)
    video("clip_seen_place", size, st.session_state["clip_seen"][1], f"What the model sees of {clip.name}")
    what = "the object on white" if fitted["fit"] == "object" else "these frames"
    st.caption(f"The model sees exactly this: {what}, {size[0]}×{size[1]}.", text_alignment="center")
    st.caption(plain(st.session_state["clip_frames"][2]), text_alignment="center")
    if note:
        st.warning(note, icon=":material/crop:")
    return frames


def wanted(version: Version) -> int:
    """How many frames are to be made; the version's own number while that is invalid."""
    return value_of(base_fields(version.name)["frames"], version) or version.frames
