"""Held: one activation of a whole clip, of which the device may hold a part, and the processor's memory the rest."""

from __future__ import annotations

from torch import Tensor

from sgm.devices import host_buffers


class Held:
    """A buffer for activations of n frames, one at a time, that each fill its end.

    like: gives dtype and device. sizes: all that a frame may have, values. most: how many values the device may hold
    (default: all). The first frames of activations that are larger lie in the processor's memory.
    """

    def __init__(self, like: Tensor, n: int, sizes: list[int], most: int | None) -> None:
        largest = max(sizes)
        outside = 0 if most is None else max(n - most // largest, 0)
        if any(largest % size for size in sizes):  # a frame would lie across the border
            outside = n if outside else 0
        (memory,) = host_buffers([outside * largest * like.itemsize], like.device)
        self.n, self.outside, self.inside = n, memory.view(like.dtype), like.new_empty((n - outside) * largest)

    def at_end(self, h: int, w: int, c: int) -> Activation:
        """The place of an activation (n, h w, c)."""
        inside = min(len(self.inside) // (h * w * c), self.n)

        def end(buffer: Tensor, frames: int) -> Tensor:
            return buffer[len(buffer) - frames * h * w * c :].view(frames, h * w, c)

        spare = self.inside[: len(self.inside) - inside * h * w * c]
        return Activation(end(self.outside, self.n - inside), end(self.inside, inside), (h, w), spare)


class Activation:
    """An activation (n, h w, c): its first frames `outside` of the device, the rest `inside`. size: (h, w).

    spare: the part of the device's buffer before it, (values,), for what is needed meanwhile.
    """

    def __init__(self, outside: Tensor, inside: Tensor, size: tuple[int, int], spare: Tensor) -> None:
        self.outside, self.inside, self.size, self.spare = outside, inside, size, spare
        self.shape = (len(outside) + len(inside), *inside.shape[1:])

    def part(self, frames: slice = slice(None), pixels: slice = slice(None), read: bool = True) -> Tensor:
        """Some pixels of some frames on the device: the activation itself where it is there, else a copy.

        Not `read`: the copy has any values. What is written to a copy takes effect with `put`.
        """
        start, stop, _ = frames.indices(self.shape[0])
        if start >= len(self.outside):
            return self.inside[start - len(self.outside) : stop - len(self.outside), pixels]
        rows = self._rows(frames, pixels)
        copy = self.inside.new_empty(len(rows), *rows[0].shape)
        for row, target in zip(rows, copy, strict=True):
            if read:
                target.copy_(row, non_blocking=True)
        return copy

    def put(self, part: Tensor, frames: slice = slice(None), pixels: slice = slice(None)) -> None:
        """Write back what `part(frames, pixels)` gave."""
        if frames.indices(self.shape[0])[0] < len(self.outside):
            for row, value in zip(self._rows(frames, pixels), part, strict=True):
                row.copy_(value, non_blocking=True)

    def _rows(self, frames: slice, pixels: slice) -> list[Tensor]:
        """Each of some frames where it lies, each contiguous, as copies between memories are fast."""
        return [row[pixels] for row in [*self.outside, *self.inside][frames]]
