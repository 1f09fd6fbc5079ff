"""Memory plans for GPUs: which weights are offloaded and how work is split, chosen before a job starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from sgm.devices import GIB, RESERVE
from sgm.engine import DiffusionEngine
from sgm.fast.unet import MAX_VALUES
from sgm.streaming import streamed_bytes
from sgm.versions import ALL_VERSIONS

_WORKSPACE = {"network": GIB // 9, "autoencoder": GIB * 7 // 10}  # bytes at any size of clip, in half precision
_STAGED = GIB // 4  # bytes of a chunk whose clip is held outside, on its way in and out, in half precision


@dataclass(frozen=True)
class Plan:
    """One memory plan. peak: predicted bytes of all tensors on the device at once.

    offload: conditioner, network and autoencoder are on the device only while they are used, else in the processor's
    memory. clip_by_clip and max_values: see `FastUNet.conditioned`. streamed: so are the blocks of the network (see
    `sgm.streaming`). max_held: see `sgm.fast.decoder.decode`.
    """

    title: str = "everything on the device"
    offload: bool = False
    clip_by_clip: bool = False
    max_values: int = MAX_VALUES
    streamed: bool = False
    max_held: int | None = None
    peak: int = 0

    def __str__(self) -> str:
        return f"{self.title}, about {self.peak / GIB:.1f} GiB"


FASTEST = Plan()
OFFLOAD = Plan("each part on the device only while it is used", True, True, MAX_VALUES // 4)
STREAMED = Plan(
    "each block of the network on the device only while it is used", True, True, MAX_VALUES // 4, True, 2**30
)


def choose(
    engine: DiffusionEngine,
    frames: int,
    height: int,
    width: int,
    guided: bool,
    free: int | None,
    low: bool = False,
    added: int = 0,
    fp8: bool = False,
) -> Plan:
    """The first of `plans` that fits into `free` bytes (None: no limit), with `low` not the fastest; else the smallest.

    height, width: of the clip, in pixels. guided: whether guidance doubles the batch. added: bytes of weights that
    would be there beside the engine's. fp8: whether the network's products are in float8.
    """
    fast, *others = plans(engine, frames, height, width, guided, fp8)
    if not low and (free is None or fast.peak + added <= (1 - RESERVE) * free):
        return fast
    return next((plan for plan in others if free is None or plan.peak <= free), others[-1])


def plans(engine: DiffusionEngine, frames: int, height: int, width: int, guided: bool, fp8: bool = False) -> list[Plan]:
    """The plans for a clip with their predicted peaks: the fastest first, each smaller than the one before."""
    fast, offload = (predict(engine, frames, height, width, guided, plan, fp8) for plan in (FASTEST, OFFLOAD))
    if _weights(engine).streamed is None:
        return [fast, offload]
    streamed = predict(engine, frames, height, width, guided, STREAMED)
    return [fast, offload, *([streamed] if streamed.peak < offload.peak else [])]


def predict(
    engine: DiffusionEngine, frames: int, height: int, width: int, guided: bool, plan: Plan, fp8: bool = False
) -> Plan:
    """The plan with its predicted peak: weights, and activations while sampling or decoding, whichever is more.

    Activations follow from the version's bytes for each latent and for each pixel, measured in half precision (see
    benchmarks/README.md).
    """
    model, size = ALL_VERSIONS.get(engine.version, ALL_VERSIONS["svd"]), engine.dtype.itemsize / 2
    weights = dict(_weights(engine).parts)
    if plan.streamed:
        weights["network"] = _weights(engine).streamed or weights["network"]
    clips = 2 if guided and not plan.clip_by_clip else 1
    latents, pixels = clips * frames * height * width // engine.factor**2, frames * height * width
    sampling = round(size * (model.latent_bytes * latents + _WORKSPACE["network"]))
    if fp8 and not plan.streamed:
        sampling += weights["network"] // engine.dtype.itemsize  # most of the weights once more, in 8 bits
    held = model.pixel_bytes * pixels
    if plan.max_held is not None and held > 2 * plan.max_held:
        held = 2 * plan.max_held + _STAGED
    decoding = round(size * (held + _WORKSPACE["autoencoder"]))
    if plan.offload:
        peak = max(weights["conditioner"], weights["network"] + sampling, weights["autoencoder"] + decoding)
    else:
        peak = sum(weights.values()) + max(sampling, decoding)
    return replace(plan, peak=peak)


class _Weights(NamedTuple):
    """Bytes of an engine's weights. parts: by name. streamed: see `streamed_bytes`."""

    parts: dict[str, int]
    streamed: int | None


_known: WeakKeyDictionary[DiffusionEngine, _Weights] = WeakKeyDictionary()


def _weights(engine: DiffusionEngine) -> _Weights:
    """The bytes of an engine's weights, added up once: they stay what they are, wherever they lie."""
    if engine not in _known:
        parts = {name: sum(value.nbytes for value in _values(part)) for name, part in engine.parts.items()}
        _known[engine] = _Weights(parts, streamed_bytes(engine.model))
    return _known[engine]


def _values(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
