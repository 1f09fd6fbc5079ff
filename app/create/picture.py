"""Choosing the picture of a clip, and showing the frame that the model sees."""

from __future__ import annotations

from typing import Any, NamedTuple

import streamlit as st
from PIL import Image

from app import look, upload
from app.create import clip, cutout, settings
from app.create.fields import KEPT, base_fields, draw, keep_reshaped, key_of, options_of, value_of
from app.jobs import Input, Job, open_stored, table
from sgm import VIEW_VERSIONS, Field, PictureError, UserError, Version, describe_fit, fit_picture, open_picture

# crop_x and crop_y: names of five positions; other values are shown as numbers.
_POSITIONS = {
    "crop_x": ("Left", "Left of centre", "Centre", "Right of centre", "Right"),
    "crop_y": ("Top", "Upper", "Centre", "Lower", "Bottom"),
}
_NO_CLIP = f"We can't take that file as a clip. Use an MP4, GIF or WebP under {upload.LARGEST} MB."
_UNREADABLE = f"We can't read that file as a picture. Use a JPG, PNG, WebP or HEIC under {upload.LARGEST} MB."
_NOT_RESTORED = "We can't restore settings from that clip."


class Opened(NamedTuple):
    """The chosen picture, upright and uncropped, and its name. key: identifies it."""

    key: str
    image: Image.Image
    name: str


class Picture(NamedTuple):
    """The picture of a job, uncropped, or its object as RGBA, or the frames of its clip; and the name."""

    image: Input
    name: str


def choose_picture(version: Version, width: int, height: int) -> Picture | None:
    """Draw the widgets that choose and fit a picture, or a clip. Returns it, None while there is none."""
    views = version.name in VIEW_VERSIONS
    if name := st.session_state.pop("too_large", None):
        _refuse_upload(
            _NO_CLIP if views else _UNREADABLE, f"{name} is too large: give a file of {upload.LARGEST} MB or smaller."
        )
    st.file_uploader(  # of any kind: what a file is, is told by its content
        f"Drop, paste or choose a {'clip' if views else 'picture'}",
        key="upload",
        on_change=_open_upload,
        max_upload_size=upload.LARGEST,
        help="An MP4 or another video, an animated GIF or WebP, of one object that moves: whole, on white, transparent "
        "or plain. A view that was made here brings its settings."
        if views
        else "JPG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF, dropped or pasted anywhere on this page. "
        "An MP4 that was made here brings its settings.",
    )
    opened: Opened | None = st.session_state.get("opened")
    if not views:
        _offer_samples(opened)
    if refused := st.session_state.get("refused"):
        headline, reason = refused
        st.error(f"{headline}\n\n{look.plain(reason)}", icon=":material/broken_image:")
    if restored := st.session_state.get("restored"):
        st.success(look.plain(restored), icon=":material/settings_backup_restore:")
    if not views:
        return _fitted(opened, version, width, height) if opened else None
    frames = clip.read(version)
    return _fitted(chosen(), version, width, height, frames) if frames else None


def _offer_samples(opened: Opened | None) -> None:
    st.caption("Or start from a sample")
    with st.container(horizontal=True, gap="xsmall", key="samples"):
        for sample in look.SAMPLES:
            chosen = "primary" if opened and opened.key == sample else "secondary"
            st.button(
                sample.capitalize(),
                key=f"sample_{sample}",
                type=chosen,
                on_click=open_sample,
                args=(sample,),
                width="stretch",
            )


def pressed() -> dict[str, bool]:
    """The samples' buttons, and whether each is the chosen one."""
    return {f"sample_{sample}": sample == chosen_sample() for sample in look.SAMPLES}


def chosen() -> Any:
    """The chosen picture or, for a version that takes one, the chosen clip; None where there is none."""
    return clip.chosen() if settings.current_version().name in VIEW_VERSIONS else st.session_state.get("opened")


def chosen_sample() -> str:
    """The name of the chosen sample; "" for another picture, or none."""
    opened = chosen()
    return opened.key if opened and opened.key in look.SAMPLES else ""


def chosen_upload() -> str:
    """The id of the chosen upload; "" for another picture, or none."""
    opened = chosen()
    return opened.key if opened and upload.kept(opened.key) else ""


def open_sample(name: str) -> None:
    """Choose a sample."""
    _open(name, open_picture(look.SAMPLES[name]), f"{name}.jpg")


def open_job_picture(job: Job) -> None:
    """Choose the job's stored picture: a browser loses its upload when the page is reloaded.

    Of an extended clip, it is the picture of the first one.
    """
    first, *_ = table().chain(job.id) or [job]
    try:
        if job.parts:
            _open_clip(job.id, job.picture.read_bytes(), job.name)
        else:
            _open(job.id, open_stored(first.picture), first.name)
    except Exception:  # of any kind: the file may be damaged
        st.session_state["opened_clip" if job.parts else "opened"] = None


def open_upload(upload_id: str) -> None:
    """Choose the picture, or the clip, of an earlier upload, or say that it is gone."""
    content, name = upload.kept(upload_id) or (b"", "")
    views = settings.current_version().name in VIEW_VERSIONS
    found = upload.read_upload(content, name, views) if content else None
    if found and found.is_clip:
        _open_clip(upload_id, content, name)
    elif found and found.picture:
        _open(upload_id, found.picture, name)
    else:
        refuse(
            f"The {'clip' if views else 'picture'} of this address is gone.",
            "Uploads are kept while the server runs: choose it again.",
        )


def refuse(headline: str, reason: str) -> None:
    """Show an error below the upload until another picture is opened."""
    st.session_state["refused"] = headline, reason


def _open(key: str, image: Image.Image, name: str) -> None:
    st.session_state["opened"] = Opened(key, image, name)
    st.session_state["refused"] = st.session_state["restored"] = None


def _open_clip(key: str, content: bytes, name: str) -> None:
    clip.choose(key, content, name)
    st.session_state["refused"] = st.session_state["restored"] = None


def take_out() -> None:
    """Leave the session without its upload, which has been taken out of the uploader by hand: see app/hands.py."""
    for place in ("opened", "opened_clip"):
        opened: Any = st.session_state.get(place)
        if opened and opened.key == st.session_state.get("uploaded"):
            st.session_state[place] = None
    st.session_state["refused"] = st.session_state["restored"] = None


def _open_upload() -> None:
    """Read the upload: a picture, a clip of an object, or one with a recipe, whose settings and input are restored.

    Nothing is changed by a file that cannot be read, nor by none: so a browser says that another one is to come.
    """
    file = st.session_state["upload"]
    if file is None:
        return
    content = file.getvalue()
    st.session_state["refused"] = st.session_state["restored"] = None
    st.session_state["uploaded"] = ""
    views = settings.current_version().name in VIEW_VERSIONS
    try:
        found = upload.read_upload(content, file.name, views)
    except UserError as error:
        headline = _UNREADABLE if isinstance(error, PictureError) else _NOT_RESTORED
        _refuse_upload(_NO_CLIP if views else headline, str(error))
        return
    if found.picture or found.is_clip:
        st.session_state["uploaded"] = key = upload.keep(content, file.name)
        if found.picture:
            _open(key, found.picture, file.name)
        else:
            _open_clip(key, content, file.name)
    if found.request:
        settings.restore(found.request)
    st.session_state["restored"] = found.note


def _refuse_upload(headline: str, reason: str) -> None:
    opened = chosen()
    refuse(headline, f"{reason} {opened.name} stays chosen." if opened else reason)


def _fitted(
    opened: Any, version: Version, width: int, height: int, frames: list[Image.Image] | None = None
) -> Picture | None:
    """Show the frame that the model will see, and the widgets that fit the picture to it. frames: of a clip instead."""
    shown = st.container()
    chooser = base_fields(version.name)["fit"]
    draw(chooser, version)
    options = {field.name: field for field in options_of(chooser, version)}
    if axis := _free_axis(frames[0] if frames else opened.image, width, height, value_of(chooser, version)):
        _choose_position(options[axis], version)
    for name, field in options.items():
        if name not in _POSITIONS:
            draw(field, version, slider=True)
    values = {name: value_of(field, version) for name, field in options.items()}
    with shown:
        if frames:
            fitted = {"fit": value_of(chooser, version), **values}
            given = clip.show(opened, frames, version, (width, height), fitted)
            return Picture(given, opened.name) if given else None
        if value_of(chooser, version) == "object":
            item = cutout.show_object(opened.key, opened.image, opened.name, width, height, values["image_frame_ratio"])
            return Picture(item, opened.name) if item else None
        _show_frame(opened, width, height, value_of(chooser, version), (values["crop_x"], values["crop_y"]))
        return Picture(opened.image, opened.name)


def _free_axis(image: Image.Image, width: int, height: int, fit: str) -> str:
    """The field of the axis along which the picture can be moved in its frame; "" where there is none."""
    if fit not in ("crop", "pad") or image.width * height == image.height * width:
        return ""
    wider = image.width * height > image.height * width
    return "crop_x" if wider == (fit == "crop") else "crop_y"


def _choose_position(field: Field, version: Version) -> None:
    key = key_of(field, version)
    value = st.session_state[key]
    names = {i / 4: name for i, name in enumerate(_POSITIONS[field.name])}
    positions = sorted({*names, value})
    keep_reshaped(key, positions)
    st.select_slider(
        field.label,
        positions,
        value,
        format_func=lambda position: names.get(position) or field.text(position),
        key=key,
        help=field.help,
        persist_state=KEPT,
    )


def _show_frame(opened: Opened, width: int, height: int, fit: str, position: tuple[float, float]) -> None:
    """Show the frame that the model sees, fitted as in the job."""
    key = (opened.key, width, height, fit, position)
    if st.session_state.get("frame", (None,))[0] != key:
        st.session_state["frame"] = key, fit_picture(opened.image, width, height, fit, position)
    st.image(st.session_state["frame"][1], width="stretch", alt=f"What the model sees of {opened.name}")
    st.caption(describe_fit(opened.image.size, width, height, fit), text_alignment="center")
    if opened.image.width < width or opened.image.height < height:
        st.caption(":material/warning: Very small picture; the clip will look soft.", text_alignment="center")
