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

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sgm.conditioning.camera import halved, identity_rays, rays, reflect
from sgm.conditioning.layers import filled, hole_of, layers
from sgm.conditioning.saliency import saliency

_CLOSEST = 0.75  # share of the way to its nearest point that a camera goes at most


@dataclass
class Scene:
    """n scenes on a device.

    colour: (n, 6, h, w) in [-1, 1]; matte: (n, 2, h, w) in [0, 1]; disparity: (n, 1, h, w); near: (n,); all as in
    `sgm.conditioning.layers.Layers`. grid: maps points (n, 2, h, w), as in `sgm.conditioning.camera`, into
    `grid_sample`'s units. limit: half the width and height, in widths, of what is shown of the picture, beyond which it
    is mirrored; None: all of it.
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
        points = (self._points(moves, base) for moves in path.split(1))
        if not self.matte[:, 0].any():  # as `_seen`, without looking at an object that is not there
            return torch.cat([halved(self._sample(self.colour[:, 3:], far)) for far, _ in points])
        return torch.cat([halved(self._seen(*each)[0]) for each in points])

    def _sample(self, source: Tensor, points: Tensor) -> Tensor:
        points = points if self.limit is None else reflect(points, self.limit)
        return F.grid_sample(source, self.grid(points), padding_mode="reflection", align_corners=False)

    def flat(self) -> Tensor:
        """The picture that a camera at rest sees, (n, 3, h, w)."""
        return torch.lerp(self.colour[:, 3:], self.colour[:, :3], self.matte[:, :1])

    def guessed(self, limit: Tensor | None = None) -> Scene:
        """The scene as the picture shows it: what its object hides is filled from around it, not known."""
        hole, hidden = hole_of(self.matte[:, :1])
        colour = torch.cat([self.colour[:, :3], filled(self.colour[:, 3:], 1 - hole)], dim=1)
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
        seen, alpha = self._seen(far_points, near_points)
        known = self._sample(self.matte[:, 1:], far_points)
        return seen, 1 - (1 - alpha) * (1 - known)

    def _seen(self, far_points: Tensor, near_points: Tensor) -> tuple[Tensor, Tensor]:
        """The colours at points of the far and of the near layer, and the near one's alpha before the far one."""
        far = self._sample(self.colour[:, 3:], far_points)
        near = self._sample(torch.cat([self.colour[:, :3], self.matte[:, :1]], dim=1), near_points)
        alpha = near[:, 3:]
        return torch.lerp(far, near[:, :3], alpha), alpha

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
