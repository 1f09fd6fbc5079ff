"""Choosing the picture of a clip, and showing the frame that the model sees."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import streamlit as st
from PIL import Image

from app import look, upload
from app.create import clip, cutout, settings
from app.create.charts import draw_lines
from app.create.fields import KEPT, base_fields, draw, keep_reshaped, key_of, options_of, set_value, value_of
from app.jobs import Input, Job, open_stored, stored_last, table
from sgm import (
    VIEW_VERSIONS,
    Field,
    PictureError,
    UserError,
    Version,
    describe_fit,
    fit_picture,
    is_clip,
    join_pictures,
    measure_motion,
    open_picture,
)

# crop_x and crop_y: names of five positions; other values are shown as numbers.
_POSITIONS = {
    "crop_x": ("Left", "Left of centre", "Centre", "Right of centre", "Right"),
    "crop_y": ("Top", "Upper", "Centre", "Lower", "Bottom"),
}
_NO_CLIP = f"We can't take that file as a clip. Use an MP4, GIF or WebP under {upload.LARGEST} MB."
UNREADABLE = f"We can't read that file as a picture. Use a JPG, PNG, WebP or HEIC under {upload.LARGEST} MB."
_PICTURE = (
    "JPG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF, dropped or pasted anywhere on this page. "
    "An MP4 that was made here brings its settings; of any clip, its motion is measured."
)
_CLIP = (
    "An MP4 or another video, an animated GIF or WebP, or its frames as pictures or a folder, of one object in motion: "
    "whole, on white, transparent or plain. A view that was made here brings its settings."
)
_AT_MOST: Any = {"max_upload_size": upload.LARGEST}
_LAST = (
    "Where the clip ends, cropped to the shape of the first picture. Two parts of one view, as its left and its right, "
    "make a camera that goes from one to the other."
)
_NOT_RESTORED = "We can't restore settings from that clip."


class Opened(NamedTuple):
    """The chosen picture, upright and uncropped, and its name. key: identifies it."""

    key: str
    image: Image.Image
    name: str


class Picture(NamedTuple):
    """The picture of a job, uncropped, or its object as RGBA, or the frames of its clip; and the name.

    last: the picture at which the clip ends, if it ends at one.
    """

    image: Input
    name: str
    last: Image.Image | None = None


def choose_picture(version: Version, width: int, height: int) -> Picture | None:
    """Draw the widgets that choose and fit a picture, and the end, or a clip. Returns it, None while one is lacking."""
    views = version.name in VIEW_VERSIONS
    if name := st.session_state.pop("too_large", None):
        _refuse_upload(
            _NO_CLIP if views else UNREADABLE, f"{name} is too large: give a file of {upload.LARGEST} MB or smaller."
        )
    # Of any kind: what a file is, is told by its content.
    if views:
        key = f"upload_clip_{st.session_state.setdefault('clip_round', 0)}"
        more = {"accept_multiple_files": True, "args": (key,), "help": _CLIP}
        st.file_uploader("Drop, paste or choose a clip", key=key, on_change=_open_clip_upload, **more, **_AT_MOST)
    else:
        st.file_uploader(
            "Drop, paste or choose a picture", key="upload", on_change=_open_upload, help=_PICTURE, **_AT_MOST
        )
    opened: Opened | None = st.session_state.get("opened")
    _offer_samples(look.CLIPS if views else look.SAMPLES)
    if refused := st.session_state.get("refused"):
        headline, reason = refused
        st.error(f"{headline}\n\n{look.plain(reason)}", icon=":material/broken_image:")
    if restored := st.session_state.get("restored"):
        st.success(look.plain(restored), icon=":material/settings_backup_restore:")
    if views:
        frames = clip.read(version)
        return _fitted(chosen(), version, width, height, frames) if frames else None
    if "measured" in st.session_state:
        _show_motion(version)
    picture = _fitted(opened, version, width, height) if opened else None
    settings.choose_end()
    if not settings.ends_at_last():
        return picture
    last = _choose_last(opened, version, width, height)
    return picture._replace(last=last) if picture and last else None


def _offer_samples(samples: Iterable[str]) -> None:
    st.caption("Or start from a sample")
    with st.container(horizontal=True, gap="xsmall", key="samples"):
        for sample in samples:
            st.button(
                sample.capitalize(),
                key=f"sample_{sample}",
                type="primary" if sample == chosen_sample() else "secondary",
                on_click=open_sample,
                args=(sample,),
                width="stretch",
            )


def _show_motion(version: Version) -> None:
    """Say how much a dropped clip moves, which is measured at its first showing, and offer its motion bucket."""
    name, content, motion = st.session_state["measured"]
    if motion is None:
        bar = st.empty()

        def on_frame(done: int, of: int) -> None:
            if done % 20 == 0:
                bar.progress(done / of, f"Measuring the motion of {look.plain(name)} …")

        try:
            motion = measure_motion(content, name, on_frame)
        except UserError:  # of what is no clip that can be read, which has been said
            del st.session_state["measured"]
            return
        bar.empty()
        st.session_state["measured"] = name, b"", motion
    buckets = motion.buckets
    st.markdown(
        f"**{look.plain(name)}** moves like **motion bucket {motion.bucket:.0f}**, "
        f"{buckets.min():.0f} to {buckets.max():.0f} from frame to frame."
    )
    if field := base_fields(version.name).get("motion_bucket"):
        bucket = round(min(max(motion.bucket, field.low), field.high))
        about = "Has the next clip of a picture move as much."
        st.button(f"Use motion {bucket}", on_click=set_value, args=(field, version, bucket), help=about)
    with st.expander("Motion over time"):
        draw_lines("Motion bucket from each frame to the next", {"": buckets.tolist()}, "Frame")


def choose_fit(version: Version) -> None:
    """Draw the widgets that fit pictures of any shape to a frame."""
    chooser = base_fields(version.name)["fit"]
    draw(chooser, version)
    for field in options_of(chooser, version):
        if field.name in _POSITIONS:
            _choose_position(field, version)
        else:
            draw(field, version, slider=True)


def pressed() -> dict[str, bool]:
    """The samples' buttons, and whether each is the chosen one."""
    return {f"sample_{sample}": sample == chosen_sample() for sample in (*look.SAMPLES, *look.CLIPS)}


def chosen() -> Any:
    """The chosen picture or, for a version that takes one, the chosen clip; None where there is none."""
    return clip.chosen() if settings.current_version().name in VIEW_VERSIONS else st.session_state.get("opened")


def chosen_sample() -> str:
    """The name of the chosen sample; "" for another picture or clip, or none."""
    opened = chosen()
    return opened.key if opened and opened.key in look.SAMPLES | look.CLIPS else ""


def chosen_upload() -> str:
    """The id of the chosen upload; "" for another picture, or none."""
    opened = chosen()
    return opened.key if opened and upload.kept(opened.key) else ""


def open_sample(name: str) -> None:
    """Choose a sample, a picture or a clip."""
    if path := look.CLIPS.get(name):
        _open_clip(name, path.read_bytes(), path.name)
    else:
        _open(name, open_picture(look.SAMPLES[name]), look.SAMPLES[name].name)


def chosen_last() -> str:
    """The id of the upload that is the last picture; "" for another one, or none."""
    last: Opened | None = st.session_state.get("last")
    return last.key if last and upload.kept(last.key) and settings.ends_at_last() else ""


def open_last(upload_id: str) -> None:
    """Choose the picture of an earlier upload as the last one, if it is still there."""
    content, name = upload.kept(upload_id) or (b"", "")
    image = None
    with suppress(UserError):  # of an address that was changed by hand to a clip's
        image = upload.read_upload(content, name).picture if content else None
    st.session_state["last"] = Opened(upload_id, image, name) if image else None


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
    open_job_last(job)


def open_job_last(job: Job) -> None:
    """Choose the job's stored last picture, if it has one."""
    with suppress(UserError):  # of a file that is damaged or gone
        if last := stored_last(job):
            st.session_state["last"] = Opened(job.id, last, "the last picture")


def is_of(job: Job) -> bool:
    """Whether the chosen picture, or the chosen clip, is the job's stored one."""
    opened = chosen()
    return opened is not None and opened.key == job.id


def open_upload(upload_id: str, views: bool) -> None:
    """Choose the picture or, for views, the clip of an earlier upload, or say that it is gone."""
    content, name = upload.kept(upload_id) or (b"", "")
    found = None
    with suppress(UserError):  # of an address that was changed by hand to a model which takes the other kind
        found = upload.read_upload(content, name, views, most=upload.MOST_KEPT) if content else None
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
    st.session_state.pop("measured", None)


def _open_clip(key: str, content: bytes, name: str) -> None:
    clip.choose(key, content, name)
    st.session_state["refused"] = st.session_state["restored"] = None
    st.session_state.pop("measured", None)


def take_out(which: str) -> None:
    """Leave the session without an upload, which has been taken out of its uploader by hand: see app/hands.py."""
    if which == "last":
        st.session_state["last"] = st.session_state["last_refused"] = None
        return
    for place in ("opened", "opened_clip"):
        opened: Any = st.session_state.get(place)
        if opened and opened.key == st.session_state.get("uploaded"):
            st.session_state[place] = None
    st.session_state["refused"] = st.session_state["restored"] = None
    st.session_state.pop("measured", None)


def _open_upload() -> None:
    """Read the upload: a picture, a clip of an object, or one with a recipe, whose settings and input are restored.

    Nothing is changed by a file that cannot be read, nor by none: so a browser says that another one is to come.
    """
    if (file := st.session_state["upload"]) is not None:
        _read(file.name, file.getvalue(), views=False)


def _open_clip_upload(key: str) -> None:
    """Read what was given for a clip: a file, as `_open_upload` does, or the pictures that are its frames."""
    files = [(file.name, file.getvalue()) for file in st.session_state[key]]
    st.session_state["clip_round"] += 1  # an uploader without files: more would be taken for more frames
    if len(files) == 1:
        _read(*files[0], views=True)
    elif files:
        try:
            version = settings.current_version()
            most = max(version.frames, clip.wanted(version))
            with upload.one_at_a_time:
                content, name, count = join_pictures(files, most)
        except UserError as error:
            _refuse_upload(_NO_CLIP, str(error))
            return
        st.session_state["uploaded"] = upload_id = upload.keep(content, f"{name} …")
        _open_clip(upload_id, content, f"{name} …")
        which = f"The first {most} of {count}" if count > most else f"{count}"
        st.session_state["restored"] = f"{which} pictures are the clip's frames, in the order of their names."


def _read(name: str, content: bytes, views: bool) -> None:
    st.session_state["refused"] = st.session_state["restored"] = None
    st.session_state["uploaded"] = ""
    st.session_state.pop("measured", None)
    is_measured = not views and is_clip(content) and len(content) <= upload.LARGEST << 20
    try:
        found = upload.read_upload(content, name, views)
    except UserError as error:
        if is_measured:
            st.session_state["measured"] = name, content, None
        headline = UNREADABLE if isinstance(error, PictureError) else _NOT_RESTORED
        _refuse_upload(_NO_CLIP if views else headline, str(error))
        return
    if found.picture or found.is_clip:
        st.session_state["uploaded"] = key = upload.keep(content, name)
        if found.picture:
            _open(key, found.picture, name)
        else:
            _open_clip(key, content, name)
    if found.last:
        st.session_state["last"] = Opened(key, found.last, f"the last frame of {name}")
    if found.request:
        settings.restore(found.request)
    st.session_state["restored"] = f"{found.note} {found.mark}".strip()
    if is_measured:
        st.session_state["measured"] = name, content, None


def _choose_last(opened: Opened | None, version: Version, width: int, height: int) -> Image.Image | None:
    """Draw the place of the last picture. Returns it, None while there is none."""
    with st.container(key="last_place"):
        st.file_uploader(
            "Last picture", key="upload_last", on_change=_open_last, max_upload_size=upload.LARGEST, help=_LAST
        )
        if refused := st.session_state.get("last_refused"):
            st.error(f"{UNREADABLE}\n\n{look.plain(refused)}", icon=":material/broken_image:")
        last: Opened | None = st.session_state.get("last")
        if last is None:
            return None
        chooser = base_fields(version.name)["fit"]
        fit, options = value_of(chooser, version), {field.name: field for field in options_of(chooser, version)}
        if fit == "object":
            with look.room("last_frame", last.image.size):
                st.image(last.image, width="stretch", alt=f"The last picture, {last.name}")
            return last.image
        position = value_of(options["crop_x"], version), value_of(options["crop_y"], version)
        _show_frame(last, width, height, fit, position, "last_frame")
        same_size = opened and opened.image.size == last.image.size
        if opened and same_size and np.array_equal(np.asarray(opened.image), np.asarray(last.image)):
            st.caption(":material/info: The last picture is the first one: the clip will be a loop.")
        return last.image


def _open_last() -> None:
    """Read the upload of the last picture. One that cannot be read leaves all as it was."""
    file = st.session_state["upload_last"]
    if file is None:
        return
    content = file.getvalue()
    st.session_state["last_refused"] = None
    try:
        image = upload.read_upload(content, file.name).picture
    except UserError as error:
        st.session_state["last_refused"] = str(error)
        return
    if image:
        st.session_state["last"] = Opened(upload.keep(content, file.name), image, file.name)
    else:
        st.session_state["last_refused"] = f"No picture can be read from {file.name}: give a picture."


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


def _show_frame(
    opened: Opened, width: int, height: int, fit: str, position: tuple[float, float], place: str = "frame"
) -> None:
    """Show the frame that the model sees, fitted as in the job. place: where it is kept for the next run."""
    key = (opened.key, width, height, fit, position)
    if st.session_state.get(place, (None,))[0] != key:
        st.session_state[place] = key, fit_picture(opened.image, width, height, fit, position)
    frame: Image.Image = st.session_state[place][1]
    with look.room(place, frame.size):
        st.image(frame, width="stretch", alt=f"What the model sees of {opened.name}")
    st.caption(describe_fit(opened.image.size, width, height, fit), text_alignment="center")
    if opened.image.width < width or opened.image.height < height:
        st.caption(":material/warning: Very small picture; the clip will look soft.", text_alignment="center")
    if frame.getcolors(1):  # as of a picture that is transparent throughout
        st.caption(":material/warning: One colour throughout: nothing is to be seen in it.", text_alignment="center")
