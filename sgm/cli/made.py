"""Clips that are there already: whether a file holds the very clip that is to be made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgm.errors import UserError
from sgm.paths import is_file

if TYPE_CHECKING:
    from PIL import Image

    from sgm import VideoRequest


def made_at(
    path: Path, request: VideoRequest, picture: Callable[[], Image.Image]
) -> tuple[dict[str, Any] | None, bool]:
    """The recipe of a clip if it is the request's and of this picture, else None; and whether the clip is whole.

    picture: gives the picture as the model sees it; called only where the request is the same. A file that cannot be
    read holds no clip.
    """
    from sgm import hash_of, open_video, request_of
    from sgm.recipe import made_by

    settings = None
    try:
        if not is_file(path):
            return None, False
        with open_video(path) as video:
            found = video.settings or {}
            if request_of(found) == request:
                settings = found if made_by(found).get("picture") == hash_of(picture()) else None
            return settings, settings is not None and sum(1 for _ in video) == request.frames
    except UserError:
        return settings, False
