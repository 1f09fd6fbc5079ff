"""Aiming: where a camera that has seen one picture of a scene must go to see another one of it."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

_RATIO = 0.75  # of the distances to the best and the second match, from which a match counts (Lowe 2004)
_LEAST = 12  # matches that must agree
_WITHIN = 1.5  # pixels


def aim(first: Image.Image, last: Image.Image) -> Tensor | None:
    """Where a camera before a flat picture `first` sees `last`, pictures of one size: (6,), as in `camera.direction`.

    By SIFT's features, and the shift, turn and zoom on which most of them agree (RANSAC). None where too few do: the
    pictures show nothing in common.
    """
    sift, (width, height) = cv2.SIFT.create(), first.size
    (points, found), (there, others) = (
        sift.detectAndCompute(np.asarray(picture.convert("L")), None) for picture in (first, last)
    )
    if found is None or others is None or min(len(found), len(others)) < _LEAST:
        return None
    pairs = cv2.BFMatcher().knnMatch(others, found, k=2)
    good = [best for best, second in pairs if best.distance < _RATIO * second.distance]
    if len(good) < _LEAST:
        return None
    seen = np.array([[there[m.queryIdx].pt for m in good], [points[m.trainIdx].pt for m in good]], np.float32)
    seen = (seen + 0.5 - np.array([width, height], np.float32) / 2) / width  # in widths, from the centre
    matrix, agreeing = cv2.estimateAffinePartial2D(seen[0], seen[1], ransacReprojThreshold=_WITHIN / width)
    if matrix is None or agreeing.sum() < _LEAST:
        return None
    (a, _, x), (b, _, y) = matrix
    return torch.tensor([x, y, -math.log(math.hypot(a, b)), math.atan2(b, a), 0, 0], dtype=torch.float32)
