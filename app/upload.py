"""What a visitor uploads: a picture, or a clip whose settings are to be restored. Does not import Streamlit."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from sgm import PictureError, VideoRequest, is_clip, open_picture, restore_clip

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 20  # MB
_one_at_a_time = threading.Lock()  # the largest picture takes a gigabyte while it is read


class Upload(NamedTuple):
    """What a file holds. picture: None for a clip without one. request, note: of a clip, what can be restored of it."""

    picture: Image.Image | None
    request: VideoRequest | None = None
    note: str = ""


def read_upload(content: bytes, name: str) -> Upload:
    """The picture, or the clip, that a file's content is; nothing is changed meanwhile. name: its name in messages.

    Raises PictureError for what is neither, and for a picture that cannot be used; UserError for such a clip.
    """
    if len(content) > LARGEST << 20:
        raise PictureError(f"{name} is larger than the {LARGEST} MB that can be uploaded: make it smaller.")
    with _one_at_a_time:
        if not is_clip(content):
            return Upload(open_picture(content, name, keep_alpha=True))
        restored = restore_clip(content, name)
    return Upload(restored.picture, restored.request, f"Settings of {name} restored. {restored.note}")
