"""What a visitor uploads: a picture, or a clip whose settings are to be restored. Does not import Streamlit.

The latest uploads stay in memory, since a browser loses its own when the page is reloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from sgm import (
    PictureError,
    UserError,
    VideoRequest,
    ViewsRequest,
    detect_watermark,
    is_clip,
    is_recipe,
    made_by,
    open_clip,
    open_picture,
    open_video,
    request_of,
    restore_clip,
)

if TYPE_CHECKING:
    from PIL import Image

LARGEST, LARGEST_ZIP = 20, 200  # MB, of a picture or a clip, and of a ZIP of pictures
MOST = 200  # pictures at once
MOST_KEPT = 100  # MB, of all uploads
_kept: dict[str, tuple[bytes, str]] = {}  # id -> content and name, the latest one last
_keeping = threading.Lock()
one_at_a_time = threading.Lock()  # the largest picture takes a gigabyte while it is read


class Upload(NamedTuple):
    """What a file holds. picture: None for a clip without one. request, note, last: what can be restored of a clip.

    mark: a sentence on the watermark, "" of a picture without. is_clip: whether it is a clip whose object is to be seen
    from other sides.
    """

    picture: Image.Image | None
    request: VideoRequest | None = None
    note: str = ""
    last: Image.Image | None = None
    mark: str = ""
    is_clip: bool = False


def read_upload(content: bytes, name: str, views: bool = False, most: int = LARGEST) -> Upload:
    """The picture, or the clip, that a file's content is; nothing is changed meanwhile. name: its name in messages.

    views: whether a clip is wanted whose object is to be seen from other sides, not a picture. most: MB. Raises
    PictureError for what is neither, and for a picture that cannot be used; UserError for such a clip.
    """
    if len(content) > most << 20:
        raise PictureError(f"{name} is larger than the {LARGEST} MB that can be uploaded: make it smaller.")
    with one_at_a_time:
        if not is_clip(content):
            if views:
                return _clip(content, name)
            mark = _mark_of_any(content, name)  # first, lest the picture be in memory twice
            return Upload(open_picture(content, name, keep_alpha=True), mark=mark)
        try:
            with open_video(content, name) as video:
                settings = video.settings or {}
            request = request_of(settings) if is_recipe(settings) else None
            if isinstance(request, ViewsRequest):
                return _view(settings, request, content, name)
            if not views:
                restored = restore_clip(content, name)
                note = f"Settings of {name} restored. {restored.note}"
                return Upload(restored.picture, restored.request, note, restored.last, _mark(content, name))
        except UserError as error:
            raise UserError(f"{error} {_mark(content, name)}".strip()) from error
        return _clip(content, name)


def _mark(content: bytes, name: str) -> str:
    """A sentence on a file's watermark; "" of one that is damaged."""
    with contextlib.suppress(UserError):
        return f"Watermark: {detect_watermark(content, name, search=False)}."
    return ""


def _mark_of_any(content: bytes, name: str) -> str:
    """As `_mark`, but "" of a file without one, as most are that come from elsewhere."""
    mark = _mark(content, name)
    return "" if mark.startswith("Watermark: no") else f"A model made {name}. {mark}"


def _clip(content: bytes, name: str) -> Upload:
    """A clip of an object. Raises UserError for what is none."""
    if len(open_clip(content, 2, name=name).frames) < 2:
        raise UserError(f"{name} is a single picture, which does not move: give a clip of two frames or more.")
    return Upload(None, mark=_mark_of_any(content, name), is_clip=True)


def _view(settings: dict[str, Any], request: ViewsRequest, content: bytes, name: str) -> Upload:
    """A clip that is one of several views: what its recipe restores."""
    note, is_input = f"Settings of {name} restored.", made_by(settings).get("view") == "input"
    missing = "" if is_input else " The clip that it was made of is not in it: choose that one, too."
    return Upload(None, request, note + missing, mark=_mark(content, name), is_clip=is_input)


def keep(content: bytes, name: str) -> str:
    """Keep an upload, in place of the oldest ones where there are too many. Returns its id, of its content and name."""
    upload_id = hashlib.sha256(b"\0".join((name.encode("utf-8", "replace"), content))).hexdigest()[:16]
    with _keeping:
        _kept.pop(upload_id, None)
        _kept[upload_id] = content, name
        while sum(len(content) for content, _ in _kept.values()) > MOST_KEPT << 20:
            del _kept[next(iter(_kept))]
    return upload_id


def kept(upload_id: str) -> tuple[bytes, str] | None:
    """The content and the name of an upload; None for one that is not kept any more."""
    with _keeping:
        return _kept.get(upload_id)
