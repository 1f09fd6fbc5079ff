"""What of a model is on the device when: chosen from the free memory, by a prediction of what each way needs."""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sgm.engine import DiffusionEngine
from sgm.fast.network import FastNetwork
from sgm.fast.ops import channels_last
from sgm.fast.unet import WIDE, lay_out
from sgm.unet.video_unet import VideoUNet

GIB = 2**30
_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default)
_RESERVE = 0.08  # share of the memory that is left to the libraries' workspaces and to fragmentation


@dataclass(frozen=True)
class Plan:
    """One way to spend memory. peak: bytes of tensors on the device at once, as predicted.

    by_turns: the image encoders, the network and the autoencoder are on the device only while they are used. in_turn:
    guidance's two clips go through the network one after the other. wide: see `FastNetwork`.
    """

    what: str
    by_turns: bool = False
    in_turn: bool = False
    wide: int = WIDE
    peak: int = 0

    def __str__(self) -> str:
        return f"{self.what}, about {self.peak / GIB:.1f} GiB"

    def apply(self, engine: DiffusionEngine, part: str) -> None:
        """Have on the device what `part` of the engine needs."""
        engine.network.in_turn, engine.network.wide = self.in_turn, self.wide
        engine.bring(*[part] * self.by_turns)


# From the fastest to the smallest.
LADDER = (
    Plan("everything on the device"),
    Plan("each part on the device only while it is used", by_turns=True, in_turn=True, wide=WIDE // 4),
)


def choose(
    engine: DiffusionEngine, frames: int, height: int, width: int, guided: bool, room: int | None, low: bool = False
) -> Plan:
    """The fastest plan that fits into `room` bytes (None: any does), else or if `low` the smallest.

    For a clip of height and width in pixels; guided: whether guidance doubles the batch.
    """
    latent = (frames, engine.latent_channels, height // engine.factor, width // engine.factor)
    for plan in LADDER[-1:] if low else LADDER:
        found = predict(engine, latent, plan, 2 if guided else 1)
        if room is None or found.peak <= (1 - _RESERVE) * room:
            break
    return found


def predict(engine: DiffusionEngine, latent: tuple[int, ...], plan: Plan, clips: int) -> Plan:
    """The plan with its peak. latent: (frames, channels, h, w); clips: 2 with guidance, else 1."""
    key = (latent, plan, clips, engine.dtype)
    if key not in engine.predicted:
        weights = {name: sum(value.nbytes for value in _values(part)) for name, part in engine.parts.items()}
        sampling, decoding = _sampling(engine, latent, plan, clips), _decoding(engine, latent)
        if plan.by_turns:
            peak = max(weights["conditioner"], weights["network"] + sampling, weights["autoencoder"] + decoding)
        else:
            peak = sum(weights.values()) + max(sampling, decoding)
        engine.predicted[key] = replace(plan, peak=peak)
    return engine.predicted[key]


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may yet fill on the device, what it holds already included. None: not known."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)(device)
    return min(free + torch.cuda.memory_reserved(device), int(share * total))


def _values(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _hollow(module: Any) -> Any:
    """A copy on the `meta` device; single numbers, such as blends' shares, stay numbers."""
    memo: dict[int, Any] = {}
    for value in _values(module):
        other = value.detach().cpu() if value.numel() == 1 else torch.empty_like(value, device="meta")
        memo[id(value)] = nn.Parameter(other, requires_grad=False) if isinstance(value, nn.Parameter) else other
    return copy.deepcopy(module, memo)


def _sampling(engine: DiffusionEngine, latent: tuple[int, ...], plan: Plan, clips: int) -> int:
    """Bytes at most at once in a step, beside the weights."""
    network = FastNetwork(_hollow(engine.model))
    network.in_turn, network.wide = plan.in_turn, plan.wide
    unet, n = cast(VideoUNet, network.model.diffusion_model), clips * latent[0]

    lay_out(unet)  # which for a moment takes a weight's memory, no more

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    with torch.inference_mode(), _Live() as live:
        x = empty(n, *latent[1:])
        c = {
            "concat": empty(n, unet.in_channels - latent[1], *latent[2:]),
            "crossattn": empty(n, 1, unet.context_dim or 0),
        }
        if unet.vector_channels:
            c["vector"] = empty(n, unet.vector_channels)
        network(x, empty(n), c, num_video_frames=latent[0])
    return live.peak


def _decoding(engine: DiffusionEngine, latent: tuple[int, ...]) -> int:
    hollow = copy.copy(engine)
    hollow._modules = {**engine._modules, "first_stage_model": _hollow(engine.first_stage_model)}
    channels_last(hollow.first_stage_model.decoder)
    with torch.inference_mode(), _Live() as live:
        DiffusionEngine.decode_clip(hollow, torch.empty(latent, device="meta"))
    return live.peak


class _Live(TorchDispatchMode):
    """Counts the bytes of the `meta` tensors that are made under it and alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.made: set[int] = set()
        self.given: set[int] = set()  # weights, of which views are no memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.given |= {storage._cdata for storage in _storages((args, kwargs))} - self.made
        result = func(*args, **(kwargs or {}))
        if func in _CONVOLUTIONS:  # elsewhere they keep their inputs' layout
            result = torch.empty_like(result, memory_format=torch.channels_last)
        for storage in _storages(result):
            if storage._cdata not in self.made and storage._cdata not in self.given:
                self.made.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def free(self, key: int, size: int) -> None:
        self.made.discard(key)
        self.now -= size


def _storages(values: Any) -> list[Any]:
    return [v.untyped_storage() for v in tree_leaves(values) if isinstance(v, Tensor) and v.is_meta]
