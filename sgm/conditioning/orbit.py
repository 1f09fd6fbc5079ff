"""Orbits of a camera around an object: an elevation and an azimuth for each frame. The last frame is the input view."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sgm.errors import UserError

Orbit = tuple[tuple[float, ...], tuple[float, ...]]  # elevations and azimuths, degrees, one a frame


def make_orbit(
    kind: str,
    frames: int,
    elevation: float,
    seed: int = 0,
    elevations: Sequence[float] = (),
    azimuths: Sequence[float] = (),
) -> Orbit:
    """Elevations (-90 to 90) and azimuths (above 0 to 360, rising; 360 is the input view's) in degrees, one a frame.

    "same": evenly around at one elevation. "dynamic": as SV3D's authors draw them from a seed, uneven azimuths and a
    sum of sines as elevation, which ends at `elevation`. "list": `elevations` and `azimuths`; where one of them is
    empty, that of "same". Raises UserError for lists of the wrong length or order.
    """
    even = tuple(360 * (i + 1) / frames for i in range(frames))
    if kind == "same":
        return (float(elevation),) * frames, even
    if kind == "dynamic":
        return _dynamic(frames, elevation, seed)
    for name, values in (("elevations", elevations), ("azimuths", azimuths)):
        if len(values) not in (0, frames):
            raise UserError(f"{name} must be {frames} numbers, one a frame; got {len(values)}.")
    orbit = tuple(elevations) or (float(elevation),) * frames, tuple(azimuths) or even
    for i, (before, after) in enumerate(zip(orbit[1], orbit[1][1:], strict=False), start=2):
        if not before < after:
            raise UserError(f"azimuths must rise strictly; number {i} is {after:g} after {before:g}.")
    return orbit


def radians(orbit: Orbit) -> tuple[torch.Tensor, torch.Tensor]:
    """An orbit as the network's inputs: polar angles and azimuths relative to the input view, radians, each (t,)."""
    elevations, azimuths = (torch.tensor(values) for values in orbit)
    return torch.deg2rad(90 - elevations), torch.deg2rad((azimuths - azimuths[-1]) % 360)


def _dynamic(frames: int, elevation: float, seed: int) -> Orbit:
    generator = torch.Generator().manual_seed(seed)
    step = 360 / frames
    shifts = (torch.rand(frames, generator=generator) - 0.5) * 0.8 * step  # below half a step: azimuths keep rising
    azimuths = [min(360.0, step * (i + 1) + float(shifts[i])) for i in range(frames - 1)] + [360.0]
    weights = torch.randn(3, generator=generator) / torch.arange(1, 4)  # slow sines most
    weights *= 20 / weights.abs().sum()  # at most 20 degrees up and down
    margin = 89 - abs(elevation)
    scale = min(1.0, max(margin, 0.0) / 20)
    elevations = [
        elevation + scale * sum(float(w) * math.sin(k * math.radians(a)) for k, w in enumerate(weights, start=1))
        for a in azimuths
    ]
    return (*elevations[:-1], float(elevation)), tuple(azimuths)
