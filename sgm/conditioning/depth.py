"""Depth from one picture, and what a moving camera sees of a picture with depth."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.conditioning.camera import identity_rays, rays

_HIDDEN = 0.1  # difference of disparities beyond which one point hides another


class DepthHead(nn.Module):
    """A U-Net that sees how near each part of a picture is.

    (n, 3, h, w) in [-1, 1], h and w multiples of 64 -> disparity (n, 1, h / 4, w / 4), with a mean of 1 over each
    picture, and the logits that a point belongs to an object before its surroundings, of the same shape.
    """

    def __init__(self, channels: tuple[int, ...] = (32, 64, 96, 160, 192)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels[0] // 2, 3, 2, 1), nn.SiLU(), nn.Conv2d(channels[0] // 2, channels[0], 3, 2, 1)
        )
        self.down = nn.ModuleList(_block(a, b, 2) for a, b in pairwise(channels))
        self.middle = _block(channels[-1], channels[-1])
        self.up = nn.ModuleList(_block(b + a, a) for a, b in pairwise(channels))
        self.out = nn.Conv2d(channels[0], 2, 3, 1, 1)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(picture)
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(x)
        x = x + self.middle(x) + self.middle(x).mean(dim=(2, 3), keepdim=True)
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear")
            x = block(torch.cat([x, skip], dim=1))
        log, near = self.out(x).float().chunk(2, dim=1)
        disparity = (1.5 * torch.tanh(log / 1.5)).exp()
        return disparity / disparity.mean(dim=(2, 3), keepdim=True), near


def _block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.GroupNorm(8, inside),
        nn.SiLU(),
        nn.Conv2d(inside, outside, 3, stride, 1),
        nn.GroupNorm(8, outside),
        nn.SiLU(),
        nn.Conv2d(outside, outside, 3, 1, 1),
    )


def within_reach(disparity: Tensor, path: Tensor, strength: Tensor | float = 1.0, closest: float = 0.75) -> Tensor:
    """Disparity (n, 1, h, w), `strength` times as deep around 1, less where the path (n, t, 6) meets a point.

    closest: share of the way to the nearest point that a camera goes at most.
    """
    forward = 1 - torch.exp(-path[..., 2].amax(dim=1).clamp(min=1e-3))
    most = (disparity.amax(dim=(1, 2, 3)) - 1).clamp(min=1e-3)
    factor = torch.minimum(((closest / forward - 1) / most).clamp(min=0), torch.as_tensor(strength).to(most))
    return 1 + factor.view(-1, 1, 1, 1) * (disparity - 1)


def seen_disparity(moves: Tensor, disparity: Tensor) -> Tensor:
    """The disparity that cameras at `moves` (n, 6) see at their own pixels: (n, 1, h, w) -> (n, 1, h, w).

    Points are moved to where the camera sees them, the nearest one is kept (z-buffer), and what none reaches, the
    disoccluded, is as far as the farthest around it.
    """
    n, _, h, w = disparity.shape
    fine = _resized(disparity, 4 * h, 4 * w)  # so close that magnified ones leave no gap
    base = identity_rays(4 * h, 4 * w).to(disparity)
    tx, ty, zoom, roll, tilt_x, tilt_y = (value.view(-1, 1, 1) for value in moves.unbind(1))
    d = fine[:, 0]
    left = torch.exp(-zoom)
    scale = (left + (1 - left) * (1 - d)).clamp(min=0.05)
    x, y = (base[0] - tx * d) / scale, (base[1] - ty * d) / scale
    x, y = roll.cos() * x + roll.sin() * y, roll.cos() * y - roll.sin() * x
    px, py = x, y
    for _ in range(3):
        depth = (1 + tilt_x * px + tilt_y * py).clamp(min=0.2)
        px, py = x * depth, y * depth
    column, row = ((px + 0.5) * w).floor().long(), (py * w + h / 2).floor().long()
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    index = torch.where(inside, row * w + column, h * w).flatten(1)
    seen = torch.zeros(n, h * w + 1, device=d.device).scatter_reduce(1, index, d.flatten(1), "amax")
    seen = seen[:, : h * w].view(n, 1, h, w)
    for _ in range(max(h, w)):
        hole = seen == 0
        if not hole.any():
            break
        far = -F.max_pool2d(torch.where(hole, -99.0, -seen), 3, 1, 1)
        seen = torch.where(hole & (far < 99), far, seen)
    return torch.where(seen == 0, torch.ones_like(seen), seen)


def deep_rays(moves: Tensor, disparity: Tensor, height: int, width: int, factor: int = 8) -> tuple[Tensor, Tensor]:
    """Ray maps of a picture with depth for cameras at `moves` (n, 6): (n, 2, height, width), and `factor` times smaller.

    The small ones are NaN where most of a pixel is disoccluded: the picture has nothing to show there.

    disparity: (n, 1, h, w), of the picture.
    """
    seen = seen_disparity(moves, disparity)
    points = rays(moves, identity_rays(height, width).to(moves), _resized(seen, height, width)[:, 0])
    h, w = seen.shape[-2:]
    own = rays(moves, identity_rays(h, w).to(moves), seen[:, 0])
    grid = torch.stack([own[:, 0] * 2, own[:, 1] * 2 * w / h], dim=-1)
    there = F.grid_sample(disparity, grid, padding_mode="border", align_corners=False)
    hidden = F.adaptive_avg_pool2d((there - seen > _HIDDEN).float(), (height // factor, width // factor)) > 0.5
    small = identity_rays(height // factor, width // factor).to(moves)
    coarse = rays(moves, small, F.adaptive_avg_pool2d(seen, small.shape[-2:])[:, 0])
    return points, coarse.masked_fill(hidden, torch.nan)


def _resized(values: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(values, size=(height, width), mode="bilinear")
