"""Layers of a picture: its object, cut out by a mask, and its surroundings, with the hole behind the object filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_LEAN, _LEAN_ALONE = 0.5, 0.3  # disparity of the bottom less that of the top, with and without an object; mean: 1
_NEAR = 1.2  # an object's least disparity
_SOLID = 250  # alpha, of 255, from which a pixel shows the object alone
_RIM = 2  # pixels around an object that may hold some of its colour; twice as many are guessed well from beside them


@dataclass
class Layers:
    """A picture's layers.

    colour: (6, h, w), the near then the far layer's; matte: (2, h, w), the near layer's alpha, then where the far one
    is known; both uint8. disparity: the far layer's, (1, h, 1); near: the near layer's.
    """

    colour: np.ndarray
    matte: np.ndarray
    disparity: np.ndarray
    near: float


def layers(picture: np.ndarray, mask: np.ndarray | None = None) -> Layers:
    """Layers of a picture (h, w, 3) and the mask (h, w) of its object, uint8. A mask of no clear object is not used."""
    alpha = None if mask is None else _alpha(mask)
    height = (np.arange(len(picture), dtype=np.float32) + 0.5) / len(picture) - 0.5
    if alpha is None:
        whole = picture.transpose(2, 0, 1)
        matte = np.stack([np.full_like(whole[0], value) for value in (0, 255)])
        return Layers(np.concatenate([whole, whole]), matte, (1 + _LEAN_ALONE * height)[None, :, None], 1.0)
    hole, hidden = (part[0, 0].numpy() > 0 for part in hole_of(torch.from_numpy(alpha)[None, None].float() / 255))
    near = picture.reshape(-1, 3)[_nearest(alpha > _SOLID)]
    known = np.where(hidden, 0, 255).astype(np.uint8)
    disparity = 1 + _LEAN * height
    foot = int(np.percentile(np.flatnonzero((alpha > _SOLID).any(axis=1)), 98))
    return Layers(
        np.concatenate([near, _mirrored(picture, hole)], axis=2).transpose(2, 0, 1),
        np.stack([alpha, known]),
        disparity[None, :, None],
        max(float(disparity[foot]), _NEAR),
    )


def _alpha(mask: np.ndarray) -> np.ndarray | None:
    """A saliency map as an alpha matte with edges of about two pixels, without fragments; None for no clear object."""
    if not _is_clear(mask):
        return None
    count, labels, stats, _ = cv2.connectedComponentsWithStats((mask > 127).astype(np.uint8))
    sizes = stats[:, cv2.CC_STAT_AREA]
    kept = [i for i in range(1, count) if sizes[i] > 0.1 * sizes[1:].max()]
    sharp = cv2.GaussianBlur(np.isin(labels, kept).astype(np.float32), (0, 0), 1.2)
    alpha = np.rint(255 * np.clip((sharp - 0.15) / 0.7, 0, 1)).astype(np.uint8)
    return alpha if (alpha > _SOLID).any() else None


def _is_clear(mask: np.ndarray) -> bool:
    """Whether a saliency map has an object of a sensible size, its edges nearly all sharp, and is decided but there."""
    mask = cv2.resize(mask, (640, max(round(640 * mask.shape[0] / mask.shape[1]), 1)))  # as seen at any size
    around = np.ones((13, 13), np.uint8)
    solid = (mask > 127).astype(np.uint8)
    edges = cv2.morphologyEx(solid, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    step = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, around)
    undecided = (mask > 38) & (mask < 217) & (cv2.dilate(edges.astype(np.uint8), around) == 0)
    if not 0.008 < solid.mean() < 0.6 or not edges.any():
        return False
    return bool((step[edges] > 150).mean() >= 0.9 and undecided.mean() <= 0.15 * solid.mean())


def hole_of(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """What an object's alpha (n, 1, h, w) leaves a hole in, and, less the rim, where nobody knows what is behind it."""
    hole = F.max_pool2d((alpha > 0.02).float(), 2 * _RIM + 1, 1, _RIM)
    return hole, -F.max_pool2d(-hole, 4 * _RIM + 1, 1, 2 * _RIM)


def _nearest(pixels: np.ndarray) -> np.ndarray:
    """Index, into the flattened picture, of the nearest of the `pixels` (h, w) that are true, for each pixel."""
    outside = (~pixels).astype(np.uint8)
    labels: Any = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1]
    nearest = np.zeros(labels.max() + 1, np.int64)
    nearest[labels[pixels]] = np.flatnonzero(pixels)
    return nearest[labels]


def _mirrored(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The picture with its hole (h, w) filled with the mirror image of what is beside it.

    Where the mirror image is of a hole, too, or beyond the picture, it is filled smoothly.
    """
    h, w = hole.shape
    here = np.indices((h, w))
    mirror = 2 * np.stack(np.divmod(_nearest(~hole), w)) - here
    inside = np.clip(mirror, 0, np.array([h - 1, w - 1])[:, None, None])
    known = ~hole | ((mirror == inside).all(axis=0) & ~hole[tuple(inside)])
    seen = torch.from_numpy(picture[tuple(np.where(hole, inside, here))]).permute(2, 0, 1)[None].float()
    whole = filled(seen, torch.from_numpy(known)[None, None].float())
    return whole[0].permute(1, 2, 0).round().byte().numpy()


def filled(colour: Tensor, known: Tensor) -> Tensor:
    """Pictures (n, c, h, w), filled from around where not `known` (n, 1, h, w): push-pull, Gortler et al. 1996."""
    if min(colour.shape[-2:]) < 2:
        return colour
    less = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = F.avg_pool2d(colour * known, 2, ceil_mode=True) / less.clamp(min=1e-4)
    coarse = filled(coarse, (less > 1e-4).float())
    return torch.lerp(F.interpolate(coarse, colour.shape[-2:], mode="bilinear"), colour, known)
