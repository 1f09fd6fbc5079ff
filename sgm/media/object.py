"""Pictures of one object as SV3D was trained on them: cut out, centred, at a share of the frame, on white."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
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
_fetching = threading.Lock()  # rembg's model is large, and is to be fetched once
_SIZES = {"u2net": 176, "u2netp": 5}  # MB, of the models that rembg fetches


def cut_out(image: Image.Image, model: str = BACKGROUND_MODEL) -> Image.Image:
    """The picture's object as RGBA: by the picture's own transparency if it has any, else by rembg.

    rembg fetches its `model` (176 MB for "u2net") when it is first used; where it keeps it, `U2NET_HOME` says. A
    warning is logged before, `fetched_first` tells of it sooner. Raises PictureError where the model cannot be had.
    """
    if _has_shape(image):
        return image
    picture = image.convert("RGB")
    picture.thumbnail((_WORKING_SIZE, _WORKING_SIZE), Image.Resampling.LANCZOS)
    with _fetching:
        session = _session(model)
    from rembg import remove

    # Matting takes the background's colour out of the object's edges.
    cutout = remove(picture, session=session, alpha_matting=True)
    assert isinstance(cutout, Image.Image)
    return cutout.convert("RGBA")


def fetched_first(image: Image.Image, model: str = BACKGROUND_MODEL) -> str:
    """What `cut_out` has to fetch before it can cut this picture out, as a sentence; "" where it needs nothing."""
    if _has_shape(image) or _is_here(model):
        return ""
    size = f" ({_SIZES[model]} MB)" if model in _SIZES else ""
    return f"rembg fetches its model {model}{size} into {_homes()[1]}, once, to remove backgrounds."


def fetched_share(model: str = BACKGROUND_MODEL) -> float | None:
    """How much of rembg's model has come, 0 to 1, while it is being fetched; None while it is not, or not known."""
    sizes = []
    for folder in () if _is_here(model) else _folders(model):
        with contextlib.suppress(OSError):  # it gets its name, and its old one goes, at any time
            sizes += [path.stat().st_size for path in folder.glob("tmp*")]  # rembg's downloader names it so
    return min(1.0, max(sizes) / 1e6 / _SIZES[model]) if sizes and model in _SIZES else None


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


def _has_shape(image: Image.Image) -> bool:
    """Whether the picture's own transparency says what the object is."""
    return image.mode == "RGBA" and bool((np.asarray(image.getchannel("A")) < 128).any())


def _is_here(model: str) -> bool:
    return any((folder / f"{model}.onnx").is_file() for folder in _folders(model))


def _folders(model: str) -> tuple[Path, Path]:
    """The folders in which rembg looks for a model: where earlier releases had it, and where it goes now."""
    old, new = _homes()
    return old, new / "models" / model


def _homes() -> tuple[Path, Path]:
    """rembg's folders, of earlier releases, in which models lay side by side, and of the present ones."""
    data = os.environ.get("XDG_DATA_HOME")
    old = os.environ.get("U2NET_HOME") or f"{data or '~'}/.u2net"
    new = os.environ.get("U2NET_HOME") or os.environ.get("REMBG_HOME") or (f"{data}/rembg" if data else "~/.rembg")
    return Path(old).expanduser(), Path(new).expanduser()


@lru_cache(maxsize=1)
def _session(model: str) -> Any:
    try:
        import rembg  # late: it takes seconds
    except (ImportError, SystemExit) as error:  # it exits where onnxruntime is missing
        raise PictureError(
            "Removing the background needs rembg, which is not installed: run `python -m pip install 'rembg[cpu]'`, or "
            "give a picture whose background is transparent."
        ) from error
    if note := fetched_first(Image.new("RGB", (1, 1)), model):
        logger.warning("%s", note)
    try:
        return rembg.new_session(model)
    except Exception as error:  # from any layer of the download, or from the file's reader
        raise PictureError(
            f"The background cannot be removed: rembg could not get its model {model} ({type(error).__name__}). Go "
            f"online once, put {model}.onnx into {_homes()[0]}, or give a picture whose background is transparent."
        ) from error
