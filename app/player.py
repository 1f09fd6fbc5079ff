"""The player of a finished clip, with its downloads, its link and its recipe."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlencode

import streamlit as st
from PIL import Image

from app import look
from app.jobs import Job, still, table
from sgm import (
    EXPORTS,
    JOIN,
    RECIPE_TEXTS,
    Smoothing,
    UserError,
    ViewsRequest,
    encode_video,
    is_marked,
    loop_order,
    orbit_of,
    read_frames,
    read_settings,
)

_SMOOTHINGS = {
    "As made": Smoothing(),
    "Smoother": Smoothing(2),
    "Smoothest": Smoothing(4),
    "Slow motion": Smoothing(2, slow=True),
}
_RECIPES = {"yaml": "YAML", "command": "Command line", "python": "Python"}
_LANGUAGES = {"yaml": "yaml", "command": "sh", "python": "python"}


def play(job: Job, content: bytes, part: Path | None = None) -> None:
    """Show the video, looping and muted. content: its MP4, b"" where none could be encoded. part: as it is chosen."""
    if not content:
        st.info("This clip could not be encoded as a video: save its frames under More formats.")
        return
    look.video("clip", _size(job, part), content, f"The clip made of {job.name}")


def _size(job: Job, part: Path | None) -> tuple[int, int]:
    """Width and height of what is played, to scale: of the grid of all views, its poster's."""
    if part is None and isinstance(job.request, ViewsRequest) and (grid := still(job)):
        return Image.open(io.BytesIO(grid)).size
    return job.request.size


def choose_part(job: Job) -> Path | None:
    """Of a clip's views, draw the choice of what is played; None for the grid of all, and for other clips."""
    paths: dict[str, Path] = {path.stem: path for path in job.parts if job.has(path)}
    if not isinstance(job.request, ViewsRequest) or not paths:
        return None
    degrees = zip(*job.request.family.degrees(job.request), strict=True)
    titles = {f"view-{view}": f"{a:.4g}°" + (f", {e:+.4g}°" if e else "") for view, (e, a) in enumerate(degrees)}
    names = ["grid", *(name for name in ("walk", "input") if name in paths), *(n for n in titles if n in paths)]
    chosen = st.segmented_control(
        "Shown",
        names,
        default="grid",
        required=True,
        format_func=lambda name: titles.get(name) or name.capitalize(),
        key=f"part_{job.id}",
        help="Grid: the clip and all its views, in sync. Walk: once around the object while the clip goes on. Input: "
        "the clip as the model saw it. Degrees: a view's azimuth, and its elevation where it has one.",
    )
    return paths.get(chosen or "grid")


def offer_downloads(job: Job, content: bytes, part: Path | None = None) -> None:
    """Buttons that download the clip as MP4, whose content is given, and in other formats. part: that is played."""
    name = f"{Path(job.name).stem}-{job.id}" + (f"-{part.stem}" if part else "")
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
        smoothing = Smoothing() if job.parts else _choose_smoothing(job)
        video = {"MP4": (".mp4", "video/mp4", None)} if smoothing.times > 1 else {}
        for title, (suffix, mime, write) in {**video, **EXPORTS}.items():
            made = _exported(job, write, smoothing, part)
            st.download_button(title, made, f"{name}{suffix}", mime, on_click="ignore", width="stretch")
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
        if paths := [path for path in (job.clip, *job.parts) if job.parts and job.has(path)]:
            zipped = f"{Path(job.name).stem}-{job.id}.zip"
            st.download_button(
                "All clips (zip)", lambda: _zipped(paths), zipped, "application/zip", on_click="ignore", width="stretch"
            )
        lossless, but = (
            table().lossless(job) and not part,
            ", but carry the watermark" if is_marked(job.settings) else "",
        )
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
        what = "clip" if job.parts else "picture"
        st.caption(f"Its recipe makes it again. PICTURE stands for the path of the {what}.")
        try:
            texts = {name: text(job.settings) for name, text in RECIPE_TEXTS.items()}
        except UserError as error:
            st.info(look.plain(str(error)))
            return
        for tab, (name, text) in zip(st.tabs([_RECIPES.get(name, name) for name in texts]), texts.items(), strict=True):
            with tab:
                st.code(text, language=_LANGUAGES.get(name), wrap_lines=True)


def _choose_smoothing(job: Job) -> Smoothing:
    """Draw the widget of how many frames go between the clip's own, as far as there is room for them."""
    chain, fps = table().chain(job.id) or [job], job.request.fps
    frames, offers = sum(link.request.frames for link in chain) + JOIN * (len(chain) - 1), dict(_SMOOTHINGS)
    reason = ""
    for title, smoothing in _SMOOTHINGS.items():
        try:
            smoothing.check(frames, *job.request.size)
        except UserError as error:
            reason = f" {error}"
            del offers[title]
    title = st.selectbox(
        "Smoothness",
        list(offers),
        format_func=lambda title: f"{title} · {fps * (1 if offers[title].slow else offers[title].times)} fps",
        key=f"smoothing_{job.id}",
        help="Frames in between follow the motion; the model's own stay as they are. Slow motion is twice as long."
        + look.plain(reason),
    )
    return offers[title or "As made"]


def _exported(
    job: Job, write: Callable[..., bytes] | None, smoothing: Smoothing, part: Path | None
) -> Callable[[], bytes]:
    """The exported file for a download button, encoded only when it is clicked. write: None for a video."""

    def content() -> bytes:
        settings = read_settings(part) if part else job.settings
        frames, fps = read_frames(part) if part else table().frames(job)
        return (write or encode_video)(*smoothing.apply(frames, fps, settings or job.settings))

    return content


def _zipped(paths: Sequence[Path]) -> bytes:
    """The MP4s in an archive; the grid under its name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in paths:
            archive.write(path, "grid.mp4" if path.stem == "clip" else path.name)
    return file.getvalue()


def _turntable(job: Job) -> Callable[[], bytes]:
    """The turntable for a download button, encoded only when it is clicked."""

    def write() -> bytes:
        frames, fps = table().frames(job)
        return EXPORTS["WebP"][2](frames[loop_order(*orbit_of(job.request))], fps, job.settings)

    return write
