"""Ranks and Shard: which clips and frames each of several processes computes, and what they exchange.

Each process has a device of its own and computes the same layers, on its frames. Layers within a frame need nothing of
the others; group norms over frames need the moments of all, convolutions over frames a frame on each side, attention
over frames all frames of some pixels (the all-to-all of DeepSpeed-Ulysses, arXiv:2309.14509, with pixels for heads).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

    from sgm.fast.moments import Moments


class Shard:
    """A contiguous part of a clip of `frames` frames: that of process `rank` of the `size` processes in `group`.

    The default is the whole clip, for which nothing is exchanged. All processes call the same methods in one order.
    """

    def __init__(self, frames: int, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.frames, self.rank, self.size, self.group = frames, rank, size, group
        self.parts = split(frames, size)
        self.local = self.parts[rank]

    def cut(self, x: Tensor) -> Tensor:
        """The local rows of x, which has a row for each frame of the clip."""
        return x if self.size == 1 else x[self.local]

    def norm(self, moments: Moments, module: nn.GroupNorm, add: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The group norm over all frames of the clip: `Moments.norm` of the local frames' moments."""
        if self.size == 1:
            return moments.norm(module, self.frames, add)
        mean, deviation = moments.mean, moments.deviation
        rows = [mean, deviation]
        if add is not None and add.ndim == 2:
            rows.append(add[:, None].float())
        rows = self.gathered(torch.cat(rows, dim=1)).split([part.shape[1] for part in rows], dim=1)  # in one exchange
        whole = moments.having(rows[0].contiguous(), rows[1].contiguous())
        if len(rows) > 2:
            add = rows[2][:, 0].contiguous()
        scale, shift = whole.norm(module, self.frames, add)
        return self.cut(scale), self.cut(shift)

    def gathered(self, x: Tensor) -> Tensor:
        """The rows (one a frame) of all processes, in order. x: (local frames, ...)."""
        return gathered(x, [part.stop - part.start for part in self.parts], self.group)

    def fill_halo(self, y: Tensor, halo: int) -> None:
        """Fill the first and the last `halo` rows of y, (halo + local frames + halo, ...), with the frames beside.

        Zeros at the ends of the clip. `halo` must not exceed the frames of any part.
        """
        above, below = y[:halo], y[-halo:]
        transfers = []
        for there, outgoing, incoming in (
            (self.rank - 1, y[halo : 2 * halo], above),
            (self.rank + 1, y[-2 * halo : -halo], below),
        ):
            if not 0 <= there < self.size:
                incoming.zero_()
                continue
            peer = there if self.group is None else dist.get_global_rank(self.group, there)
            transfers.append(dist.P2POp(dist.isend, outgoing.contiguous(), peer, self.group))
            transfers.append(dist.P2POp(dist.irecv, incoming, peer, self.group))
        for request in dist.batch_isend_irecv(transfers) if transfers else ():
            request.wait()

    def to_pixels(self, x: Tensor) -> Tensor:
        """From the local frames of all pixels to all frames of this process's share of the pixels, in new memory.

        x: (local frames, s, c) -> (frames, about s / size, c).
        """
        if self.size == 1:
            return x.clone()
        shares, (n, _, c) = split(x.shape[1], self.size), x.shape
        mine = shares[self.rank]
        out = x.new_empty(self.frames, mine.stop - mine.start, c)
        sent = torch.cat([x[:, share].reshape(-1) for share in shares])
        sizes = [n * (share.stop - share.start) * c for share in shares]
        received = [(part.stop - part.start) * (mine.stop - mine.start) * c for part in self.parts]
        dist.all_to_all_single(out.view(-1), sent, received, sizes, self.group)
        return out

    def to_frames(self, z: Tensor, s: int) -> Tensor:
        """The inverse of `to_pixels`: (frames, about s / size, c) -> (local frames, s, c)."""
        if self.size == 1:
            return z
        shares, n, c = split(s, self.size), self.local.stop - self.local.start, z.shape[2]
        sizes = [(part.stop - part.start) * z.shape[1] * c for part in self.parts]
        received = [n * (share.stop - share.start) * c for share in shares]
        flat = z.new_empty(n * s * c)
        dist.all_to_all_single(flat, z.reshape(-1), received, sizes, self.group)
        columns = [part.view(n, -1, c) for part in flat.split(received)]
        return torch.cat(columns, dim=1)


class Ranks:
    """The processes that compute each clip together, one a device: this is `rank` of `size`; by default, the only one.

    More than one are a torch.distributed process group, and each makes the same calls in the same order. The two clips
    of guidance go to one half of the processes each, a clip's frames are divided among those of a half. With
    SGM_SPLIT=frames in the environment, every process computes its frames of both.
    """

    plan: Any = None  # the memory plan that all of them must have, where it is not this process's to choose

    def __init__(self, rank: int = 0, size: int = 1, lost: str = "") -> None:
        self.rank, self.size, self._lost = rank, size, lost

    @property
    def lost(self) -> str:
        """Why processes that were asked for are not, or no longer, at work."""
        return self._lost

    def join(self) -> None:
        """Wait until all processes have their engines; then they are a process group."""

    def group(self) -> None:
        """Make the groups of the halves, once the processes are a group themselves."""
        size = self.size
        self._by_guidance = size % 2 == 0 and os.environ.get("SGM_SPLIT") != "frames"
        halves = split(size, 2) if self._by_guidance and size > 2 else []
        self._groups = [dist.new_group(list(range(half.start, half.stop))) for half in halves]

    def begin(self, *job: Any) -> None:
        """Send a job to the other processes, once this one is ready to compute."""

    def gate(self, check: Callable[[], None]) -> Callable[[], None]:
        """A function to be called, in all processes, wherever the job may end: it ends where `check` raises in one."""
        return check

    def job(self) -> AbstractContextManager[None]:
        """A context for the whole of a job."""
        return nullcontext()

    def together(self) -> AbstractContextManager[None]:
        """A context for what all processes compute together, in which none may fail alone."""
        return nullcontext()

    def shard(self, frames: int) -> Shard:
        """The frames of a clip that this process computes where there is no guidance."""
        return self.share(1, frames)[1]

    def share(self, clips: int, frames: int, divisible: bool = True) -> tuple[list[int], Shard]:
        """Which clips of a batch this process computes, and which of their frames.

        divisible: whether frames can be divided, else all of a half compute the same.
        """
        if self.size == 1:
            return list(range(clips)), Shard(frames)
        across = 2 if clips == 2 and self._by_guidance else 1
        shards = self.size // across
        half, rank = divmod(self.rank, shards)
        if not divisible:
            return [half] if across == 2 else list(range(clips)), Shard(frames)
        if frames < shards:
            return list(range(clips)), Shard(frames)
        group = self._groups[half] if across == 2 and self._groups else None
        return [half] if across == 2 else list(range(clips)), Shard(frames, rank, shards, group)

    def joined(self, out: list[Tensor], clips: int, shard: Shard) -> Tensor:
        """The whole batch (clips t, ...). out: of each of this process's clips the shard's frames."""
        if len(out) < clips:
            alike = self.size // (clips * shard.size)  # processes that computed the same
            counts = clips * alike * [part.stop - part.start for part in shard.parts]
            return gathered(out[0], counts, None).unflatten(0, (clips, alike, -1))[:, 0].flatten(0, 1)
        out = [shard.gathered(part) for part in out] if shard.size > 1 else out
        return out[0] if len(out) == 1 else torch.cat(out)


def split(n: int, parts: int) -> list[slice]:
    """n things in contiguous parts whose sizes differ by one at most, the larger first."""
    sizes = [n // parts + (i < n % parts) for i in range(parts)]
    return [slice(*ends) for ends in pairwise(accumulate(sizes, initial=0))]


def gathered(x: Tensor, counts: list[int], group: Any) -> Tensor:
    """The rows of all processes of a group, in order. counts: how many each has. x: this process's, (rows, ...)."""
    most = max(counts)
    padded = x.contiguous() if len(x) == most else torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
