"""Camera moves as ray maps, a condition of svd_tiny, and the formula of the motion bucket.

A frame's *ray map* says for each pixel which point of the conditioning picture it shows: (2, h, w), x to the right and
y down, in units of the picture's width, the origin at its centre. The first frame's map is the identity.
Per-pixel ray maps as a camera condition: Gao et al. 2024 (arXiv:2405.10314), He et al. 2024 (arXiv:2404.02101).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# The motion bucket: 127 for a mean displacement of this many percent of the width from one frame to the next.
MOTION_AT_127 = 0.8

# Direction of each move: x, y (widths), log of zoom, roll (radians), tilt about the y and about the x axis.
# The camera pans left: it looks further left with each frame.
_DIRECTIONS: dict[str, tuple[float, ...]] = {
    "pan_left": (-1, 0, 0, 0, 0, 0),
    "pan_right": (1, 0, 0, 0, 0, 0),
    "pan_up": (0, -1, 0, 0, 0, 0),
    "pan_down": (0, 1, 0, 0, 0, 0),
    "zoom_in": (0, 0, 1, 0, 0, 0),
    "zoom_out": (0, 0, -1, 0, 0, 0),
    "roll_left": (0, 0, 0, 1, 0, 0),
    "roll_right": (0, 0, 0, -1, 0, 0),
}
# auto: drawn from the seed.
CAMERA_MOVES: tuple[str, ...] = ("auto", *_DIRECTIONS)


def motion_bucket(motion: Tensor | float) -> Tensor | float:
    """Mean displacement, percent of the width a frame -> motion bucket id."""
    return motion * (127 / MOTION_AT_127)


def motion_of_bucket(bucket: Tensor | float) -> Tensor | float:
    """Motion bucket id -> mean displacement, percent of the width a frame."""
    return bucket * (MOTION_AT_127 / 127)


def identity_rays(height: int, width: int) -> Tensor:
    """The map of a frame that shows the picture as it is, at pixel centres: (2, height, width)."""
    x = (torch.arange(width) + 0.5) / width - 0.5
    y = ((torch.arange(height) + 0.5) - height / 2) / width
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)])


def direction(move: str, count: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """`count` directions of the named move, (count, 6). "auto" draws them.

    A drawn camera approaches a point in or somewhat beside the picture, with a little roll and tilt. The closer it is,
    the further it can move sideways before it sees much beyond the picture's edges, where the content is unknown.
    """
    if move != "auto":
        return torch.tensor([_DIRECTIONS[move]] * count, dtype=torch.float32)
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    radius = 0.8 * torch.rand(count, generator=generator).sqrt()  # widths; an edge is 0.5 away
    turn = torch.randn(count, 3, generator=generator) * torch.tensor([0.14, 0.1, 0.1])
    aim = torch.stack([radius * angle.cos(), 0.6 * radius * angle.sin(), torch.ones(count)], dim=1)
    return torch.cat([aim, turn], dim=1)


def rays(moves: Tensor, base: Tensor, disparity: Tensor | float = 1.0) -> Tensor:
    """Ray maps (n, 2, h, w) of camera positions (n, 6), as in `direction`. base: (2, h, w) from `identity_rays`.

    disparity: of the point that each pixel shows, over that of the flat picture, the plane at which all moves are
    measured: (n, h, w), or what broadcasts to it. A point at half of it is twice as far, and moves half as much.
    Turning (roll, tilt) moves all points alike.
    """
    tx, ty, zoom, roll, tilt_x, tilt_y = (value.view(-1, 1, 1) for value in moves.unbind(1))
    x, y = base
    depth = 1 + tilt_x * x + tilt_y * y
    left = torch.exp(-zoom)  # of the way to the flat picture
    scale = (left + (1 - left) * (1 - disparity)).clamp(min=0.05) / depth.clamp(min=0.2)
    cos, sin = roll.cos() * scale, roll.sin() * scale
    return torch.stack([cos * x - sin * y + tx * disparity, sin * x + cos * y + ty * disparity], dim=1)


def camera_path(
    directions: Tensor, motion: Tensor, frames: int, height: int, width: int, ease: Tensor | None = None
) -> Tensor:
    """Camera positions of smooth moves from rest along `directions` (n, 6), for `rays`: (n, frames, 6).

    motion: (n,), the mean displacement that results, in percent of the width a frame, for pictures of height x width.
    ease: (n,) in [0, 1], how gently the camera starts and stops; 0 is even speed.
    """
    # A coarse grid measures the same mean displacement.
    base = identity_rays(round(16 * height / width), 16).to(directions)
    total = motion / 100 * (frames - 1)  # mean displacement of the last frame, in widths
    end = directions * 0.02
    for _ in range(3):  # displacement is nearly linear in the move: three corrections are enough
        displacement = (rays(end, base) - base).norm(dim=1).mean(dim=(1, 2))
        end = end * (total / displacement.clamp(min=1e-8))[:, None]
    u = torch.linspace(0, 1, frames, device=directions.device)
    ease = torch.zeros_like(motion) if ease is None else ease
    eased = (1 - ease[:, None]) * u + ease[:, None] * (0.5 - 0.5 * torch.cos(math.pi * u))  # (n, t)
    return end[:, None] * eased[:, :, None]


def seen_from(end: Tensor, path: Tensor) -> Tensor:
    """A path (t, 6) as measured from its picture at `end` (6,): there it is 0. Exact without tilts."""
    x, y = (path[:, :2] - end[:2]).unbind(1)
    zoom, roll = end[2], end[3]
    cos, sin, scale = roll.cos(), roll.sin(), zoom.exp()
    shift = torch.stack([cos * x + sin * y, cos * y - sin * x], dim=1) * scale
    return torch.cat([shift, path[:, 2:] - end[2:]], dim=1)


def there_and_back(frames: int) -> Tensor:
    """Shares of a way, (frames, 1), that begin and end at 0, gently, and come as near to 1 as frames are many."""
    return (0.5 - 0.5 * torch.cos(2 * math.pi * torch.linspace(0, 1, frames)))[:, None]


def motion_along(path: Tensor, base: Tensor) -> float:
    """Mean displacement of a flat picture's points along a path (t, 6), in percent of the width a frame."""
    return 100 * float(rays(path, base).diff(dim=0).norm(dim=1).mean())


def reflect(rays: Tensor, limit: Tensor) -> Tensor:
    """Fold points that lie outside the picture back into it, as in a mirror.

    rays: (..., 2, h, w); limit: (2,), half the picture's width and height in widths.
    """
    limit = limit.to(rays).view(2, 1, 1)
    return ((rays - limit).remainder(4 * limit) - 2 * limit).abs() - limit


def render(picture: Tensor, path: Tensor) -> Tensor:
    """What a camera on `path` (t, 6) sees of a flat picture: (1, c, 2 h, 2 w) -> (t, c, h, w).

    The picture has twice the size of the frames, so that frames stay sharp where the camera comes near. Beyond its
    edges it is mirrored: the network has to invent the real content.
    """
    h, w = picture.shape[-2:]
    points = rays(path, identity_rays(h, w).to(picture))
    grid = torch.stack([points[:, 0] * 2, points[:, 1] * 2 * w / h], dim=-1)
    views = F.grid_sample(picture.expand(len(path), -1, -1, -1), grid, padding_mode="reflection", align_corners=False)
    return halved(views)


def halved(views: Tensor) -> Tensor:
    """Views (n, c, 2 h, 2 w) at half their size, without aliasing."""
    return F.interpolate(views, scale_factor=0.5, mode="bicubic", antialias=True)


class CameraRayEmbedder(nn.Module):
    """Ray maps (b t, 2, h, w) at the latents' size -> Fourier features (b t, channels, h, w) to be concatenated.

    Sines and cosines of the point that each pixel shows and of the pixel's own position, so that attention can match
    them; the displacement; whether the point lies inside the picture. NaN, an unknown camera, gives zeros.
    """

    def __init__(self, frequencies: int = 5) -> None:
        super().__init__()
        self.frequencies = frequencies

    @property
    def channels(self) -> int:
        return 8 * self.frequencies + 3

    def forward(self, camera: Tensor, check: Callable[[], None] | None = None) -> Tensor:
        h, w = camera.shape[-2:]
        pixels = identity_rays(h, w).to(camera).expand_as(camera)
        bands = 2 * math.pi * 2.0 ** torch.arange(self.frequencies, device=camera.device)
        angles = torch.cat([camera, pixels], dim=1)[:, :, None] * rearrange(bands.to(camera), "f -> f 1 1")
        waves = rearrange([angles.sin(), angles.cos()], "wave n c f h w -> n (wave c f) h w")
        limit = torch.tensor([0.5, 0.5 * h / w], device=camera.device, dtype=camera.dtype).view(2, 1, 1)
        inside = (camera.abs() <= limit).all(dim=1, keepdim=True).to(camera)
        features = torch.cat([waves, (camera - pixels) * 8, inside], dim=1)
        valid = ~camera.isnan().any(dim=1, keepdim=True)
        return torch.where(valid, features, torch.zeros_like(features))
