"""Style sheet, icon and text formats of the pages."""

from __future__ import annotations

import base64
import io
import os
import re
import time
from pathlib import Path

import streamlit as st
from PIL import Image, ImageDraw

from sgm import fit_picture, open_picture

POLL = float(os.environ.get("SGM_POLL") or 0.5)  # seconds between two polls of a running job
SAMPLES = {path.stem: path for path in sorted((Path(__file__).parent / "samples").glob("*.jpg"))}


def duration(seconds: float) -> str:
    """Seconds as text, in minutes and seconds."""
    minutes, rest = divmod(max(1, round(seconds)), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def when(created: float) -> str:
    """Seconds since 1970 as a local date."""
    return time.strftime("%d %b %Y, %H:%M", time.localtime(created))


def address() -> str:
    """The address of this server's page, by Streamlit's options."""
    scheme = "https" if st.get_option("server.sslCertFile") else "http"
    host = st.get_option("server.address") or "127.0.0.1"
    path = str(st.get_option("server.baseUrlPath")).strip("/")
    return f"{scheme}://{host}:{st.get_option('server.port')}/{path}".rstrip("/")


def plain(text: str) -> str:
    """Text escaped for Markdown, in one line, so that it is shown as it is: underscores of paths, addresses, dashes."""
    return re.sub(r"[\\`*_\[\]<>$:~#&@|]|(?<=-)-|(?<=www)\.", r"\\\g<0>", " ".join(text.split()))


def inline(jpeg: bytes) -> str:
    """A JPEG as a data URL: Streamlit would store every picture of a poll on the server."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


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
    """The style sheet; the samples' buttons show their pictures."""
    rules = [_STYLE]
    for name, path in SAMPLES.items():
        small = io.BytesIO()
        fit_picture(open_picture(path), 192, 120).save(small, "JPEG", quality=75)
        rules.append(f".st-key-sample_{name} button {{ --picture: url({inline(small.getvalue())}); }}")
    return f"<style>{''.join(rules)}</style>"


_STYLE = """
.stMainBlockContainer { padding: 4.5rem 1.5rem 2rem; max-width: 76rem; margin: 0 auto; }
.stBottom { border-top: 1px solid rgb(128 128 128 / 25%); }
[data-testid="stBottomBlockContainer"] { padding: 0.75rem 1.5rem 1rem; max-width: 76rem; margin: auto; }
[data-testid="stCaptionContainer"] { opacity: 1; /* Streamlit's grey is too faint to read, and its links as well */
  color: color-mix(in srgb, currentcolor 75%, transparent); }
.st-key-head h1 { padding: 0; }
.st-key-bar button[kind="primary"]:enabled, .stDownloadButton button[kind="primary"] {
  background: #0b6e6b; color: #fff; }
.st-key-bar button[kind="primary"]:enabled:hover, .stDownloadButton button[kind="primary"]:hover {
  background: #095a58; color: #fff; }
.st-key-bar button:enabled kbd { color: #d4e8e7; opacity: 1; }
.stImage img, .stVideo { border-radius: 0.5rem; }
.stage { aspect-ratio: 5 / 3; display: flex; flex-direction: column; align-items: center; justify-content: center;
  gap: 0.25rem; border: 1px dashed #9a9a94; border-radius: 0.5rem; text-align: center; padding: 1rem; }
.st-key-preset { gap: 0.25rem; }
.st-key-preset > div:first-child p { font-size: 0.875rem; } /* as the labels of fields */
.st-key-presets button { min-height: 2.25rem; padding: 0 0.75rem; }
.st-key-presets button[kind="primary"] { background: rgb(26 154 148 / 12%); color: inherit; border-color: #1a9a94; }
@media (min-width: 641px) { /* three columns are too narrow for the buttons beside a number */
  .stHorizontalBlock:has(> .stColumn:nth-child(3)) :is([data-testid="stNumberInputStepDown"],
    [data-testid="stNumberInputStepUp"]) { display: none; } }
[class*="st-key-options_"] { border-left: 2px solid rgb(26 154 148 / 45%); padding-left: 0.75rem; }
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
}
@media (max-width: 1000px) {
  .stHorizontalBlock:has(> .stColumn .st-key-result) { flex-wrap: wrap; }
  .stHorizontalBlock > .stColumn:has(.st-key-result, .st-key-samples) { min-width: 100%; }
  .stColumn:has(.st-key-clip) { order: -1; } /* a clip first: nobody scrolls past all settings for it */
}
[data-testid="stFileUploaderDropzoneInstructions"] span { white-space: normal; }
@media (min-width: 1001px) { .stColumn:has(.st-key-result) { position: sticky; top: 4.5rem; align-self: flex-start; } }
.st-key-recent { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 0.75rem; }
.st-key-recent img { aspect-ratio: 5 / 3; object-fit: cover; width: 100%; }
.stage img { width: 100%; height: 100%; object-fit: contain; border-radius: 0.5rem; }
.stage.live { padding: 0; border: none; overflow: hidden; }
.st-key-cards [data-testid="stImage"] img { aspect-ratio: 5 / 3; object-fit: cover; width: 100%; }
[data-testid="stCaptionContainer"] p { overflow-wrap: anywhere; }
"""
