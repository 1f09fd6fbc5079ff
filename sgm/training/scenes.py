"""Scenes with depth from photographs: an object before its surroundings, seen by a camera that moves.

A photograph and the mask of its object (`sgm.training.masks`) become two layers: the *near* one, cut out with soft
edges, and the *far* one, whose hole is filled from its rim. The object has one disparity (inverse depth); its
surroundings' rises from the horizon to where the object stands, so that the object does not slide over the ground
(layered depth images: Shade et al. 1998; 3D photographs of two layers and more: Shih et al. 2020, arXiv:2004.04727).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sgm.conditioning.camera import rays

FAR, NEAR = 0.6, 1.3  # disparities of the horizon and of the ground at the object's foot, before `Scene.deep`
_FILLED = 6  # pixels from the rim up to which a filled hole counts as known
_CLOSEST = 0.75  # share of the way to its nearest point that a camera goes at most


@dataclass
class Layers:
    """A picture's layers. colour: (6, h, w), the near then the far layer's; matte: (2, h, w), the near layer's alpha,
    then where the far one is known; both uint8. disparity: the far layer's, (1, h, 1); near: the near layer's."""

    colour: np.ndarray
    matte: np.ndarray
    disparity: np.ndarray
    near: float


def layers(picture: np.ndarray, mask: np.ndarray | None = None) -> Layers:
    """Layers of a picture (h, w, 3) and the mask (h, w) of its object, uint8. A mask that is undecided is not used."""
    h, w = picture.shape[:2]
    alpha = None if mask is None else _alpha(mask)
    if alpha is None:
        colour, matte = np.concatenate([picture, picture], axis=2), np.zeros((h, w, 2), np.uint8)
        matte[..., 1] = 255
        disparity, near = _ground(picture, np.zeros((h, w), bool)), NEAR
    else:
        solid, rim = alpha > 250, cv2.dilate((alpha > 5).astype(np.uint8), np.ones((7, 7)))
        hole = rim.astype(bool)
        far = _filled(picture, hole)
        known = ~hole | (cv2.distanceTransform(rim, cv2.DIST_L2, 3) <= _FILLED)
        colour = np.concatenate([_extended(picture, solid), far], axis=2)
        matte = np.stack([alpha, known * np.uint8(255)], axis=2)
        disparity = _ground(picture, hole)
        foot = min(int(np.percentile(np.nonzero(solid.any(axis=1))[0], 98)), h - 1)
        near = max(float(disparity[foot]), FAR + 0.35)
    return Layers(
        np.ascontiguousarray(colour.transpose(2, 0, 1)),
        np.ascontiguousarray(matte.transpose(2, 0, 1)),
        disparity[None, :, None].astype(np.float32),
        near,
    )


def _alpha(mask: np.ndarray) -> np.ndarray | None:
    """A saliency map as an alpha matte with edges of about two pixels; None where it is undecided or too large."""
    value = mask.astype(np.float32) / 255
    area = float((value > 0.5).mean())
    undecided = float(((value > 0.15) & (value < 0.85)).mean())
    if not 0.015 < area < 0.6 or undecided > 0.25 * area:
        return None
    count, labels, stats, _ = cv2.connectedComponentsWithStats((value > 0.5).astype(np.uint8))
    sizes = stats[:, cv2.CC_STAT_AREA]
    kept = [i for i in range(1, count) if sizes[i] > 0.1 * sizes[1:].max()]
    value = value * cv2.dilate(np.isin(labels, kept).astype(np.uint8), np.ones((5, 5)))
    sharp = cv2.GaussianBlur((value > 0.5).astype(np.float32), (0, 0), 1.2)
    return np.rint(255 * np.clip((sharp - 0.15) / 0.7, 0, 1)).astype(np.uint8)


def _filled(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The picture with `hole` filled from around it: coarsely, then finely near the rim."""
    coarse = cv2.resize(picture, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    small = cv2.resize(hole.astype(np.float32), coarse.shape[1::-1], interpolation=cv2.INTER_AREA) > 0
    coarse = cv2.inpaint(coarse, small.astype(np.uint8), 4, cv2.INPAINT_TELEA)
    filled = cv2.resize(coarse, picture.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    rim = hole & (cv2.distanceTransform(hole.astype(np.uint8), cv2.DIST_L2, 3) <= 2 * _FILLED)
    return cv2.inpaint(np.where(hole[..., None], filled, picture), rim.astype(np.uint8), 5, cv2.INPAINT_TELEA)


def _extended(picture: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """The picture with the colour of the nearest solid pixel wherever it is not solid."""
    _, labels = cv2.distanceTransformWithLabels(
        (~solid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    nearest = np.zeros(labels.max() + 1, np.int64)
    nearest[labels[solid]] = np.flatnonzero(solid)
    return picture.reshape(-1, 3)[nearest[labels]]


def _ground(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Disparity (h,) of the surroundings: far above the horizon, then ground that comes nearer evenly.

    The horizon is where the smooth region at the top, a sky or a blurred distance, ends; else above the middle.
    """
    h, w = picture.shape[:2]
    grey = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.5)
    slope = cv2.GaussianBlur(np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)), (0, 0), 3)
    ends = np.where((slope > 14).any(axis=0), (slope > 14).argmax(axis=0), h)[~hole[: h // 2].any(axis=0)]
    sky = float(np.median(ends)) / h if len(ends) > w / 8 else 0.0
    horizon = min(sky, 0.65) if sky > 0.12 else 0.4
    feet = np.nonzero(hole.any(axis=1))[0]
    foot = max(feet[-1] / h, horizon + 0.25) if len(feet) else 1.0
    y = (np.arange(h) + 0.5) / h
    rise = np.clip((y - horizon) / (foot - horizon), 0, 1.2)
    return FAR + (NEAR - FAR) * rise


@dataclass
class Scene:
    """n scenes on a device. colour: (n, 6, h, w) in [-1, 1]; matte: (n, 2, h, w) in [0, 1]; disparity: (n, 1, h, w);
    near: (n,). `grid` maps points (n, 2, h, w), as in `sgm.conditioning.camera`, into `grid_sample`'s units."""

    colour: Tensor
    matte: Tensor
    disparity: Tensor
    near: Tensor
    grid: Callable[[Tensor], Tensor]

    def _sample(self, source: Tensor, points: Tensor) -> Tensor:
        return F.grid_sample(source, self.grid(points), padding_mode="reflection", align_corners=False)

    def flat(self) -> Tensor:
        """The picture that a camera at rest sees, (n, 3, h, w)."""
        return torch.lerp(self.colour[:, 3:], self.colour[:, :3], self.matte[:, :1])

    def first_disparity(self, base: Tensor) -> Tensor:
        """What a camera at rest sees at the pixels `base` (2, h, w): (n, h, w)."""
        source = torch.cat([self.disparity, self.matte[:, :1]], dim=1)
        far, alpha = self._sample(source, base.expand(len(source), -1, -1, -1)).unbind(1)
        return torch.lerp(far, self.near.view(-1, 1, 1).expand_as(far), alpha)

    def deep(self, strength: Tensor, path: Tensor, base: Tensor) -> Scene:
        """The scene with a mean disparity of 1 in its first frame, and `strength` (n,) times its depth around that.

        The nearest point stays out of reach of the camera's path (n, t, 6), where it would be run through.
        """
        seen = self.first_disparity(base)
        mean = seen.mean(dim=(1, 2))
        most = torch.maximum(seen.amax(dim=(1, 2)), self.near) / mean - 1
        forward = 1 - torch.exp(-path[..., 2].amax(dim=1).clamp(min=1e-3))  # share of the way to disparity 1
        strength = torch.minimum(strength, ((_CLOSEST / forward - 1) / most.clamp(min=1e-3)).clamp(min=0))

        def scaled(disparity: Tensor) -> Tensor:
            shape = (-1, *[1] * (disparity.ndim - 1))
            return 1 + strength.view(shape) * (disparity / mean.view(shape) - 1)

        return Scene(self.colour, self.matte, scaled(self.disparity), scaled(self.near), self.grid)

    def view(self, moves: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """What cameras at `moves` (n, 6) see at pixels `base` (2, h, w): (n, 3, h, w), and where it is known: (n, 1, h, w)."""
        points = rays(moves, base)
        for _ in range(4):  # fixed-point iteration for the far layer's point that each pixel shows
            points = rays(moves, base, self._sample(self.disparity, points)[:, 0])
        far = self._sample(torch.cat([self.colour[:, 3:], self.matte[:, 1:]], dim=1), points)
        points = rays(moves, base, self.near.view(-1, 1, 1))
        near = self._sample(torch.cat([self.colour[:, :3], self.matte[:, :1]], dim=1), points)
        alpha = near[:, 3:]
        return torch.lerp(far[:, :3], near[:, :3], alpha), 1 - (1 - alpha) * (1 - far[:, 3:])
