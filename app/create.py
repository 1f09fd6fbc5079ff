"""The Create page: the picture and its movement on the left, the clip on the right, Generate at the bottom.

Nothing is computed in here: a click puts a job into `app.jobs`, and the page shows what has become of it.
"""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import streamlit as st
from PIL import Image

from app import controls
from app.jobs import Job, table
from sgm import UserError, Version, VideoRequest, describe_fit, fit_picture, open_picture

_SAMPLES = {path.stem: path for path in sorted((Path(__file__).parent / "samples").glob("*.jpg"))}
_POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
_POSITION_NAMES = {
    "horizontal": ("Left", "Left of centre", "Centre", "Right of centre", "Right"),
    "vertical": ("Top", "Upper", "Centre", "Lower", "Bottom"),
}
_DOING = {"encode": "Reading the picture", "sample": "Step {step} of {total}", "decode": "Painting the frames"}
_LARGEST_UPLOAD = 20  # MB; open_picture checks it again, since the browser alone enforces it


class Picture(NamedTuple):
    """What the model will see, the name it came under, and how it was made to fit: "crop" or "pad"."""

    frame: Image.Image
    name: str
    fit: str


def show_page() -> None:
    job = _current_job()
    st.html(_style())
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center", key="head"):
        st.title("Image to video", anchor=False)
        if waiting := sum(other.state == "queued" for other in table().jobs()):
            st.badge(f"{waiting} waiting", icon=":material/hourglass_empty:", color="gray")
    left, right = st.columns([7, 10], gap="large")
    with left:
        st.header("1 · Picture", anchor=False)
        picture = _picture(controls.current_version(), job)
        st.header("2 · Movement", anchor=False)
        version = controls.choose_version()
        try:
            request = controls.movement(version)
        except UserError as error:
            request = None
            st.error(controls.plain(str(error)))
    with right:
        st.header("Result", anchor=False)
        _result(job)
    with st.bottom:
        if job and job.active:
            _follow(job.id)
        else:
            _start(request if version.checkpoint_path else None, picture)


def _current_job() -> Job | None:
    """This session's job; a new session takes over the one that its link names, with its settings."""
    linked = st.query_params.get("job")
    if "job" not in st.session_state:
        st.session_state["job"] = linked
        if linked and (job := table().get(linked)):
            controls.restore(job.request)
            st.session_state["source"] = "job"
    job_id = st.session_state["job"]
    return table().get(job_id) if job_id else None


def _forget_job() -> None:
    st.session_state["job"] = None
    st.query_params.pop("job", None)


# The picture.


def _picture(version: Version, job: Job | None) -> Picture | None:
    """Let a picture be chosen, and show how much of it the model sees."""
    uploaded = st.file_uploader(
        "Drop, paste or choose a picture",
        ["jpg", "png", "webp", "avif", "gif", "bmp", "tiff"],
        key="upload",
        on_change=_use,
        args=("upload",),
        max_upload_size=_LARGEST_UPLOAD,
    )
    source = st.session_state.get("source")
    st.caption("Or start from a sample")
    with st.container(horizontal=True, gap="xsmall", key="samples"):
        for sample in _SAMPLES:
            chosen = "primary" if source == sample else "secondary"
            st.button(
                sample.capitalize(), key=f"sample_{sample}", type=chosen, on_click=_use, args=(sample,), width="stretch"
            )
    if source == "upload" and uploaded:
        key, content, name = uploaded.file_id, uploaded.getvalue(), uploaded.name
    elif source in _SAMPLES:
        key, content, name = source, _SAMPLES[source], f"{source}.jpg"
    elif source == "job" and job:  # a browser forgets its upload at a reload; the job has it
        key, content, name = job.id, job.picture, job.name
    else:
        return None
    try:
        return _framed(key, content, name, version)
    except UserError as error:
        st.error(controls.plain(str(error)), icon=":material/broken_image:")
        return None


def _use(source: str) -> None:
    st.session_state["source"] = source


def _framed(key: str, content: bytes | Path, name: str, version: Version) -> Picture:
    """Show the crop and its fields. The decoded picture is kept in the session, so that reruns are quick."""
    if st.session_state.get("opened", ("",))[0] != key:
        st.session_state["opened"] = (key, open_picture(content, name))
    image: Image.Image = st.session_state["opened"][1]
    shown = st.container()
    fit, position = "crop", (0.5, 0.5)
    if image.width * version.height != image.height * version.width:
        sideways = image.width * version.height > image.height * version.width
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
    frame = fit_picture(image, version.width, version.height, fit, position)
    with shown:
        st.image(frame, width="stretch", alt=f"What the model sees of {name}")
        st.caption(describe_fit(image.size, version.width, version.height, fit), text_alignment="center")
        if image.width < version.width or image.height < version.height:
            st.caption(":material/warning: Very small picture; the clip will look soft.", text_alignment="center")
    return Picture(frame, name, fit)


# The clip.


def _result(job: Job | None) -> None:
    """What has become of the job. The video stands outside the polling fragment, so that it plays on."""
    if job is None and st.session_state["job"]:
        st.info("This clip is no longer on the server.", icon=":material/link_off:")
        st.button("Start anew", on_click=_forget_job)
    elif job is None:
        st.html('<div class="stage"><b>Your clip will play here</b>Choose a picture, then press Generate.</div>')
    elif job.active:
        _input(job)
        st.caption(
            f"Making a clip of {controls.plain(job.name)}. Change settings or reload meanwhile: it will not be lost."
        )
    elif job.state == "done":
        _clip(job)
    else:
        show = st.error if job.state == "failed" else st.info
        kept = "" if job.state == "failed" else " Your settings are kept."
        show(controls.plain(job.message) + kept)
        _input(job)


def _input(job: Job) -> None:
    if job.picture.is_file():
        st.image(job.picture, width="stretch", alt=f"The picture {job.name}")


def _clip(job: Job) -> None:
    try:
        content = job.clip.read_bytes()
    except OSError:
        st.info("This clip has been deleted from the server.", icon=":material/link_off:")
        return
    with st.container(key="clip"):
        st.video(content, loop=True, autoplay=True, muted=True, alt=f"The clip made of {job.name}")
    st.download_button(
        "Download MP4",
        content,
        f"{Path(job.name).stem}-{job.id}.mp4",
        "video/mp4",
        type="primary",
        icon=":material/download:",
        on_click="ignore",
    )
    st.caption(f"What ran: {controls.summary(job.settings)} · {_duration(job.seconds)}")


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
            st.caption("Choose a picture first.")
        elif request is None:
            st.caption("This cannot run yet: see Movement.")
        else:
            st.caption(_price(request))
    if clicked and request and picture:
        try:
            request = replace(controls.ready(request), fit=picture.fit)
            job = table().submit(request, picture.frame, picture.name)
        except UserError as error:
            st.error(controls.plain(str(error)))
            return
        st.session_state["job"] = job.id
        st.query_params["job"] = job.id
        st.rerun()


def _price(request: VideoRequest) -> str:
    length = f"{(request.frames or 1) / (request.fps or 1):.1f} s of video"
    seconds = table().seconds_for(request)
    return f"{length}, made in about {_duration(seconds)}" if seconds else length


@st.fragment(run_every=0.5)
def _follow(job_id: str) -> None:
    """Progress and Cancel. Drawn, and so polled, only while the job is active; its end redraws the page once."""
    job = table().get(job_id)
    if job is None or not job.active:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center", key="bar"):
        st.progress(job.progress.fraction if job.progress else 0.0, _doing(job))
        st.button(
            "Cancel",
            icon=":material/close:",
            on_click=table().cancel,
            args=(job_id,),
            disabled=job.stopping,
            key="cancel",
        )


def _doing(job: Job) -> str:
    """What the job is at, and how long it will be at it."""
    if job.stopping:
        return "Stopping …"
    if job.state == "queued":
        ahead = table().ahead(job.id)
        return f"Waiting: {ahead} {'clip' if ahead == 1 else 'clips'} ahead" if ahead else "Starting"
    if job.progress is None:
        return "Loading the model"
    at = job.progress
    text = _DOING.get(at.phase, at.phase).format(step=at.step, total=at.total)
    left = job.seconds_left
    return text if left is None else f"{text} · {_duration(left)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(1, round(seconds)), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# How it looks where Streamlit's theme does not reach.


@st.cache_data
def _style() -> str:
    """The style sheet; the samples' buttons show their pictures."""
    rules = [_STYLE]
    for name, path in _SAMPLES.items():
        small = io.BytesIO()
        fit_picture(open_picture(path), 192, 120).save(small, "JPEG", quality=75)
        data = base64.b64encode(small.getvalue()).decode()
        rules.append(f".st-key-sample_{name} button {{ --picture: url(data:image/jpeg;base64,{data}); }}")
    return f"<style>{''.join(rules)}</style>"


_STYLE = """
.stAppHeader { background: transparent; pointer-events: none; }
.stAppHeader * { pointer-events: auto; }
.stMainBlockContainer { padding: 2rem 1.5rem; max-width: 76rem; margin: auto; }
.stBottom { border-top: 1px solid rgb(128 128 128 / 25%); }
[data-testid="stBottomBlockContainer"] { padding: 0.75rem 1.5rem 1rem; max-width: 76rem; margin: auto; }
[data-testid="stCaptionContainer"] { color: inherit; opacity: 0.75; } /* Streamlit's grey is too faint to read */
.st-key-head h1 { padding: 0; }
.st-key-bar button[kind="primary"]:enabled, .stDownloadButton button { background: #0b6e6b; color: #fff; }
.st-key-bar button[kind="primary"]:enabled:hover, .stDownloadButton button:hover { background: #095a58; color: #fff; }
.st-key-bar button:enabled kbd { color: #d4e8e7; opacity: 1; }
.stImage img, .stVideo { border-radius: 0.5rem; }
.stage { aspect-ratio: 5 / 3; display: flex; flex-direction: column; align-items: center; justify-content: center;
  gap: 0.25rem; border: 1px dashed #9a9a94; border-radius: 0.5rem; text-align: center; padding: 1rem; }
.st-key-samples { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 0.5rem; }
.st-key-samples > div, .st-key-samples .stButton, .st-key-samples button { width: 100%; }
.st-key-samples button { aspect-ratio: 1; align-items: end; padding: 0 0 0.2rem; border: none; color: #fff;
  background: linear-gradient(transparent 45%, rgb(0 0 0 / 80%)), var(--picture) center / cover; }
.st-key-samples button p { font-size: 0.8rem; }
.st-key-samples button:hover, .st-key-samples button:focus { color: #fff; filter: brightness(1.12); }
.st-key-samples button[kind="primary"] { outline: 3px solid #1a9a94; outline-offset: 2px; }
@media (max-width: 640px) {
  .st-key-samples { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .st-key-samples button { aspect-ratio: 8 / 5; }
  .stColumn:has(.st-key-clip) { order: -1; } /* a clip first: nobody scrolls past all settings for it */
}
"""

show_page()
