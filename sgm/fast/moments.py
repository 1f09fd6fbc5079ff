"""Statistics of group norms, in plain torch: measured part by part, then combined into any group norm."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

CACHE_VALUES = 2**22  # values that fit into a processor's caches


class Moments:
    """Mean and sum of squared deviations of each channel, for each tile of 1024 pixels: n frames, s pixels, c channels.

    The parallel algorithm of Chan, Golub and LeVeque combines the tiles into the variance of any group norm. Pixels may
    be measured in several calls, each starting at a multiple of `tile`.
    """

    tile = 1024  # pixels

    def __init__(self, n: int, s: int, c: int, device: torch.device) -> None:
        self.pixels = s
        self.mean, self.deviation = torch.empty((2, n, math.ceil(s / self.tile), c), device=device)

    def having(self, mean: Tensor, deviation: Tensor) -> Moments:
        """Moments of the same pixels with these values: of other frames or channels."""
        other = copy.copy(self)
        other.mean, other.deviation = mean, deviation
        return other

    def split(self, step: int) -> list[Moments]:
        """Those of `step` consecutive frames each."""
        return [self.having(*part) for part in zip(self.mean.split(step), self.deviation.split(step), strict=True)]

    @staticmethod
    def joined(parts: Sequence[Moments], dim: int) -> Moments:
        """Those of consecutive frames (dim 0) or channels (dim 2) as one."""
        if len(parts) == 1:
            return parts[0]
        mean, deviation = (torch.cat(part, dim) for part in zip(*((p.mean, p.deviation) for p in parts), strict=True))
        return parts[0].having(mean, deviation)

    def measure(self, x: Tensor, start: int = 0) -> Moments:
        """Store the moments of x, (n, part, c): the pixels from `start` on."""
        first, full = start // self.tile, x.shape[1] - x.shape[1] % self.tile  # the first tile; pixels in full tiles
        for part in (x[:, :full], x[:, full:]):
            if part.shape[1]:
                values = part.unflatten(1, (-1, min(part.shape[1], self.tile)))
                tiles = slice(first, first + values.shape[1])
                self._measure(values, self.mean[:, tiles], self.deviation[:, tiles])
                first = tiles.stop
        return self

    def take(self, part: Moments, start: int) -> None:
        """Store the moments of the pixels from `start` on that are measured already."""
        tiles = slice(start // self.tile, start // self.tile + part.mean.shape[1])
        self.mean[:, tiles], self.deviation[:, tiles] = part.mean, part.deviation

    def _measure(self, values: Tensor, mean: Tensor, deviation: Tensor) -> None:
        """Write the moments of values (n, tiles, pixels, c) to mean and deviation, (n, tiles, c)."""
        mean.copy_(values.mean(2, dtype=mean.dtype))
        if values.dtype == torch.float32:
            _deviation(values, mean, deviation)
        else:  # no intermediate of the size of `values`; sums of squares are exact enough for half precision alone
            squares = torch.linalg.vector_norm(values, dim=2, dtype=mean.dtype).square_()
            deviation.copy_(squares.addcmul_(mean, mean, value=-values.shape[2]).clamp_(min=0))

    def norm(self, module: nn.GroupNorm, frames: int = 1, add: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The group norm of (x + add), statistics over `frames` consecutive frames, as x * scale + shift.

        add: (n, c) or (c,). Returns scale and shift, (n, c) float32.
        """
        n, tiles, c = self.mean.shape
        groups, size = module.num_groups, c // module.num_groups
        add = per_frame(add, self.mean).float()
        counts = torch.full((tiles, 1, 1), float(self.tile), device=add.device)
        counts[-1] = self.pixels - (tiles - 1) * self.tile
        means = (self.mean + add[:, None]).view(-1, frames, tiles, groups, size)
        total = frames * self.pixels * size
        mean = (means * counts).sum((1, 2, 4), keepdim=True) / total
        spread = self.deviation.view_as(means).sum((1, 2, 4), keepdim=True)
        spread = spread + ((means - mean).square() * counts).sum((1, 2, 4), keepdim=True)
        scale = (spread / total + module.eps).rsqrt().expand(-1, frames, -1, -1, size).reshape(n, c) * module.weight
        mean = mean.expand(-1, frames, -1, -1, size).reshape(n, c)
        return scale, (add - mean) * scale + module.bias


class ProcessorMoments(Moments):
    """Moments for processors: measured in chunks that stay in the caches, by differences to the mean in every dtype."""

    def measure(self, x: Tensor, start: int = 0) -> Moments:
        n, _, c = x.shape
        step = max(CACHE_VALUES // (4 * n * self.tile * c), 1) * self.tile
        for i, part in enumerate(x.split(step, dim=1)):
            super().measure(part, start + i * step)
        return self

    def _measure(self, values: Tensor, mean: Tensor, deviation: Tensor) -> None:
        copy = values.float()
        mean.copy_(copy.mean(2))  # `var_mean` takes ten times as long on processors
        _deviation(copy, mean, deviation, out=None if copy is values else copy)


class Measured:
    """An activation x (n, s, c) and its moments: measured once, as x was written or else when first asked for.

    After a change of x in place another is taken: by `updated`, or of x anew. kind: of the device's moments.
    """

    def __init__(self, x: Tensor, kind: type[Moments], moments: Moments | None = None) -> None:
        self.x, self._kind, self._moments = x, kind, moments

    @property
    def moments(self) -> Moments:
        if self._moments is None:
            n, s, c = self.x.shape
            self._moments = self._kind(n, s, c, self.x.device).measure(self.x)
        return self._moments

    @property
    def known(self) -> Moments | None:
        """The moments if they were measured already."""
        return self._moments

    def split(self, step: int) -> list[Measured]:
        """`step` consecutive frames each."""
        parts = self.x.split(step)
        moments = [None] * len(parts) if self._moments is None else self._moments.split(step)
        return [Measured(x, self._kind, part) for x, part in zip(parts, moments, strict=True)]

    def updated(self, parts: Sequence[Measured]) -> Measured:
        """x after an update in place. parts: what `split` gave, after it."""
        return Measured(self.x, self._kind, joined_frames([part.known for part in parts]))


def joined_frames(parts: Sequence[Moments | None]) -> Moments | None:
    """The moments of consecutive frames as one; None where some were not measured yet."""
    known = [part for part in parts if part is not None]
    return Moments.joined(known, 0) if len(known) == len(parts) else None


def per_frame(add: Tensor | None, like: Tensor) -> Tensor:
    """`add`, (n, c) or (c,), expanded to one row a frame, (n, c), for x `like` (n, ..., c); zeros for None."""
    shape = (like.shape[0], like.shape[-1])
    return (_zeros(shape[1], like.dtype, like.device) if add is None else add).expand(shape)


@cache
def _zeros(c: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, (c,), that nobody writes to: filled once, not for each norm."""
    with torch.inference_mode(False):
        return torch.zeros(c, dtype=dtype, device=device)


def _deviation(values: Tensor, mean: Tensor, deviation: Tensor, out: Tensor | None = None) -> None:
    """Write the sums of squared differences to the mean to `deviation`. out: a buffer for the differences."""
    deviation.copy_(torch.sub(values, mean[:, :, None], out=out).square_().sum(2))
