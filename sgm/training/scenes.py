"""Scenes with depth from photographs: an object before its surroundings, seen by a camera that moves.

A photograph and the mask of its object (`sgm.training.masks`) become two layers: the *near* one, cut out with soft
edges, and the *far* one, with a hole behind the object. The object has one disparity (inverse depth); its
surroundings' rises from the horizon to where the object stands, so that the object does not slide over the ground
(layered depth images: Shade et al. 1998; two layers and more from one picture: Shih et al. 2020, arXiv:2004.04727).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sgm.conditioning.camera import rays, reflect

FAR, NEAR = 0.6, 1.3  # disparities of the horizon and of the ground at the object's foot, before `Scene.deep`
_RIM = 2  # pixels around an object that may hold some of its colour; twice as many are guessed well from beside them
_CLOSEST = 0.75  # share of the way to its nearest point that a camera goes at most


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
    """Layers of a picture (h, w, 3) and the mask (h, w) of its object, uint8. A mask that is undecided is not used."""
    alpha = None if mask is None else _alpha(mask)
    near = picture if alpha is None else _extended(picture, alpha > 250)
    alpha = np.zeros(picture.shape[:2], np.uint8) if alpha is None else alpha
    hole, hidden = _hole(torch.from_numpy(alpha)[None, None].float() / 255)
    far = _filled(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), 1 - hole).round().byte()
    known = (255 * (1 - hidden)).byte()
    disparity = _ground(picture, hole[0, 0].numpy() > 0)
    feet = np.nonzero((alpha > 250).any(axis=1))[0]
    nearest = max(float(disparity[int(np.percentile(feet, 98))]), FAR + 0.35) if len(feet) else NEAR
    return Layers(
        np.concatenate([near.transpose(2, 0, 1), far[0].numpy()]),
        np.concatenate([alpha[None], known[0].numpy()]),
        disparity[None, :, None].astype(np.float32),
        nearest,
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


def _hole(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """What an object's alpha (n, 1, h, w) leaves a hole in, and, less the rim, where nobody knows what is behind it."""
    hole = F.max_pool2d((alpha > 0.02).float(), 2 * _RIM + 1, 1, _RIM)
    return hole, -F.max_pool2d(-hole, 4 * _RIM + 1, 1, 2 * _RIM)


def _extended(picture: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """The picture with the colour of the nearest solid pixel wherever it is not solid."""
    outside = (~solid).astype(np.uint8)
    labels: Any = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1]
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
    """n scenes on a device.

    colour: (n, 6, h, w) in [-1, 1]; matte: (n, 2, h, w) in [0, 1]; disparity: (n, 1, h, w); near: (n,); all as in
    `Layers`. grid: maps points (n, 2, h, w), as in `sgm.conditioning.camera`, into `grid_sample`'s units. limit: half
    the width and height, in widths, of what is shown of the picture, beyond which it is mirrored; None: all of it.
    """

    colour: Tensor
    matte: Tensor
    disparity: Tensor
    near: Tensor
    grid: Callable[[Tensor], Tensor]
    limit: Tensor | None = None

    def _sample(self, source: Tensor, points: Tensor) -> Tensor:
        points = points if self.limit is None else reflect(points, self.limit)
        return F.grid_sample(source, self.grid(points), padding_mode="reflection", align_corners=False)

    def flat(self) -> Tensor:
        """The picture that a camera at rest sees, (n, 3, h, w)."""
        return torch.lerp(self.colour[:, 3:], self.colour[:, :3], self.matte[:, :1])

    def guessed(self, limit: Tensor | None = None) -> Scene:
        """The scene as the picture shows it: what its object hides is filled from around it, not known."""
        hole, hidden = _hole(self.matte[:, :1])
        colour = torch.cat([self.colour[:, :3], _filled(self.colour[:, 3:], 1 - hole)], dim=1)
        matte = torch.cat([self.matte[:, :1], self.matte[:, 1:] * (1 - hidden)], dim=1)
        return replace(self, colour=colour, matte=matte, limit=limit)

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

        return replace(self, disparity=scaled(self.disparity), near=scaled(self.near))

    def view(self, moves: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """What cameras at `moves` (n, 6) see at pixels `base` (2, h, w), (n, 3, h, w), and where that is known."""
        far_points, near_points = self._points(moves, base)
        far = self._sample(self.colour[:, 3:], far_points)
        near = self._sample(torch.cat([self.colour[:, :3], self.matte[:, :1]], dim=1), near_points)
        known = self._sample(self.matte[:, 1:], far_points)
        alpha = near[:, 3:]
        return torch.lerp(far, near[:, :3], alpha), 1 - (1 - alpha) * (1 - known)

    def rays(self, moves: Tensor, base: Tensor) -> Tensor:
        """Ray maps, as in `sgm.conditioning.camera`: (n, 2, h, w), NaN where cameras see what is not known."""
        far_points, near_points = self._points(moves, base)
        alpha = self._sample(self.matte[:, :1], near_points)
        known = self._sample(self.matte[:, 1:], far_points)
        return torch.where(alpha > 0.5, near_points, far_points.masked_fill(known < 0.5, torch.nan))

    def _points(self, moves: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """The points of the far and of the near layer that each pixel shows: (n, 2, h, w)."""
        far = rays(moves, base)
        for _ in range(4):  # a fixed-point iteration: the point depends on its own disparity
            far = rays(moves, base, self._sample(self.disparity, far)[:, 0])
        return far, rays(moves, base, self.near.view(-1, 1, 1))


def _filled(colour: Tensor, known: Tensor) -> Tensor:
    """Pictures (n, c, h, w), filled from around where not `known` (n, 1, h, w): push-pull, Gortler et al. 1996."""
    if min(colour.shape[-2:]) < 2:
        return colour
    less = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = F.avg_pool2d(colour * known, 2, ceil_mode=True) / less.clamp(min=1e-4)
    coarse = _filled(coarse, (less > 1e-4).float())
    return torch.lerp(F.interpolate(coarse, colour.shape[-2:], mode="bilinear"), colour, known)
