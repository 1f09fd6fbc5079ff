"""Pictures of jobs as HTML: the preview of one that is being made, the first frame of one that is done."""

from __future__ import annotations

import html
import io
from pathlib import Path

import streamlit as st

from app import look
from app.jobs import Job, open_stored, still, stored_input
from sgm import ViewsRequest, prepare_picture

_PREVIEW_SIDE = 960  # pixels


def preview(job: Job, small: bool = False) -> str:
    """HTML of a job's preview or, before there is one, of the picture as the model sees it. small: within a button."""
    try:
        address = look.inline(job.preview or _frame(job.picture, job))
    except Exception:  # of any kind: the file may be damaged
        return "<div></div>"
    about = f"{'A preview of the clip of' if job.preview else 'The picture'} {job.name}"
    alt, name = ("" if small else html.escape(text) for text in (about, job.name))
    active = f' data-job="{name}"' if job.active else ""  # later previews replace it: see progress.js
    return f'<div class="stage live"><img src="{address}" alt="{alt}"{active}></div>'


def poster(job: Job) -> str:
    """HTML of a finished clip's first frame, small."""
    picture = still(job)
    return f'<img src="{look.inline(picture)}" alt="">' if picture else "<span>▶</span>"


@st.cache_data(max_entries=16)
def _frame(path: Path, _job: Job) -> bytes:
    request, found = _job.request, stored_input(_job)
    if isinstance(request, ViewsRequest) and isinstance(found, list):
        image = request.family.prepare_clip(found, request)[0]
    else:
        image = prepare_picture(open_stored(path), request, max(1, _PREVIEW_SIDE // max(request.size)))
    image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return file.getvalue()
