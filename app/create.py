"""The Create page: the picture and its movement on the left, the clip on the right, Generate at the bottom.

Nothing is computed in here: a click puts a job into `app.jobs`, and the page shows what has become of it.
"""

from __future__ import annotations

import html
import io
import math
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import streamlit as st
from PIL import Image
from streamlit.navigation.page import StreamlitPage

from app import controls, cutout, look, models
from app.jobs import LONGEST_CHAIN, Job, device, doing, open_stored, table
from sgm import (
    EXPORTS,
    UserError,
    VideoRequest,
    describe_fit,
    fit_picture,
    loop_order,
    open_picture,
    orbit_of,
    prepare_picture,
    read_frames,
    read_settings,
)

_POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
_POSITION_NAMES = {
    "horizontal": ("Left", "Left of centre", "Centre", "Right of centre", "Right"),
    "vertical": ("Top", "Upper", "Centre", "Lower", "Bottom"),
}
_LARGEST_UPLOAD = 20  # MB; checked again below, since the browser alone enforces it
_LARGEST_SCALE = 4  # times the model's size, stored of a picture: for zooming into it
_UNREADABLE = f"We can't read that file as a picture. Use a JPG, PNG or WebP under {_LARGEST_UPLOAD} MB."


class Opened(NamedTuple):
    """The picture that was chosen, upright and whole."""

    key: str
    image: Image.Image
    name: str


class Picture(NamedTuple):
    """The part that the model will see, in the picture's own resolution, its name, and its fit.

    For a fit of "object", it is the object that was cut out, RGBA.
    """

    frame: Image.Image
    name: str
    fit: str


def page() -> StreamlitPage:
    """The page, for navigation: a function, for Streamlit would read a file again while what it imports stays old."""
    return st.Page(show_page, title="Create", icon=":material/movie:", url_path="create", default=True)


def show_page() -> None:
    job = _current_job()
    st.html(look.style())
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center", key="head"):
        st.title("Image to video", anchor=False)
        with st.container(horizontal=True, width="content", vertical_alignment="center", gap="small"):
            st.badge(device(), icon=":material/memory:", color="gray")
            if waiting := table().waiting():
                st.badge(f"{waiting} waiting", icon=":material/hourglass_empty:", color="gray")
    left, right = st.columns([7, 10], gap="large")
    with left:
        st.header("1 · Picture", anchor=False)
        picture = _picture(*controls.current_size())
        st.header("2 · Movement", anchor=False)
        version = controls.choose_version()
        ready = models.show_status(version)
        request = None
        try:
            request = controls.movement(version)
            _share(request, job)
        except UserError as error:
            st.error(controls.plain(str(error)))
    with right, st.container(key="result"):
        st.header("Result", anchor=False)
        _result(job)
        if not (job and job.active):
            _recent(job)
    with st.bottom:
        if job and job.active:
            _follow(job.id)
        else:
            _start(request if ready else None, picture)


def _owner() -> str:
    """This browser session, as the queue knows it."""
    return st.session_state.setdefault("owner", secrets.token_hex(8))


# The address: ?job=… and the settings that differ from the job's, or from the model's own.


def _current_job() -> Job | None:
    """This session's job. A new session takes over the one that its address names, and the settings in it."""
    linked = st.query_params.get("job")
    if "job" not in st.session_state:
        st.session_state["job"] = linked
        job = table().get(linked) if linked else None
        if job:
            _open_job(job)
        try:
            controls.restore(controls.request_from(st.query_params.to_dict(), job and job.request))
        except UserError as error:
            st.session_state["refused"] = ("Some settings in the address were ignored.", str(error))
            if job:
                controls.restore(job.request)
    job_id = st.session_state["job"]
    return table().get(job_id) if job_id else None


def _share(request: VideoRequest, job: Job | None) -> None:
    """Let the address say what the fields say."""
    address = controls.address_of(request, job and job.request)
    if st.session_state["job"]:
        address["job"] = st.session_state["job"]
    if address != st.query_params.to_dict():
        st.query_params.from_dict(address)


def _follow_job(job: Job) -> None:
    """Make a job this session's own."""
    st.session_state["job"] = job.id


def _forget_job() -> None:
    st.session_state["job"] = None


# The picture.


def _picture(width: int, height: int) -> Picture | None:
    """Let a picture be chosen, and show how much of it the model sees."""
    st.file_uploader(
        "Drop, paste or choose a picture",
        ["jpg", "png", "webp", "avif", "gif", "bmp", "tiff", "mp4"],
        key="upload",
        on_change=_open_upload,
        max_upload_size=_LARGEST_UPLOAD,
        help="Drop an MP4 that was made here to restore its settings.",
    )
    opened: Opened | None = st.session_state.get("opened")
    st.caption("Or start from a sample")
    with st.container(horizontal=True, gap="xsmall", key="samples"):
        for sample in look.SAMPLES:
            chosen = "primary" if opened and opened.key == sample else "secondary"
            st.button(
                sample.capitalize(),
                key=f"sample_{sample}",
                type=chosen,
                on_click=_open_sample,
                args=(sample,),
                width="stretch",
            )
    if refused := st.session_state.get("refused"):
        headline, reason = refused
        st.error(f"{headline}\n\n{controls.plain(reason)}", icon=":material/broken_image:")
    if told := st.session_state.get("restored"):
        st.success(controls.plain(told), icon=":material/settings_backup_restore:")
    if opened and controls.current_version().fit == "object":
        found = cutout.show_object(*opened, width, height)
        return Picture(found, opened.name, "object") if found else None
    return _framed(opened, width, height) if opened else None


def _open(key: str, image: Image.Image, name: str) -> None:
    st.session_state["opened"] = Opened(key, image, name)
    st.session_state["refused"] = st.session_state["restored"] = None


def _open_sample(name: str) -> None:
    _open(name, open_picture(look.SAMPLES[name]), f"{name}.jpg")


def _open_job(job: Job) -> None:
    """The job's own copy: a browser forgets its upload at a reload."""
    try:
        _open(job.id, open_stored(job.picture), job.name)
    except OSError:
        st.session_state["opened"] = None


def _open_upload() -> None:
    """Read what was dropped: a picture, or a clip made here, which brings its settings and its first frame."""
    file = st.session_state["upload"]
    st.session_state["opened"] = st.session_state["refused"] = st.session_state["restored"] = None
    if file is None:
        return
    content = file.getvalue()
    try:
        if not file.name.lower().endswith(".mp4"):
            _open(file.file_id, open_picture(content, file.name, keep_alpha=True), file.name)
            return
        if len(content) > _LARGEST_UPLOAD * 2**20:
            raise UserError(f"{file.name} is larger than {_LARGEST_UPLOAD} MB.")
        settings = read_settings(content)
        if settings is None:
            raise UserError(f"{file.name} holds no settings: only clips that were made here do.")
        request = controls.request_from(settings)
        controls.restore(request)
        frames, _ = read_frames(content)
        which = "last" if request.row.sv3d else "first"  # an orbit ends at the picture's own view
        _open(file.file_id, Image.fromarray(frames[-1 if request.row.sv3d else 0]), file.name)
        st.session_state["restored"] = f"Settings of {file.name} restored. Its {which} frame stands in for the picture."
    except UserError as error:
        clip = file.name.lower().endswith(".mp4")
        st.session_state["refused"] = ("We can't restore settings from that clip." if clip else _UNREADABLE, str(error))


def _framed(opened: Opened, width: int, height: int) -> Picture:
    """Show the crop and its fields."""
    image = opened.image
    shown = st.container()
    fit, position = "crop", (0.5, 0.5)
    if image.width * height != image.height * width:
        sideways = image.width * height > image.height * width
        left, right = st.columns(2, vertical_alignment="top")
        fit = left.segmented_control(
            "Frame",
            ["crop", "pad"],
            default="crop",
            required=True,
            format_func=lambda mode: {"crop": "Crop", "pad": "Blurred edges"}[mode],
            key="fit",
            help="The model sees exactly the frame above.",
        )
        names = _POSITION_NAMES["horizontal" if sideways == (fit == "crop") else "vertical"]
        if fit == "crop":
            at = right.select_slider(
                "Crop position",
                _POSITIONS,
                0.5,
                format_func=lambda p: names[_POSITIONS.index(p)],
                key="position",
            )
            position = (at, 0.5) if sideways else (0.5, at)
    frame, preview = _fitted(opened, width, height, fit, position)
    with shown:
        st.image(preview, width="stretch", alt=f"What the model sees of {opened.name}")
        st.caption(describe_fit(image.size, width, height, fit), text_alignment="center")
        if image.width < width or image.height < height:
            st.caption(":material/warning: Very small picture; the clip will look soft.", text_alignment="center")
    return Picture(frame, opened.name, fit)


def _fitted(
    opened: Opened, width: int, height: int, fit: str, position: tuple[float, float]
) -> tuple[Image.Image, Image.Image]:
    """The frame in up to the picture's own resolution, exactly of the model's shape, and as the model sees it.

    Both come from the same pixels: the job stores the first, and the second is made from it as the job will.
    """
    wanted = (opened.key, width, height, fit, position)
    if st.session_state.get("fitted", (None,))[0] != wanted:
        image = opened.image
        scales = image.width / width, image.height / height
        scale = min(scales) if fit == "crop" else max(scales)
        unit = math.gcd(width, height)
        times = max(1, min(math.floor(scale * unit), _LARGEST_SCALE * unit))
        frame = fit_picture(image, width // unit * times, height // unit * times, fit, position)
        st.session_state["fitted"] = (wanted, frame, fit_picture(frame, width, height))
    return st.session_state["fitted"][1:]


# The clip.


def _result(job: Job | None) -> None:
    """What has become of the job. The video stands outside the polling fragments, so that it plays on."""
    if job is None and st.session_state["job"]:
        st.info("This clip is no longer on the server.", icon=":material/link_off:")
        st.button("Start anew", on_click=_forget_job)
    elif job is None:
        st.html('<div class="stage"><b>Your clip will play here</b>Choose a picture, then press Generate.</div>')
    elif job.active:
        _watch(job.id)
        st.caption(
            f"Making a clip of {controls.plain(job.name)}. Change settings or reload meanwhile: it will not be lost."
        )
    elif job.state == "done":
        _clip(job)
    else:
        show = st.error if job.state == "failed" else st.info
        kept = "" if job.state == "failed" else " Your settings are kept."
        show(controls.plain(job.message) + kept)
        st.button("Run again", icon=":material/replay:", on_click=_submit, args=(table().again, job.id))
        _still(job)


@st.fragment(run_every=2 * look.POLL)
def _watch(job_id: str) -> None:
    """The live preview, from the first steps on."""
    if job := table().get(job_id):
        _still(job)


def _still(job: Job) -> None:
    """The preview of a job, or the picture that it starts from."""
    try:
        address = look.inline(job.preview or _small(job.picture, job.request))
    except OSError:
        return
    about = f"{'A preview of the clip of' if job.preview else 'The picture'} {job.name}"
    st.html(f'<div class="stage live"><img src="{address}" alt="{html.escape(about)}"></div>')


@st.cache_data(max_entries=16)
def _small(path: Path, _request: VideoRequest) -> bytes:
    image = open_stored(path)
    if _request.fit == "object":
        image = prepare_picture(image, _request)
    image.thumbnail((960, 960))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return file.getvalue()


def _clip(job: Job) -> None:
    try:
        content = job.unsaved or job.film.read_bytes()
    except OSError:
        st.info("This clip has been deleted from the server.", icon=":material/link_off:")
        return
    if job.message:
        st.warning(controls.plain(job.message), icon=":material/save:")
    if job.unwritten and st.button("Save again", icon=":material/save:"):
        with st.spinner("Saving …"):
            saved = table().save_again(job.id)
        if saved is None or not saved.message:
            st.rerun()
        st.toast("There is still no room.", icon=":material/save:")
    with st.container(key="clip"):
        st.video(content, loop=True, autoplay=True, muted=True, alt=f"The clip made of {job.name}")
    name = f"{Path(job.name).stem}-{job.id}"
    with st.container(horizontal=True, key="actions"):
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
            if job.request.row.sv3d:
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
            kept = table().lossless(job)
            st.caption(
                "Made of the frames as the model drew them: the PNGs have lost nothing."
                if kept
                else "Made of the MP4: the frames as the model drew them were not kept."
            )
        st.button(
            "New take",
            icon=":material/casino:",
            help="The same with the next seed.",
            on_click=_submit,
            args=(table().new_take, job.id),
        )
        links = len(table().chain(job.id))
        st.button(
            "Extend",
            icon=":material/add:",
            disabled=bool(job.unsaved) or job.request.row.sv3d or not 0 < links < LONGEST_CHAIN,
            help=f"Go on from near the end, as one film of at most {LONGEST_CHAIN} clips. This is clip {links or 1}.",
            on_click=_submit,
            args=(table().extend, job.id),
        )
        with st.popover("Link", icon=":material/link:"):
            st.caption("Opens this clip, with its settings, on this computer:")
            st.code(f"{(st.context.url or '').partition('?')[0]}?job={job.id}", language=None)
    film = f"{links} clips joined · last of them: " if links > 1 else ""
    st.caption(f"What ran: {film}{controls.summary(job.settings)} · {look.duration(job.seconds)}")


def _recent(shown: Job | None) -> None:
    """The latest other clips, to go back to."""
    others = [job for job in table().jobs() if job.state == "done" and job.poster.is_file()]
    others = [job for job in others if shown is None or job.id != shown.id][:4]
    if not others:
        return
    st.header("Recent clips", anchor=False)
    with st.container(key="recent"):
        for job in others:
            with st.container():
                st.image(job.poster, width="stretch", alt=f"First frame of the clip of {job.name}")
                st.button(
                    "Open",
                    key=f"recent_{job.id}",
                    help=f"{job.name}, seed {job.request.seed}, {look.when(job.created)}",
                    on_click=_reopen,
                    args=(job.id,),
                    width="stretch",
                )


def _reopen(job_id: str) -> None:
    if job := table().get(job_id):
        controls.restore(job.request)
        _open_job(job)
        _follow_job(job)


def _exported(job: Job, title: str) -> Callable[[], bytes]:
    """For a download button: made when it is asked for."""
    return lambda: EXPORTS[title][2](*table().frames(job))


def _turntable(job: Job) -> Callable[[], bytes]:
    """For a download button: one round, for ever."""

    def write() -> bytes:
        frames, fps = table().frames(job)
        return EXPORTS["WebP"][2](frames[loop_order(*orbit_of(job.request))], fps)

    return write


def _submit(make: Callable[[str, str], Job], job_id: str) -> None:
    """Put a job that follows from another into the queue; its settings become the fields'."""
    try:
        job = make(job_id, _owner())
    except UserError as error:
        st.session_state["refused"] = ("That cannot be made.", str(error))
        return
    controls.restore(job.request)
    _follow_job(job)


# The bar at the bottom.


def _start(request: VideoRequest | None, picture: Picture | None) -> None:
    """Generate, and what it will cost. One session has one job at a time, so a second click starts nothing."""
    with st.container(horizontal=True, vertical_alignment="center", key="bar"):
        clicked = st.button(
            "Generate",
            type="primary",
            icon=":material/play_arrow:",
            shortcut="Ctrl+Enter",
            disabled=request is None or picture is None,
        )
        if picture is None:
            opened = st.session_state.get("opened")
            st.caption("The object is not cut out yet: see Picture." if opened else "Choose a picture first.")
        elif request is None:
            st.caption("This cannot run yet: see Movement.")
        else:
            st.caption(_price(request))
    if clicked and request and picture:
        try:
            request = replace(controls.ready(request), fit=picture.fit)
            job = table().submit(request, picture.frame, picture.name, _owner())
        except UserError as error:
            st.error(controls.plain(str(error)))
            return
        _follow_job(job)
        st.rerun()


def _price(request: VideoRequest) -> str:
    length = f"{(request.frames or 1) / (request.fps or 1):.1f} s of video"
    seconds = table().seconds_for(request)
    return f"{length}, made in about {look.duration(seconds)}" if seconds else length


@st.fragment(run_every=look.POLL)
def _follow(job_id: str) -> None:
    """Progress and Cancel. Drawn, and so polled, only while the job is active; its end redraws the page once."""
    job = table().get(job_id)
    if job is None or not job.active:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center", key="bar"):
        st.progress(job.fraction if job.state == "running" else 0.0, _doing(job))
        st.button(
            "Cancel",
            icon=":material/close:",
            on_click=table().cancel,
            args=(job_id,),
            disabled=job.stopping,
            key="cancel",
        )
    if job.progress and job.progress.note:
        st.caption(job.progress.note)


def _doing(job: Job) -> str:
    """What the job is at, and how long it will be at it."""
    left = "" if job.seconds_left is None else look.duration(job.seconds_left)
    if job.stopping:
        return "Stopping, once this part of the model is loaded …" if job.phase == "load" else "Stopping …"
    if job.state == "queued":
        ahead = table().ahead(job.id)
        text = f"Number {ahead} in line" if ahead else "Starting"
        return f"{text}, done in about {left}" if left else text
    return f"{doing(job)} · {left} left" if left else doing(job)
