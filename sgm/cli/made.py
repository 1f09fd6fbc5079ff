"""Clips that are there already: whether a file holds the very clip that is to be made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgm.errors import UserError
from sgm.paths import is_file

if TYPE_CHECKING:
    from PIL import Image

    from sgm import Smoothing, VideoRequest


def made_at(
    path: Path, request: VideoRequest, smoothing: Smoothing, pictures: Callable[[], dict[str, Image.Image]]
) -> tuple[dict[str, Any] | None, bool]:
    """The recipe of a clip if it is the request's and of these pictures, else None; and whether the clip is whole.

    pictures: gives the pictures as the model sees them, by their names in recipes; called only where the request is the
    same, or a loop, which it is where the last picture is the first. A file that cannot be read holds no clip.
    """
    from sgm import Smoothing, hash_of, open_video, request_of
    from sgm.recipe import made_by

    settings = None
    try:
        if not is_file(path):
            return None, False
        with open_video(path) as video:
            found = video.settings or {}
            looped = request.takes_last and request_of(found) == request.replace(ends="loop")
            if (looped or request_of(found) == request) and Smoothing.of(found) == smoothing:
                made, hashes = made_by(found), {name: hash_of(picture) for name, picture in pictures().items()}
                same = not looped or hashes.pop("last") == hashes["picture"]
                settings = found if same and all(made.get(name) == of for name, of in hashes.items()) else None
            return settings, settings is not None and sum(1 for _ in video) == smoothing.length(request.frames)
    except UserError:
        return settings, False
