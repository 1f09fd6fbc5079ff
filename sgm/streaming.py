"""Streaming: a network whose blocks lie in the processor's memory, and on the device only while they are evaluated.

A few slots on the device, each as large as the largest block, hold the block that is evaluated and those that come
next, which are copied meanwhile on a stream of their own. SVD-XT's 2.8 GiB cross the bus for each clip of guidance: in
61 ms at 50 GB/s (PCIe 5), 122 ms at 25 GB/s, beneath 170 ms of computing on an H100. Evaluating both clips block by
block would halve that, but hold what enters the output blocks of both, 0.7 GiB more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from sgm.devices import host_buffers
from sgm.engine import copy_to
from sgm.fast.unet import FastUNet
from sgm.unet.unet import UNet
from sgm.unet.wrapper import OpenAIWrapper

SLOTS = 3
_ALIGNED = 256  # bytes, as torch aligns tensors on GPUs

Packed = list[tuple[Tensor, list[Tensor]]]  # of each block: a buffer; what is in it, as tensors without memory
_lock = threading.Lock()
_packed: WeakKeyDictionary[nn.Module, Packed] = WeakKeyDictionary()  # of networks that are in use, for all their runs


def packed(model: OpenAIWrapper, device: torch.device) -> Packed:
    """Each block's tensors in one buffer of the processor's memory, pinned for `device`, from where the model has them.

    The model is in the processor's memory.
    """
    with _lock, torch.inference_mode(False), torch.no_grad():
        if model not in _packed:
            blocks = [_tensors(block) for block in cast(UNet, model.diffusion_model).blocks]
            likes = [[torch.empty_like(held[name], device="meta") for held, name in block] for block in blocks]
            buffers = host_buffers([_size(block) for block in likes], device)
            for block, buffer, like in zip(blocks, buffers, likes, strict=True):
                for (held, name), view in zip(block, _views(buffer, like), strict=True):
                    view.copy_(held[name])
                    # In a new parameter, since another thread may be reading the old one.
                    own = isinstance(held[name], nn.Parameter)
                    held[name] = nn.Parameter(view, requires_grad=False) if own else view
            _packed[model] = list(zip(buffers, likes, strict=True))
        return _packed[model]


def _tensors(module: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Where a module's tensors are: for each the dictionary that holds it, and its key."""
    held = [values for part in module.modules() for values in (part._parameters, part._buffers)]
    return [(values, name) for values in held for name, value in values.items() if value is not None]


def _aligned(value: Tensor) -> int:
    return ceil(value.nbytes / _ALIGNED) * _ALIGNED


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors in a buffer, one after the other."""
    return sum(map(_aligned, tensors))


def _views(buffer: Tensor, likes: Iterable[Tensor]) -> Iterator[Tensor]:
    """Tensors like these in a buffer, one after the other."""
    start = buffer.storage_offset()
    for like in likes:
        yield buffer.view(like.dtype).as_strided(like.shape, like.stride(), start // like.itemsize)
        start += _aligned(like)


@dataclass
class _Slot:
    """Memory on the device: which block lies there, when its copy arrives, and when its latest user has left."""

    buffer: Tensor
    block: int | None = None
    arrived: Any = None  # events of CUDA
    left: Any = None


class Streamed:
    """A copy of a network whose blocks' weights are on the device where `load` has put them, and else None.

    For one thread. model: the copy; what lies outside of its blocks is always there.
    """

    def __init__(self, model: OpenAIWrapper, device: torch.device) -> None:
        self._packed, self._device = packed(model, device), device
        self.model = cast(OpenAIWrapper, copy_to(model, torch.device("meta")))
        blocks = cast(UNet, self.model.diffusion_model).blocks
        self._index: dict[nn.Module, int] = {block: i for i, block in enumerate(blocks)}
        self._tensors = [_tensors(block) for block in blocks]
        self._here: _Slot | None = None  # of the block that was loaded last
        self._copies = copy_stream(device)
        size = max(len(buffer) for buffer, _ in self._packed)
        with torch.inference_mode(False):
            self._slots = [_Slot(torch.empty(size, dtype=torch.uint8, device=device)) for _ in range(SLOTS)]
            inside = {id(held) for block in self._tensors for held, _ in block}
            for (theirs, name), (ours, _) in zip(_tensors(model), _tensors(self.model), strict=True):
                ours[name] = None if id(ours) in inside else theirs[name].detach().to(device)
        if self._copies:
            for slot in self._slots:
                slot.buffer.record_stream(self._copies)  # what frees it waits for copies
                slot.left = torch.cuda.current_stream(device).record_event()  # the memory may have been another's
        itself = ref(self)  # the blocks keep no slots alive
        for block in blocks:  # for modules that are called as they are, where there is no fast path
            block._forward_pre_hooks = type(block._forward_pre_hooks)()  # the copy's own
            block.register_forward_pre_hook(lambda block, _: cast(Streamed, itself()).load(block))

    def load(self, block: nn.Module) -> None:
        """Have a block's weights on the device for what is launched next, and those of the next ones on their way."""
        first, count = self._index[block], len(self._index)
        if self._copies and self._here:
            self._here.left = torch.cuda.current_stream(self._device).record_event()
        wanted = [(first + i) % count for i in range(min(SLOTS, count))]
        for i in wanted:
            if all(slot.block != i for slot in self._slots):
                self._fetch(i, next(slot for slot in self._slots if slot.block not in wanted))
        self._here = next(slot for slot in self._slots if slot.block == first)
        if self._here.arrived:
            torch.cuda.current_stream(self._device).wait_event(self._here.arrived)

    def _fetch(self, i: int, slot: _Slot) -> None:
        """Begin to copy a block to a slot, once the slot's latest user has left."""
        for held, name in () if slot.block is None else self._tensors[slot.block]:
            held[name] = None
        (source, likes), slot.block = self._packed[i], i
        target = slot.buffer[: len(source)]
        with torch.cuda.stream(self._copies):  # None: no other stream
            if self._copies and slot.left:
                self._copies.wait_event(slot.left)
            target.copy_(source, non_blocking=True)
            slot.arrived = self._copies.record_event() if self._copies else None
        for (held, name), view in zip(self._tensors[i], _views(slot.buffer, likes), strict=True):
            held[name] = view


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for copies beside the computing. None where there are no streams, and copies are waited for."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def stream(model: OpenAIWrapper, device: torch.device, dtype: torch.dtype | None = None) -> FastUNet:
    """A network whose weights come to the device block by block, in `dtype` if given. For one thread."""
    streamed = Streamed(copy_to(model, torch.device("cpu"), dtype) if dtype else model, device)
    return FastUNet(streamed.model, streamed.load)


def streamed_bytes(model: nn.Module) -> int | None:
    """Bytes of a streamed network's weights on the device at once. None for a network that has no blocks."""
    unet = getattr(model, "diffusion_model", None)
    if not isinstance(unet, UNet):
        return None
    sizes = [_size(held[name] for held, name in _tensors(block)) for block in unet.blocks]
    return _size(held[name] for held, name in _tensors(model)) - sum(sizes) + SLOTS * max(sizes)
