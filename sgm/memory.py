"""Memory plans for GPUs: which weights are offloaded and how work is split, chosen before a job starts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from sgm.engine import DiffusionEngine
from sgm.fast.unet import MAX_VALUES
from sgm.versions import ALL_VERSIONS

GIB = 2**30
_RESERVE = 0.08  # share of the free memory that is left to the libraries' workspaces and to fragmentation
_WORKSPACE = {"network": GIB // 9, "autoencoder": GIB * 7 // 10}  # bytes at any size of clip, in half precision


@dataclass(frozen=True)
class Plan:
    """One memory plan. peak: predicted bytes of all tensors on the device at once.

    offload: conditioner, network and autoencoder are on the device only while they are used, else in the processor's
    memory. clip_by_clip and max_values: see `FastUNet.conditioned`.
    """

    title: str = "everything on the device"
    offload: bool = False
    clip_by_clip: bool = False
    max_values: int = MAX_VALUES
    peak: int = 0

    def __str__(self) -> str:
        return f"{self.title}, about {self.peak / GIB:.1f} GiB"


FASTEST = Plan()
SMALLEST = Plan("each part on the device only while it is used", True, True, MAX_VALUES // 4)


def choose(
    engine: DiffusionEngine, frames: int, height: int, width: int, guided: bool, free: int | None, low: bool = False
) -> Plan:
    """The fastest plan that fits into `free` bytes (None: no limit); if none fits, or with `low`, the smallest.

    height, width: of the clip, in pixels. guided: whether guidance doubles the batch.
    """
    fast, small = (predict(engine, frames, height, width, guided, plan) for plan in (FASTEST, SMALLEST))
    fits = free is None or fast.peak <= (1 - _RESERVE) * free
    return fast if fits and not low else small


def predict(engine: DiffusionEngine, frames: int, height: int, width: int, guided: bool, plan: Plan) -> Plan:
    """The plan with its predicted peak: weights, and activations while sampling or decoding, whichever is more.

    Activations follow from the version's bytes for each latent and for each pixel, measured in half precision (see
    benchmarks/README.md).
    """
    model, size = ALL_VERSIONS.get(engine.version, ALL_VERSIONS["svd"]), engine.dtype.itemsize / 2
    weights = {name: sum(value.nbytes for value in _values(part)) for name, part in engine.parts.items()}
    clips = 2 if guided and not plan.clip_by_clip else 1
    latents, pixels = clips * frames * height * width // engine.factor**2, frames * height * width
    sampling = round(size * (model.latent_bytes * latents + _WORKSPACE["network"]))
    decoding = round(size * (model.pixel_bytes * pixels + _WORKSPACE["autoencoder"]))
    if plan.offload:
        peak = max(weights["conditioner"], weights["network"] + sampling, weights["autoencoder"] + decoding)
    else:
        peak = sum(weights.values()) + max(sampling, decoding)
    return replace(plan, peak=peak)


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may use on the device, its present tensors included. None where it is not known."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)(device)
    return min(free + torch.cuda.memory_reserved(device), int(share * total))


def _values(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
