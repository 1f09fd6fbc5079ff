"""Frames of high dynamic range, as phones film them, brought into the usual range (ITU-R BT.2100 to BT.709)."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

HDR = PQ, HLG = 16, 18  # the numbers that H.264 and FFmpeg give these curves
_WHITE, _PEAK = 203.0, 1000.0  # cd/m²: of diffuse white (ITU-R BT.2408), and of the display that HLG is meant for
_KNEE = 0.7  # of white, from which on brighter light is compressed
_TO_709 = np.array(  # from the primaries of BT.2020 (ITU-R BT.2087)
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
_LUMA = np.array([[0.2627, 0.6780, 0.0593]], np.float32)
_STEPS = 4096  # of the root of light from none to white
_BRIGHTEST = 49.3  # times white: 10000 cd/m², the most that PQ knows


def to_sdr(pixels: np.ndarray, curve: int) -> np.ndarray:
    """RGB, uint16 (h, w, 3), of a curve of HDR, in BT.2020 -> uint8 of BT.709.

    Up to 0.7 of white all is shown as bright as it is; what is brighter, up to the sun, is compressed into the rest.
    """
    light = _light(curve)[pixels]
    if curve == HLG:  # from the light of the scene to that of the display, by a gamma of 1.2
        light *= cv2.pow(cv2.transform(light, _LUMA), 0.2)[..., None] * (_PEAK / _WHITE)
    light = cv2.transform(light, _TO_709).clip(0, _BRIGHTEST)
    return _shown()[(cv2.sqrt(light) * _STEPS).astype(np.uint16)]


@cache
def _light(curve: int) -> np.ndarray:
    """Each of 65536 codes' light: of PQ in units of white, of HLG that of the scene, 0 to 1."""
    code = np.linspace(0, 1, 1 << 16)
    if curve == HLG:
        bright = (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12
        return np.where(code <= 0.5, code**2 / 3, bright).astype(np.float32)
    root = code ** (32 / 2523)
    light = ((root - 3424 / 4096).clip(0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)
    return (light * 10000 / _WHITE).astype(np.float32)


@cache
def _shown() -> np.ndarray:
    """The code of each root of light, by the gamma of 2.4 of BT.1886, above the knee by an exponential."""
    light = (np.arange(int(_BRIGHTEST**0.5 * _STEPS) + 2) / _STEPS) ** 2
    light = np.where(light > _KNEE, 1 - (1 - _KNEE) * np.exp((_KNEE - light) / (1 - _KNEE)), light)
    return (255 * light ** (1 / 2.4) + 0.5).astype(np.uint8)
