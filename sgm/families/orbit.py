"""SV3D's family: a camera orbits an object on white; elevation and azimuth for each frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sgm.conditioning.orbit import Orbit, make_orbit, radians
from sgm.errors import UserError
from sgm.families.image import Batch, ImageFamily, Picture, conditioning_frames, to_pixels
from sgm.fields import Field, Named

if TYPE_CHECKING:
    from sgm.request import VideoRequest

ELEVATION = Field(
    "elevation",
    float,
    "Elevation",
    "How high above the object the camera circles, in degrees.",
    -90,
    90,
    default=10.0,
    usual=(-90, 90),
    step=1.0,
    unit="degrees",
)
LISTS = {
    "elevations": Field(
        "elevations",
        tuple,
        "Elevations",
        "A degree for each frame, -90 to 90. Empty: one elevation all around. SV4D 2.0: one for each view, the clip's "
        "own first, to which the others are relative.",
        -90,
        90,
        (),
        unit="degrees",
    ),
    "azimuths": Field(
        "azimuths",
        tuple,
        "Azimuths",
        "A degree for each frame, 0 to 360, rising; the last is the picture's own view. Empty: evenly around. SV4D "
        "2.0: one for each view in any order, the clip's own first.",
        0,
        360,
        (),
        unit="degrees",
    ),
}
ORBITS: dict[str, Named] = {
    "same": Named("One elevation"),
    "dynamic": Named("From the seed"),
    "list": Named("Own list", LISTS),
}
ORBIT = Field(
    "orbit",
    str,
    "Orbit",
    "Evenly around at one elevation; uneven, up and down, as the seed has it; or a list, a degree for each frame.",
    default="same",
    choices=lambda: ORBITS,
)


def orbit_of(request: VideoRequest) -> Orbit:
    """A request's elevations and azimuths in degrees, one for each frame; the last are the input view's."""
    values = request.options
    return make_orbit(
        values.get("orbit", "same"),
        request.frames,
        values.get("elevation", 0.0),
        request.seed,
        values.get("elevations", ()),
        values.get("azimuths", ()),
    )


class OrbitFamily(ImageFamily):
    """SV3D. elevated: whether the network is conditioned on the camera's angles, which can then be chosen (sv3d_p)."""

    input_frame = -1
    orbits = True
    bounded = False

    def __init__(self, elevated: bool) -> None:
        self.fields = (ORBIT, ELEVATION) if elevated else ()

    def check(self, request: VideoRequest) -> None:
        values = request.options
        if values.get("orbit") == "list" and not (values["elevations"] or values["azimuths"]):
            raise UserError("orbit is 'list', but neither elevations nor azimuths are given: give one degree a frame.")
        orbit_of(request)

    def batch(self, picture: Picture, factor: int, generator: torch.Generator) -> Batch:
        """As SVD's, with angles in radians (t,): polar angles, and azimuths relative to the input view."""
        pixels = to_pixels(picture.frame())
        polars, azimuths = radians(orbit_of(picture.request))
        conditioning = conditioning_frames(picture.request, pixels, pixels, generator)
        return {**conditioning, "polars_rad": polars, "azimuths_rad": azimuths}

    def finish(self, frames: np.ndarray, picture: Picture) -> np.ndarray:
        """Replace the last frame by the input picture, whose view it shows."""
        frames[-1] = np.asarray(picture.frame())
        return frames
