"""Pictures of one object, as SV3D was trained on: background removed, centred on white at a share of the frame."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from sgm.errors import UserError
from sgm.media.image import PictureError
from sgm.paths import check_writable, private_folder

logger = logging.getLogger(__name__)

BACKGROUND_MODEL = "u2net"
_WORKING_SIZE = 768  # pixels along the longer side while the background is removed, as in SV3D's own code
_VISIBLE = 25  # of 255: pixels with a smaller alpha are no part of the object
_fetching = threading.Lock()  # so that rembg's large model is downloaded once
_preparing = threading.Event()
_LONG = 2.0  # seconds
PREPARING = "Preparing rembg: numba compiles what it needs, which takes some seconds, once in a new environment."
_SIZES = {"u2net": 176}  # MB, of the models that rembg downloads


def cut_out(image: Image.Image, model: str = BACKGROUND_MODEL) -> Image.Image:
    """The picture's object as RGBA: by the picture's own transparency if it has any, else by rembg.

    rembg downloads its `model` (176 MB for "u2net") at the first use, into the folder `U2NET_HOME`, or a temporary one
    where there is no home that can be written; a warning is logged before (see also `fetched_first`). Raises
    PictureError where the model cannot be downloaded.
    """
    if has_transparency(image):
        return image
    picture = image.convert("RGB")
    picture.thumbnail((_WORKING_SIZE, _WORKING_SIZE), Image.Resampling.LANCZOS)
    with _torch_threads_kept():
        with _fetching:
            session = _session(model)
        # Matting removes the background's colour from the object's edges.
        cutout = _rembg().remove(picture, session=session, alpha_matting=True)
    assert isinstance(cutout, Image.Image)
    return cutout.convert("RGBA")


def fetched_first(image: Image.Image, model: str = BACKGROUND_MODEL) -> str:
    """A sentence on the download that `cut_out` needs for this picture; "" where it needs none."""
    if has_transparency(image) or _is_downloaded(model):
        return ""
    if not os.environ.get("U2NET_HOME") and not _is_writable(_base_folders()[1]):
        os.environ["U2NET_HOME"] = str(private_folder() / "rembg")
    size = f" ({_SIZES[model]} MB)" if model in _SIZES else ""
    return f"rembg fetches its model {model}{size} into {_base_folders()[1]}, once, to remove backgrounds."


def fetched_share(model: str = BACKGROUND_MODEL) -> float | None:
    """Share of rembg's model that is downloaded, 0 to 1, during the download; None before and after, or if unknown."""
    sizes = []
    for folder in () if _is_downloaded(model) else _folders(model):
        with contextlib.suppress(OSError):  # the file may be renamed at any time
            sizes += [path.stat().st_size for path in folder.glob("tmp*")]  # the name that rembg's downloader uses
    return min(1.0, max(sizes) / 1e6 / _SIZES[model]) if sizes and model in _SIZES else None


def is_preparing() -> bool:
    """Whether `cut_out` imports rembg at this moment, which takes long in a new environment."""
    return _preparing.is_set()


def place_object(
    cutout: Image.Image,
    width: int,
    height: int,
    image_frame_ratio: float = 0.9,
    box: tuple[int, int, int, int] | None = None,
) -> Image.Image:
    """The object of an RGBA picture, centred on white: RGB of `width` x `height`.

    image_frame_ratio: the object's longer side over the frame's shorter one. box: left, top, right and bottom of the
    object, unless it is what is visible. Raises PictureError for a picture in which nothing is.
    """
    box = box or visible_box(cutout)
    if box is None:
        raise PictureError("No object was found in the picture: give one whose background is transparent or plain.")
    item = cutout.crop(box)
    scale = image_frame_ratio * min(width, height) / max(item.size)
    size = max(1, round(item.width * scale)), max(1, round(item.height * scale))
    item = item.resize(size, Image.Resampling.LANCZOS)
    frame = Image.new("RGB", (width, height), "white")
    frame.paste(item, ((width - size[0]) // 2, (height - size[1]) // 2), item)
    return frame


def visible_box(cutout: Image.Image) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of what is visible of an RGBA picture; None where nothing is."""
    return cutout.getchannel("A").point([255 * (alpha > _VISIBLE) for alpha in range(256)]).getbbox()


@contextlib.contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """Keep torch's number of threads, on which a clip's bits depend: numba sets that of OpenMP, which is torch's."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def has_transparency(image: Image.Image) -> bool:
    """Whether the picture has transparent pixels, so that the background need not be removed."""
    return image.mode == "RGBA" and bool((np.asarray(image.getchannel("A")) < 128).any())


def _is_downloaded(model: str) -> bool:
    return any((folder / f"{model}.onnx").is_file() for folder in _folders(model))


def _folders(model: str) -> tuple[Path, Path]:
    """The folders in which rembg looks for a model: of earlier releases, and of the present one."""
    old, new = _base_folders()
    return old, new / "models" / model


def _base_folders() -> tuple[Path, Path]:
    """The folders of rembg's models: of earlier releases, which had no subfolders, and of the present one."""
    data = os.environ.get("XDG_DATA_HOME")
    old = os.environ.get("U2NET_HOME") or f"{data or '~'}/.u2net"
    new = os.environ.get("U2NET_HOME") or os.environ.get("REMBG_HOME") or (f"{data}/rembg" if data else "~/.rembg")
    return Path(os.path.expanduser(old)), Path(os.path.expanduser(new))  # as rembg does, also without a home


def _is_writable(folder: Path) -> bool:
    try:
        check_writable(folder)
    except UserError:
        return False
    return folder.is_absolute()  # "~" of a user without a home stands for no folder


@lru_cache(maxsize=1)
def _session(model: str) -> Any:
    rembg = _rembg()
    if note := fetched_first(Image.new("RGB", (1, 1)), model):
        logger.warning("%s", note)
    try:
        return rembg.new_session(model)
    except Exception as error:  # from any layer of the download, or from the file's reader
        raise PictureError(
            f"The background cannot be removed: rembg could not get its model {model} ({type(error).__name__}). Go "
            f"online once, name a folder that holds {model}.onnx in U2NET_HOME, or give a picture whose background is "
            "transparent."
        ) from error


def _rembg() -> Any:
    """The rembg package, imported here, since it takes seconds. Raises PictureError where it is not installed."""
    if loaded := sys.modules.get("rembg"):
        return loaded
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else its onnxruntime tells its makers of each use
    try:
        with _slowness_told(), _bare("pymatting"):
            with contextlib.suppress(RuntimeError):  # numba found no folder to keep what it compiles for rembg
                import rembg

                return rembg
            from numba.core import config

            os.environ["NUMBA_CACHE_DIR"] = str(private_folder() / "numba")
            config.reload_config()
            import rembg

            return rembg
    except (ImportError, SystemExit) as error:  # it exits where onnxruntime is missing
        raise PictureError(
            "Removing the background needs rembg, which is not installed: run `python -m pip install 'rembg[cpu]'`, or "
            "give a picture whose background is transparent."
        ) from error


@contextlib.contextmanager
def _slowness_told() -> Iterator[None]:
    """Log a warning where the work inside takes long, and have `is_preparing` say so meanwhile."""
    timer = threading.Timer(_LONG, logger.warning, [PREPARING])
    timer.daemon = True
    timer.start()
    _preparing.set()
    try:
        yield
    finally:
        timer.cancel()
        _preparing.clear()


@contextlib.contextmanager
def _bare(name: str) -> Iterator[None]:
    """Context in which a package's modules are imported without running its `__init__` files.

    rembg needs two functions of pymatting, and numba compiles all of that at its first import, for a minute, where
    these two are done in a sixth of the time. Afterwards the package can be imported as a whole.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    bare: dict[str, ModuleType] = {}
    for root in map(Path, (spec and spec.submodule_search_locations) or ()):
        for folder in (root, *filter(Path.is_dir, root.iterdir())):
            module = ModuleType(".".join((name, *folder.relative_to(root).parts)))
            module.__path__ = [str(folder)]
            bare[module.__name__] = module
    sys.modules.update(bare)
    try:
        yield
    finally:
        for other in [other for other in sys.modules if bare and (other == name or other.startswith(f"{name}."))]:
            del sys.modules[other]
