"""What a visitor uploads: a picture, or a clip whose settings are to be restored. Does not import Streamlit.

The latest uploads stay in memory, since a browser loses its own when the page is reloaded.
"""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from sgm import (
    PictureError,
    UserError,
    VideoRequest,
    ViewsRequest,
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

LARGEST = 20  # MB
_MOST_KEPT = 100  # MB, of all uploads
_kept: dict[str, tuple[bytes, str]] = {}  # id -> content and name, the latest one last
_keeping = threading.Lock()
_one_at_a_time = threading.Lock()  # the largest picture takes a gigabyte while it is read


class Upload(NamedTuple):
    """What a file holds. picture: None for a clip without one. request, note: of a clip, what can be restored of it.

    is_clip: whether it is a clip whose object is to be seen from other sides.
    """

    picture: Image.Image | None
    request: VideoRequest | None = None
    note: str = ""
    is_clip: bool = False


def read_upload(content: bytes, name: str, views: bool = False) -> Upload:
    """The picture, or the clip, that a file's content is; nothing is changed meanwhile. name: its name in messages.

    views: whether a clip is wanted whose object is to be seen from other sides, not a picture. Raises PictureError for
    what is neither, and for a picture that cannot be used; UserError for such a clip.
    """
    if len(content) > LARGEST << 20:
        raise PictureError(f"{name} is larger than the {LARGEST} MB that can be uploaded: make it smaller.")
    with _one_at_a_time:
        if not is_clip(content):
            if not views:
                return Upload(open_picture(content, name, keep_alpha=True))
            return _clip(content, name)
        with open_video(content, name) as video:
            settings = video.settings or {}
        request = request_of(settings) if is_recipe(settings) else None
        if isinstance(request, ViewsRequest):
            return _view(settings, request, name)
        if views:
            return _clip(content, name)
        restored = restore_clip(content, name)
    return Upload(restored.picture, restored.request, f"Settings of {name} restored. {restored.note}")


def _clip(content: bytes, name: str) -> Upload:
    """A clip of an object. Raises UserError for what is none."""
    if len(open_clip(content, 2, name=name).frames) < 2:
        raise UserError(f"{name} is a single picture, which does not move: give a clip of two frames or more.")
    return Upload(None, is_clip=True)


def _view(settings: dict[str, Any], request: ViewsRequest, name: str) -> Upload:
    """A clip that is one of several views: what its recipe restores."""
    note, is_input = f"Settings of {name} restored.", made_by(settings).get("view") == "input"
    missing = "" if is_input else " The clip that it was made of is not in it: choose that one, too."
    return Upload(None, request, note + missing, is_clip=is_input)


def keep(content: bytes, name: str) -> str:
    """Keep an upload, in place of the oldest ones where there are too many. Returns its id, of its content and name."""
    upload_id = hashlib.sha256(b"\0".join((name.encode("utf-8", "replace"), content))).hexdigest()[:16]
    with _keeping:
        _kept.pop(upload_id, None)
        _kept[upload_id] = content, name
        while sum(len(content) for content, _ in _kept.values()) > _MOST_KEPT << 20:
            del _kept[next(iter(_kept))]
    return upload_id


def kept(upload_id: str) -> tuple[bytes, str] | None:
    """The content and the name of an upload; None for one that is not kept any more."""
    with _keeping:
        return _kept.get(upload_id)
