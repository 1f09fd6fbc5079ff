"""Style sheet, icon and text formats of the pages."""

from __future__ import annotations

import base64
import io
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import streamlit as st
from PIL import Image, ImageDraw

from sgm import fit_picture, open_picture, printable

POLL = float(os.environ.get("SGM_POLL") or 1)  # seconds between two polls of a running job
SAMPLES = {path.stem: path for path in sorted((Path(__file__).parent / "samples").glob("*.jpg"))}
CLIPS = {path.stem: path for path in sorted((Path(__file__).parent / "clips").glob("*.webp"))}  # of an object


def when(created: float) -> str:
    """Seconds since 1970 as a local date."""
    return time.strftime("%d %b %Y, %H:%M", time.localtime(created))


def address() -> str:
    """The address of this server's page, by Streamlit's options."""
    scheme = "https" if st.get_option("server.sslCertFile") else "http"
    host = str(st.get_option("server.address") or "127.0.0.1")
    host = f"[{host}]" if ":" in host else host
    path = str(st.get_option("server.baseUrlPath")).strip("/")
    return f"{scheme}://{host}:{st.get_option('server.port')}/{path}".rstrip("/")


def plain(text: str) -> str:
    """Text escaped for Markdown, in one line, so that it is shown as it is: underscores of paths, addresses, dashes.

    What would turn the direction of the text around it is shown as an escape.
    """
    line = printable(" ".join(text.split()), len(text) + 1)
    return re.sub(r"[\\`*_\[\]<>$:~#&@|]|(?<=-)-|(?<=www)\.", r"\\\g<0>", line)


def inline(picture: bytes) -> str:
    """A JPEG or a WebP as a data URL: Streamlit would store every picture of a poll on the server."""
    kind = "webp" if picture.startswith(b"RIFF") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


@contextmanager
def room(key: str, size: tuple[int, int]) -> Iterator[None]:
    """A container of one picture or video that reserves its space by CSS's aspect-ratio. size: width, height, to scale.

    Without it, loading shifts the layout below (as Cumulative Layout Shift measures): a button that moves while it is
    pressed is not pressed.
    """
    shape = f"aspect-ratio: auto {size[0]} / {size[1]};"
    st.html(f"<style>.st-key-{key}, .st-key-{key} :is(img, video) {{ {shape} }}</style>")
    with st.container(key=key):
        yield


def video(key: str, size: tuple[int, int], content: bytes, alt: str) -> None:
    """A video that loops, muted; `hands.js` plays it. The others: as of `room`, and as of `st.video`."""
    with room(key, size):
        st.video(content, loop=True, muted=True, alt=alt)


@st.cache_data
def icon() -> Image.Image:
    """The browser tab's icon, drawn here, since Streamlit loads its named icons from another server."""
    picture = Image.new("RGBA", (128, 128))
    drawing = ImageDraw.Draw(picture)
    drawing.rounded_rectangle((0, 0, 127, 127), 28, "#0b6e6b")
    drawing.polygon([(46, 32), (46, 96), (100, 64)], "white")
    return picture.resize((64, 64), Image.Resampling.LANCZOS)


@st.cache_data
def style() -> str:
    """The style sheet; the samples' buttons show their pictures, or their first frames."""
    rules = [(Path(__file__).parent / "style.css").read_text(encoding="utf-8")]
    for name, path in (SAMPLES | CLIPS).items():
        small = io.BytesIO()
        fit_picture(open_picture(path), 192, 120).save(small, "JPEG", quality=75)
        rules.append(f".st-key-sample_{name} button {{ --picture: url({inline(small.getvalue())}); }}")
    return f"<style>{''.join(rules)}</style>"
