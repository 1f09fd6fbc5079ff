"""Families of models: the settings that each has, its conditioner's inputs, and the last step after decoding."""

from __future__ import annotations

from sgm.families.camera import CameraFamily
from sgm.families.image import FITS, Batch, ImageFamily, Picture
from sgm.families.orbit import ORBITS, OrbitFamily, orbit_of
from sgm.families.views import DenseViewsFamily, ViewsFamily

# Name -> family; `Version.family` is one of the names.
FAMILIES: dict[str, ImageFamily] = {
    "image": ImageFamily(),
    "camera": CameraFamily(),
    "orbit": OrbitFamily(elevated=False),
    "elevated orbit": OrbitFamily(elevated=True),
    "sv4d views": DenseViewsFamily(),
    "sv4d2 views": ViewsFamily(),
}

__all__ = [
    "FAMILIES",
    "FITS",
    "ORBITS",
    "Batch",
    "CameraFamily",
    "DenseViewsFamily",
    "ImageFamily",
    "OrbitFamily",
    "Picture",
    "ViewsFamily",
    "orbit_of",
]
