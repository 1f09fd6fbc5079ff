"""Families of models: which settings each takes, how a picture becomes its conditioner's inputs, what ends a clip."""

from __future__ import annotations

from sgm.families.camera import CameraFamily
from sgm.families.image import FITS, Batch, ImageFamily, Picture
from sgm.families.orbit import ORBITS, OrbitFamily, orbit_of

# The names that `sgm.versions` gives its rows.
FAMILIES: dict[str, ImageFamily] = {
    "image": ImageFamily(),
    "camera": CameraFamily(),
    "orbit": OrbitFamily(elevated=False),
    "elevated orbit": OrbitFamily(elevated=True),
}

__all__ = [
    "FAMILIES",
    "FITS",
    "ORBITS",
    "Batch",
    "CameraFamily",
    "ImageFamily",
    "OrbitFamily",
    "Picture",
    "orbit_of",
]
