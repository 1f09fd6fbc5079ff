"""Statistics of group norms, in plain torch: measured part by part, then combined into any group norm."""

from __future__ import annotations

import math

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

    def measure(self, x: Tensor, start: int = 0, channel: int = 0) -> Moments:
        """Store the moments of x, (n, part, c): the pixels from `start` on, of the channels from `channel` on."""
        _, s, c = x.shape
        first, full = start // self.tile, s - s % self.tile  # the first tile; pixels in full tiles
        for part in (x[:, :full], x[:, full:]):
            if part.shape[1]:
                values = part.unflatten(1, (-1, min(part.shape[1], self.tile)))
                index = slice(None), slice(first, first + values.shape[1]), slice(channel, channel + c)
                self._measure(values, self.mean[index], self.deviation[index])
                first += values.shape[1]
        return self

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

    def measure(self, x: Tensor, start: int = 0, channel: int = 0) -> Moments:
        n, _, c = x.shape
        step = max(CACHE_VALUES // (4 * n * self.tile * c), 1) * self.tile
        for i, part in enumerate(x.split(step, dim=1)):
            super().measure(part, start + i * step, channel)
        return self

    def _measure(self, values: Tensor, mean: Tensor, deviation: Tensor) -> None:
        copy = values.float()
        mean.copy_(copy.mean(2))  # `var_mean` takes ten times as long on processors
        _deviation(copy, mean, deviation, out=None if copy is values else copy)


def per_frame(add: Tensor | None, like: Tensor) -> Tensor:
    """`add`, (n, c) or (c,), expanded to one row a frame, (n, c), for x `like` (n, ..., c); zeros for None."""
    shape = (like.shape[0], like.shape[-1])
    return like.new_zeros(shape[1]).expand(shape) if add is None else add.expand(shape)


def _deviation(values: Tensor, mean: Tensor, deviation: Tensor, out: Tensor | None = None) -> None:
    """Write the sums of squared differences to the mean to `deviation`. out: a buffer for the differences."""
    deviation.copy_(torch.sub(values, mean[:, :, None], out=out).square_().sum(2))
