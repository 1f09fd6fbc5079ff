"""Training clips: batches of them, and camera moves over photographs, rendered on the training device."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sgm.conditioning.camera import camera_path, direction, halved, identity_rays, motion_bucket, rays, reflect
from sgm.conditioning.layers import Layers, layers
from sgm.conditioning.scene import Scene
from sgm.errors import UserError
from sgm.media.image import fit_picture, open_picture
from sgm.media.kinds import files_of, listed

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class ClipBatch:
    """A batch of n clips.

    video: (n, t, 3, h, w) in [-1, 1]; warped: the first frame warped by the rays of each frame, mirrored at its edges,
    of the same shape; rays: (n, t, 2, h / 8, w / 8), NaN where the camera is unknown; known: (n, t, 1, h / 8, w / 8), 0
    where the video shows what nobody has seen; motion_bucket_id, fps_id: (n,).
    """

    video: Tensor
    warped: Tensor
    rays: Tensor
    known: Tensor
    motion_bucket_id: Tensor
    fps_id: Tensor


class PictureClips:
    """Random camera moves (pans, zooms, rolls, tilts) over crops of the pictures in a folder, with their true motion.

    canvas: (height, width) to which every picture is cropped once. bucket: range from which motion buckets are drawn.
    masks: a folder with the masks of the pictures' objects (`sgm.training.masks`): the pictures become scenes with
    depth, 0 to 1.25 times as deep as they look, and `warped` shows them as far as the picture tells. `composed`, a
    share of them, have the object of another picture, so that what it hides is known. recoloured: share of the clips
    whose colours are changed at random (colour jitter), for a model that has seen few pictures.
    """

    def __init__(
        self,
        folder: str | Path,
        size: tuple[int, int],
        canvas: tuple[int, int] = (384, 640),
        holdout: Sequence[str] = (),
        bucket: tuple[float, float] = (0.0, 255.0),
        masks: str | Path | None = None,
        composed: float = 0.25,
        recoloured: float = 0.0,
    ) -> None:
        paths = files_of(Path(folder), "picture", logger.warning, deep=True)
        paths = [path for path in paths if not path.stem.startswith(tuple(holdout))]

        def pixels(path: Path) -> np.ndarray:
            return np.array(fit_picture(open_picture(path), canvas[1], canvas[0]))

        def read(path: Path) -> Layers:
            mask = Path(masks) / f"{path.stem}.png" if masks else None
            return layers(pixels(path), pixels(mask)[..., 0] if mask and mask.is_file() else None)

        stack = list(_readable(folder, "picture", paths, read).values())
        self.colour, self.matte, self.disparity = (
            torch.from_numpy(np.stack([getattr(part, name) for part in stack]))
            for name in ("colour", "matte", "disparity")
        )
        self.near = torch.tensor([part.near for part in stack])
        has_object = (self.matte[:, 0] > 0).flatten(1).any(dim=1)
        self.objects, self.plain = has_object.nonzero()[:, 0], (~has_object).nonzero()[:, 0]  # indices
        self.size, self.bucket, self.deep = size, bucket, masks is not None
        self.composed, self.recoloured = composed, recoloured

    def scenes(self, chosen: Tensor, grid: Callable[[Tensor], Tensor]) -> Scene:
        """The scenes of these pictures, or of an object before a picture that has none, which shows what it hides."""
        device = self.colour.device
        objects = chosen
        if self.deep and len(self.objects) and len(self.plain):
            composed = torch.rand(chosen.shape) < self.composed
            objects = torch.where(composed, self.objects[torch.randint(len(self.objects), chosen.shape)], chosen)
            chosen = torch.where(composed, self.plain[torch.randint(len(self.plain), chosen.shape)], chosen)
        chosen, objects = chosen.to(device), objects.to(device)
        colour = torch.cat([self.colour[objects, :3], self.colour[chosen, 3:]], dim=1).float() / 127.5 - 1
        if self.recoloured:
            colour = recoloured(colour, self.recoloured)
        matte = torch.stack([self.matte[objects, 0], self.matte[chosen, 1]], dim=1).float() / 255
        disparity = self.disparity[objects].expand_as(matte[:, :1])  # the object stands on its own ground
        return Scene(colour, matte, disparity, self.near[objects], grid)

    def draw(self, n: int, frames: int, device: torch.device, warped: bool = True) -> ClipBatch:
        """n clips of `frames` frames. Without `warped`, the batch's `warped` is the video itself, which saves time."""
        h, w = self.size
        bucket = self.bucket[0] + (self.bucket[1] - self.bucket[0]) * torch.rand(n)
        motion = bucket / float(motion_bucket(1.0))
        path = camera_path(_directions(n), motion, frames, h, w, ease=torch.rand(n)).to(device)
        scene, grid = self._cut(n, device)
        flat = scene.flat()
        fine = identity_rays(2 * h, 2 * w).to(device)  # twice the size, then scaled down: no aliasing
        limit = torch.tensor([0.5, 0.5 * h / w])
        fps = (torch.randint(5, 31, (n,)).float() - 1).to(device)

        def flat_view(points: Tensor) -> Tensor:
            return halved(F.grid_sample(flat, grid(points), padding_mode="reflection", align_corners=False))

        if not self.deep:
            points = [rays(path[:, t], fine) for t in range(frames)]
            video = torch.stack([flat_view(p) for p in points], dim=1)
            first = torch.stack([flat_view(reflect(p, limit)) for p in points], dim=1) if warped else video
            coarse = rays(path.flatten(0, 1), identity_rays(h // 8, w // 8).to(device)).unflatten(0, (n, frames))
            return ClipBatch(video, first, coarse, torch.ones_like(coarse[:, :, :1]), bucket.to(device), fps)
        strength = (1.25 * torch.rand(n)).where(torch.rand(n) < 0.4, torch.ones(n)).to(device)
        scene = scene.deep(strength, path, fine[:, ::16, ::16])
        guessed, small = scene.guessed(limit), identity_rays(h // 8, w // 8).to(device)
        video, known, first, coarse = [], [], [], []
        for moves in path.unbind(1):
            picture, where = scene.view(moves, fine)
            video.append(halved(picture))
            known.append((F.avg_pool2d(where, 16) > 0.95).float())
            first.append(halved(guessed.view(moves, fine)[0]) if warped else video[-1])
            coarse.append(guessed.rays(moves, small))
        stacked = [torch.stack(parts, dim=1) for parts in (video, first, coarse, known)]
        return ClipBatch(*stacked, motion_bucket_id=bucket.to(device), fps_id=fps)

    def _cut(self, n: int, device: torch.device) -> tuple[Scene, Callable[[Tensor], Tensor]]:
        """n scenes at random crops, flipped or not, and the function from points of a crop to `grid_sample`'s grid."""
        for name in ("colour", "matte", "disparity", "near"):
            setattr(self, name, getattr(self, name).to(device))
        canvas_h, canvas_w = self.colour.shape[-2:]
        # Share of the canvas that the first frame shows, and its centre.
        share = (0.45 + 0.55 * torch.rand(n).sqrt()).clamp(max=1)
        slack = (1 - share[:, None]) / 2
        centre = (torch.rand(n, 2) * 2 - 1) * slack * torch.tensor([1.0, canvas_h / canvas_w])
        flip = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
        share, centre, flip = (value.to(device) for value in (share, centre, flip))

        def grid(points: Tensor) -> Tensor:
            points = points * share.view(-1, 1, 1, 1) + centre.view(-1, 2, 1, 1)
            return torch.stack([points[:, 0] * flip.view(-1, 1, 1) * 2, points[:, 1] * 2 * canvas_w / canvas_h], dim=-1)

        return self.scenes(torch.randint(len(self.colour), (n,)), grid), grid


def _directions(n: int) -> Tensor:
    """Camera moves, (n, 6), as in `direction`: half drawn by it, half mixtures dominated by a pan or a zoom."""
    mixture = torch.randn(n, 6) * torch.tensor([1.0, 0.6, 1.8, 0.5, 0.35, 0.35])
    lead = torch.zeros(n, 6).scatter_(1, torch.randint(0, 3, (n, 1)), 1.0) * torch.tensor([1.0, 0.7, 1.8, 0, 0, 0])
    sign = torch.randint(0, 2, (n, 1)) * 2.0 - 1.0
    return torch.where(torch.rand(n, 1) < 0.5, direction("auto", n), lead * sign * 1.5 + mixture * 0.4)


def recoloured(colour: Tensor, share: float) -> Tensor:
    """Colour jitter: a share of the pictures get another gamma (0.45 to 2.2), saturation and hue.

    colour: (n, 3 m, h, w) in [-1, 1]; the m layers of a picture change alike.
    """
    n, device = len(colour), colour.device
    gamma = torch.exp(0.8 * (2 * torch.rand(n) - 1)).to(device)
    saturation, angle = 0.3 + 1.2 * torch.rand(n), math.pi * (2 * torch.rand(n) - 1)
    grey = torch.full((3, 3), 1 / 3)
    turn = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)  # about the grey axis
    cos, sin, saturation = (value.view(-1, 1, 1) for value in (angle.cos(), angle.sin(), saturation))
    matrix = (grey + saturation * (cos * (torch.eye(3) - grey) + sin * turn)).to(colour)
    pixels = ((colour.unflatten(1, (-1, 3)) + 1) / 2).clamp(min=1e-6) ** gamma.view(-1, 1, 1, 1, 1)
    changed = torch.einsum("nij,nmjhw->nmihw", matrix, pixels).clamp(0, 1).flatten(1, 2) * 2 - 1
    return torch.where((torch.rand(n) < share).to(device).view(-1, 1, 1, 1), changed, colour)


def join(batches: Sequence[ClipBatch]) -> ClipBatch:
    """Concatenate batches."""
    return ClipBatch(*(torch.cat(parts) for parts in zip(*(vars(b).values() for b in batches), strict=True)))


def _readable(
    folder: str | Path, group: str, paths: Sequence[Path], read: Callable[[Path], T], workers: int | None = None
) -> dict[Path, T]:
    """What `read` makes of each file. Files for which it raises UserError are left out, and logged in one line.

    Raises UserError where none is left.
    """

    def attempt(path: Path) -> T | UserError:
        try:
            return read(path)
        except UserError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        results = dict(zip(paths, pool.map(attempt, paths), strict=True))
    failed = [str(result) for result in results.values() if isinstance(result, UserError)]
    found = {path: result for path, result in results.items() if not isinstance(result, UserError)}
    line = f"Left out, since they cannot be read: {listed(failed, '; ')}" if failed else ""
    if not found:
        raise UserError(f"{folder} holds no {group}s that can be used. {line}".strip())
    if line:
        logger.warning("%s", line)
    return found
