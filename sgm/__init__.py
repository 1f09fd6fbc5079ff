"""Image-to-video diffusion: Stable Video Diffusion's stack, small enough to read, exact enough for official weights.

The public names below are imported when they are first used, so `import sgm` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgm.conditioning.camera import CAMERA_MOVES
    from sgm.config import instantiate_from_config
    from sgm.diffusion.guidance import GUIDERS
    from sgm.diffusion.sampling import SAMPLERS
    from sgm.engine import load_engine
    from sgm.errors import UserError
    from sgm.media.export import EXPORTS, JOIN, stitch
    from sgm.media.image import PictureError, describe_fit, fit_picture, open_picture
    from sgm.media.video import encode_video, read_frames, read_settings, write_video
    from sgm.pipeline import Clip, Progress, VideoRequest, curves, generate
    from sgm.versions import DEFAULT_VERSION, VERSIONS, Version

__all__ = [
    "CAMERA_MOVES",
    "DEFAULT_VERSION",
    "EXPORTS",
    "GUIDERS",
    "JOIN",
    "SAMPLERS",
    "VERSIONS",
    "Clip",
    "PictureError",
    "Progress",
    "UserError",
    "Version",
    "VideoRequest",
    "curves",
    "describe_fit",
    "encode_video",
    "fit_picture",
    "generate",
    "instantiate_from_config",
    "load_engine",
    "open_picture",
    "read_frames",
    "read_settings",
    "stitch",
    "write_video",
]

_HOMES = {
    "sgm.conditioning.camera": ("CAMERA_MOVES",),
    "sgm.config": ("instantiate_from_config",),
    "sgm.diffusion.guidance": ("GUIDERS",),
    "sgm.diffusion.sampling": ("SAMPLERS",),
    "sgm.engine": ("load_engine",),
    "sgm.errors": ("UserError",),
    "sgm.media.image": ("PictureError", "describe_fit", "fit_picture", "open_picture"),
    "sgm.media.export": ("EXPORTS", "JOIN", "stitch"),
    "sgm.media.video": ("encode_video", "read_frames", "read_settings", "write_video"),
    "sgm.pipeline": ("Clip", "Progress", "VideoRequest", "curves", "generate"),
    "sgm.versions": ("DEFAULT_VERSION", "VERSIONS", "Version"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sgm' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
