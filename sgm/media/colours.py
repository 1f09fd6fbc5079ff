"""Colours of one clip matched to another's, in CIELAB, where equal distances look about equally large."""

from __future__ import annotations

import cv2
import numpy as np

_MOST = 1.25  # by which contrast may change, or its inverse: more is another picture, not a drift


def match_colours(frames: np.ndarray, shown: np.ndarray, wanted: np.ndarray, fades: bool = False) -> np.ndarray:
    """Frames (t, h, w, 3), uint8 RGB, with the change of colours that takes the frames `shown` to those `wanted`.

    Mean and standard deviation of each channel of CIELAB (D65) become those of `wanted` in `shown`, and change alike in
    all frames or, if the change fades, less and less, and not at all in the last one. After Reinhard et al. 2001
    (doi:10.1109/38.946629), who match in another such space.
    """
    if np.array_equal(shown, wanted):
        return frames
    (mean, deviation), (aim, spread) = _moments(shown), _moments(wanted)
    scale = np.clip(spread / np.maximum(deviation, 1e-3), 1 / _MOST, _MOST)
    matched = [_rgb((_lab(frame) - mean) * scale + aim) for frame in frames]
    if fades:
        changes = zip(matched, frames, np.linspace(1, 0, len(frames)), strict=True)
        matched = [cv2.addWeighted(after, share, before, 1 - share, 0) for after, before, share in changes]
    return np.stack(matched)


def _moments(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over frames (t, h, w, 3): (3,) each."""
    mean, deviation = cv2.meanStdDev(_lab(frames.reshape(-1, *frames.shape[2:])))
    return mean[:, 0].astype(np.float32), deviation[:, 0].astype(np.float32)


def _lab(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)


def _rgb(lab: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB), 0, 1) * 255).astype(np.uint8)
