"""Streaming: a network whose blocks lie in the processor's memory, and on the device only while they are evaluated.

A few slots on the device, each as large as the largest block, hold the block that is evaluated and those that come
next, which are copied meanwhile on a stream of their own. SVD-XT's 2.8 GiB cross the bus for each clip of guidance: in
61 ms at 50 GB/s (PCIe 5), 122 ms at 25 GB/s, beneath 170 ms of computing on an H100. Evaluating both clips block by
block would halve that, but hold what enters the output blocks of both, 0.7 GiB more.
"""

from __future__ import annotations

import threading
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


@dataclass(frozen=True)
class _Place:
    """Where a tensor is: its module's number in a block, attribute and name; and from which byte of a buffer on."""

    module: int
    kind: str
    name: str
    like: Tensor  # of its dtype, shape and strides, without memory
    start: int

    def get(self, modules: list[nn.Module]) -> Tensor:
        return getattr(modules[self.module], self.kind)[self.name]

    def put(self, modules: list[nn.Module], value: Tensor | None) -> None:
        getattr(modules[self.module], self.kind)[self.name] = value

    def view(self, buffer: Tensor) -> Tensor:
        like, start = self.like, buffer.storage_offset() + self.start
        return buffer.view(like.dtype).as_strided(like.shape, like.stride(), start // like.itemsize)


Packed = list[tuple[Tensor, list[_Place]]]  # of each block: a buffer, and what lies where in it

_lock = threading.Lock()
# Networks' blocks by dtype: shared by all runs, and kept as long as the network is.
_packed: WeakKeyDictionary[nn.Module, dict[torch.dtype | None, Packed]] = WeakKeyDictionary()


def packed(model: OpenAIWrapper, device: torch.device, dtype: torch.dtype | None = None) -> Packed:
    """Each block's tensors in one buffer of the processor's memory, pinned for `device`; in `dtype` if given.

    Without `dtype` they take the place of the model's own tensors, so that there are not two of each.
    """
    with _lock, torch.inference_mode(False), torch.no_grad():
        known = _packed.setdefault(model, {})
        if dtype not in known:
            blocks = cast(UNet, model.diffusion_model).blocks
            layouts = [_layout(block, dtype) for block in blocks]
            buffers = host_buffers([size for _, size in layouts], device)
            for block, buffer, (places, _) in zip(blocks, buffers, layouts, strict=True):
                modules = list(block.modules())
                for place in places:
                    value, view = place.get(modules), place.view(buffer)
                    view.copy_(value)
                    if dtype is None:  # in a new parameter, since another thread may be reading the old one
                        own = nn.Parameter(view, requires_grad=False) if isinstance(value, nn.Parameter) else view
                        place.put(modules, own)
            known[dtype] = [(buffer, places) for buffer, (places, _) in zip(buffers, layouts, strict=True)]
        return known[dtype]


def _layout(module: nn.Module, dtype: torch.dtype | None = None) -> tuple[list[_Place], int]:
    """The places of a module's tensors, one after the other in a buffer, and its bytes."""
    places, end = [], 0
    for i, part in enumerate(module.modules()):
        for kind in ("_parameters", "_buffers"):
            for name, value in getattr(part, kind).items():
                if value is not None:
                    to = dtype if value.is_floating_point() else None
                    like = torch.empty_like(value, dtype=to, device="meta", requires_grad=False)
                    places.append(_Place(i, kind, name, like, end))
                    end += ceil(like.nbytes / _ALIGNED) * _ALIGNED
    return places, end


@dataclass
class _Slot:
    """Memory on the device: which block lies there, when its copy arrives, and when its latest user has left."""

    buffer: Tensor
    block: int | None = None
    arrived: Any = None  # events of CUDA
    left: Any = None


class Streamed:
    """A copy of a network whose blocks' weights are on the device where `load` has put them, and else None.

    For one thread. model: the copy; what lies outside of its blocks is always there. dtype: of the copy, if another.
    """

    def __init__(self, model: OpenAIWrapper, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self._packed, self._device = packed(model, device, dtype), device
        self.model = cast(OpenAIWrapper, copy_to(model, torch.device("meta"), dtype))
        blocks = cast(UNet, self.model.diffusion_model).blocks
        self._index: dict[nn.Module, int] = {block: i for i, block in enumerate(blocks)}
        self._modules = [list(block.modules()) for block in blocks]
        self._here: _Slot | None = None  # of the block that was loaded last
        self._copies = copy_stream(device)
        size = max(len(buffer) for buffer, _ in self._packed)
        with torch.inference_mode(False):
            self._slots = [_Slot(torch.empty(size, dtype=torch.uint8, device=device)) for _ in range(SLOTS)]
            for i in range(len(blocks)):
                self._clear(i)
            theirs, ours = list(model.modules()), list(self.model.modules())
            for place in _layout(self.model)[0]:  # what is left lies outside of the blocks
                place.put(ours, place.get(theirs).detach().to(device, place.like.dtype))
        for slot in self._slots:
            if self._copies is None:
                break
            slot.buffer.record_stream(self._copies)  # what frees it waits for copies
            slot.left = torch.cuda.current_stream(device).record_event()  # before, the memory may have been another's
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
        if slot.block is not None:
            self._clear(slot.block)
        (source, places), slot.block = self._packed[i], i
        target = slot.buffer[: len(source)]
        with torch.cuda.stream(self._copies):  # None: no other stream
            if self._copies and slot.left:
                self._copies.wait_event(slot.left)
            target.copy_(source, non_blocking=True)
            slot.arrived = self._copies.record_event() if self._copies else None
        for place in places:
            place.put(self._modules[i], place.view(slot.buffer))

    def _clear(self, i: int) -> None:
        for place in self._packed[i][1]:
            place.put(self._modules[i], None)


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream for copies beside the computing. None where there are no streams, and copies are waited for."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def stream(model: OpenAIWrapper, device: torch.device, dtype: torch.dtype | None = None) -> FastUNet:
    """A network whose weights come to the device block by block, in `dtype` if given. For one thread."""
    streamed = Streamed(model, device, dtype)
    return FastUNet(streamed.model, streamed.load)


def streamed_bytes(model: nn.Module) -> int | None:
    """Bytes of a streamed network's weights on the device at once. None for a network that has no blocks."""
    unet = getattr(model, "diffusion_model", None)
    if not isinstance(unet, UNet):
        return None
    sizes = [_layout(block)[1] for block in unet.blocks]
    return _layout(model)[1] - sum(sizes) + SLOTS * max(sizes)
