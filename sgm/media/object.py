"""Pictures of one object as SV3D was trained on them: cut out, centred, at a share of the frame, on white."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sgm.media.image import PictureError

logger = logging.getLogger(__name__)

BACKGROUND_MODEL = "u2net"
_WORKING_SIZE = 768  # pixels along the longer side, as the model's authors had it
_VISIBLE = 25  # of 255: fainter is not the object's


def cut_out(image: Image.Image, model: str = BACKGROUND_MODEL) -> Image.Image:
    """The picture's object as RGBA: by the picture's own transparency if it has any, else by rembg.

    rembg fetches its `model` (176 MB for "u2net") when it is first used; where it keeps it, `U2NET_HOME` says. A
    warning is logged before. Raises PictureError where the model cannot be had or nothing is found in the picture.
    """
    if image.mode == "RGBA" and bool((np.asarray(image.getchannel("A")) < 128).any()):
        return image
    picture = image.convert("RGB")
    picture.thumbnail((_WORKING_SIZE, _WORKING_SIZE), Image.Resampling.LANCZOS)
    session = _session(model)
    from rembg import remove

    # Matting takes the background's colour out of the object's edges.
    cutout = remove(picture, session=session, alpha_matting=True)
    assert isinstance(cutout, Image.Image)
    return cutout.convert("RGBA")


def place_object(cutout: Image.Image, width: int, height: int, image_frame_ratio: float = 0.9) -> Image.Image:
    """RGB of `width` x `height`: the whole object in the middle of white, its longer side that share of the frame.

    Raises PictureError for a cut-out in which nothing is visible.
    """
    visible = np.asarray(cutout.getchannel("A")) > _VISIBLE
    if not visible.any():
        raise PictureError("No object was found in the picture: give one whose background is transparent or plain.")
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    found = cutout.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    scale = image_frame_ratio * min(width, height) / max(found.size)
    size = max(1, round(found.width * scale)), max(1, round(found.height * scale))
    found = found.resize(size, Image.Resampling.LANCZOS)
    frame = Image.new("RGB", (width, height), "white")
    frame.paste(found, ((width - size[0]) // 2, (height - size[1]) // 2), found)
    return frame


@lru_cache(maxsize=1)
def _session(model: str) -> Any:
    try:
        import rembg  # late: it takes seconds
    except (ImportError, SystemExit) as error:  # it exits where onnxruntime is missing
        raise PictureError(
            "Removing the background needs rembg, which is not installed: run `python -m pip install 'rembg[cpu]'`, or "
            "give a picture whose background is transparent."
        ) from error
    home = Path(os.environ.get("U2NET_HOME") or os.environ.get("REMBG_HOME") or Path.home() / ".rembg")
    if not any(place.is_dir() and any(place.rglob(f"{model}.onnx")) for place in (home, Path.home() / ".u2net")):
        size = " (176 MB)" if model == "u2net" else ""
        logger.warning("rembg fetches its model %s%s into %s, once, to remove backgrounds.", model, size, home)
    try:
        return rembg.new_session(model)
    except Exception as error:  # from any layer of the download, or from the file's reader
        raise PictureError(
            f"The background cannot be removed: rembg could not get its model {model} ({type(error).__name__}). Go "
            f"online once, put {model}.onnx into {home}, or give a picture whose background is transparent."
        ) from error
