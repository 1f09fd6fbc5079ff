"""Scenes with depth from pictures: an object before its surroundings, seen by a camera that moves.

A picture and the mask of its object (`sgm.conditioning.saliency`) become two layers: the *near* one, cut out with soft
edges, and the *far* one, with a hole behind the object, filled with the mirror image of what is beside it. The object
has one disparity (inverse depth), that of the ground at its foot; its surroundings are a plane that leans back, whose
disparity grows evenly downwards, so that straight lines stay straight (layered depth images: Shade et al. 1998; from
one picture: Shih et al. 2020, arXiv:2004.04727). A picture without a clear object is a plane that leans less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sgm.conditioning.camera import halved, identity_rays, rays, reflect
from sgm.conditioning.saliency import saliency

_LEAN, _LEAN_ALONE = 0.5, 0.3  # disparity of the bottom less that of the top, with and without an object; mean: 1
_NEAR = 1.2  # an object's least disparity
_SOLID = 250  # alpha, of 255, from which a pixel shows the object alone
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
    """Layers of a picture (h, w, 3) and the mask (h, w) of its object, uint8. A mask of no clear object is not used."""
    alpha = None if mask is None else _alpha(mask)
    height = (np.arange(len(picture), dtype=np.float32) + 0.5) / len(picture) - 0.5
    if alpha is None:
        whole = picture.transpose(2, 0, 1)
        matte = np.stack([np.full_like(whole[0], value) for value in (0, 255)])
        return Layers(np.concatenate([whole, whole]), matte, (1 + _LEAN_ALONE * height)[None, :, None], 1.0)
    hole, hidden = (part[0, 0].numpy() > 0 for part in _hole(torch.from_numpy(alpha)[None, None].float() / 255))
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
    """A saliency map as an alpha matte with edges of about two pixels; None where it shows no clear object.

    That is one of a sensible size, with edges that are nearly all sharp, and decided but for them. Fragments are left
    out.
    """
    solid = (mask > 127).astype(np.uint8)
    around = np.ones((mask.shape[1] // 48 | 1,) * 2, np.uint8)
    edges = cv2.morphologyEx(solid, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    step = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, around)
    undecided = (mask > 38) & (mask < 217) & (cv2.dilate(edges.astype(np.uint8), around) == 0)
    area = solid.mean()
    if not 0.008 < area < 0.6 or (step[edges] > 150).mean() < 0.9 or undecided.mean() > 0.15 * area:
        return None
    count, labels, stats, _ = cv2.connectedComponentsWithStats(solid)
    sizes = stats[:, cv2.CC_STAT_AREA]
    kept = [i for i in range(1, count) if sizes[i] > 0.1 * sizes[1:].max()]
    sharp = cv2.GaussianBlur(np.isin(labels, kept).astype(np.float32), (0, 0), 1.2)
    alpha = np.rint(255 * np.clip((sharp - 0.15) / 0.7, 0, 1)).astype(np.uint8)
    return alpha if (alpha > _SOLID).any() else None


def _hole(alpha: Tensor) -> tuple[Tensor, Tensor]:
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
    """The picture with its hole (h, w) filled with the mirror image of what is beside it; where that is a hole, too,
    smoothly."""
    h, w = hole.shape
    here = np.indices((h, w))
    mirror = 2 * np.stack(np.divmod(_nearest(~hole), w)) - here
    inside = np.clip(mirror, 0, np.array([h - 1, w - 1])[:, None, None])
    known = ~hole | ((mirror == inside).all(axis=0) & ~hole[tuple(inside)])
    seen = torch.from_numpy(picture[tuple(np.where(hole, inside, here))]).permute(2, 0, 1)[None].float()
    filled = _filled(seen, torch.from_numpy(known)[None, None].float())
    return filled[0].permute(1, 2, 0).round().byte().numpy()


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

    @classmethod
    def of(cls, picture: Image.Image) -> Scene:
        """The scene of one picture, an RGB of twice the frames' size, with its object found. Raises UserError."""
        found = layers(np.asarray(picture), saliency(picture))
        w, h = picture.size

        def grid(points: Tensor) -> Tensor:
            return torch.stack([points[:, 0] * 2, points[:, 1] * 2 * w / h], dim=-1)

        return cls(
            torch.from_numpy(found.colour)[None].float() / 127.5 - 1,
            torch.from_numpy(found.matte)[None].float() / 255,
            torch.from_numpy(found.disparity)[None].expand(1, 1, h, w),
            torch.tensor([found.near]),
            grid,
        )

    def film(self, path: Tensor) -> Tensor:
        """What a camera on `path` (t, 6) sees of one scene, at half its size: (t, 3, h / 2, w / 2). See `render`."""
        base = identity_rays(*self.colour.shape[-2:]).to(path)
        return torch.cat([halved(self.view(moves, base)[0]) for moves in path.split(1)])

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

    def rays(self, moves: Tensor, base: Tensor, guesses: bool = False) -> Tensor:
        """Ray maps, as in `sgm.conditioning.camera`: (n, 2, h, w).

        NaN where cameras see what is not known, unless `guesses` are to count as known.
        """
        far_points, near_points = self._points(moves, base)
        alpha = self._sample(self.matte[:, :1], near_points)
        known = self._sample(self.matte[:, 1:], far_points)
        far_points = far_points if guesses else far_points.masked_fill(known < 0.5, torch.nan)
        return torch.where(alpha > 0.5, near_points, far_points)

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
