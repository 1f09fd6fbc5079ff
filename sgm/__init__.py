"""Image-to-video diffusion: Stable Video Diffusion's stack, small enough to read, exact enough for official weights.

The public names below are imported when they are first used, so `import sgm` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgm.conditioning.camera import CAMERA_MOVES
    from sgm.conditioning.orbit import ORBITS
    from sgm.config import instantiate_from_config
    from sgm.convert import convert_weights
    from sgm.diffusion.guidance import GUIDERS
    from sgm.diffusion.sampling import SAMPLERS
    from sgm.engine import load_engine
    from sgm.errors import UserError
    from sgm.hub import download_weights
    from sgm.installed import VersionStatus, best_version, version_status
    from sgm.media.export import EXPORTS, JOIN, stitch
    from sgm.media.image import PictureError, describe_fit, fit_picture, open_picture
    from sgm.media.object import cut_out, fetched_first, fetched_share, place_object
    from sgm.media.turntable import draw_orbit, loop_order, write_turntable
    from sgm.media.video import encode_video, read_frames, read_settings, write_frames, write_video
    from sgm.pipeline import FITS, Clip, Progress, VideoRequest, curves, generate, orbit_of, prepare_picture
    from sgm.versions import DEFAULT_VERSION, VERSIONS, Version

__version__ = "0.2.0"

__all__ = [
    "CAMERA_MOVES",
    "DEFAULT_VERSION",
    "EXPORTS",
    "FITS",
    "GUIDERS",
    "JOIN",
    "ORBITS",
    "SAMPLERS",
    "VERSIONS",
    "Clip",
    "PictureError",
    "Progress",
    "UserError",
    "Version",
    "VersionStatus",
    "VideoRequest",
    "best_version",
    "convert_weights",
    "curves",
    "cut_out",
    "describe_fit",
    "download_weights",
    "draw_orbit",
    "encode_video",
    "fetched_first",
    "fetched_share",
    "fit_picture",
    "generate",
    "instantiate_from_config",
    "load_engine",
    "loop_order",
    "open_picture",
    "orbit_of",
    "place_object",
    "prepare_picture",
    "read_frames",
    "read_settings",
    "stitch",
    "version_status",
    "write_frames",
    "write_turntable",
    "write_video",
]

_HOMES = {
    "sgm.conditioning.camera": ("CAMERA_MOVES",),
    "sgm.conditioning.orbit": ("ORBITS",),
    "sgm.config": ("instantiate_from_config",),
    "sgm.diffusion.guidance": ("GUIDERS",),
    "sgm.diffusion.sampling": ("SAMPLERS",),
    "sgm.engine": ("load_engine",),
    "sgm.convert": ("convert_weights",),
    "sgm.errors": ("UserError",),
    "sgm.hub": ("download_weights",),
    "sgm.installed": ("VersionStatus", "best_version", "version_status"),
    "sgm.media.image": ("PictureError", "describe_fit", "fit_picture", "open_picture"),
    "sgm.media.export": ("EXPORTS", "JOIN", "stitch"),
    "sgm.media.object": ("cut_out", "fetched_first", "fetched_share", "place_object"),
    "sgm.media.turntable": ("draw_orbit", "loop_order", "write_turntable"),
    "sgm.media.video": ("encode_video", "read_frames", "read_settings", "write_frames", "write_video"),
    "sgm.pipeline": ("Clip", "FITS", "Progress", "VideoRequest", "curves", "generate", "orbit_of", "prepare_picture"),
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
