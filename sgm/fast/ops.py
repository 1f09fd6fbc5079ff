"""`for_device`: the operations of the fast paths for a device, as Triton kernels or in plain torch, chosen once.

The environment variable SGM_TRITON=0, read when a device is first used, selects plain torch. With TRITON_INTERPRET=1,
Triton's own variable, its interpreter runs the kernels on processors, for tests.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import MutableMapping
from contextlib import nullcontext, suppress
from functools import cache
from importlib import import_module

import torch
from torch import nn

from sgm.fast.moments import Measured, Moments
from sgm.fast.torch_ops import ProcessorOps, TorchOps
from sgm.layers.residual import TemporalConv

__all__ = ["Measured", "Moments", "Ops", "channels_last", "for_device"]
logger = logging.getLogger(__name__)
Ops = TorchOps  # the base class, whose signatures all share


def has_triton(device: torch.device) -> bool:
    """Whether this device's operations are Triton kernels."""
    return for_device(device).has_triton


def has_fp8(device: torch.device) -> bool:
    """Whether this device has float8 products: a Hopper card, with Triton."""
    return for_device(device).has_fp8


def compile_ahead(device: torch.device, dtype: torch.dtype) -> threading.Thread:
    """Start a thread of ahead-of-time compilation, for networks of SVD's size; to be joined before an evaluation.

    What fails there fails, and is told, at the first evaluation.
    """

    def work() -> None:
        with suppress(Exception):
            for_device(device).compile_ahead(device, dtype)

    thread = threading.Thread(target=work, name="compile ahead", daemon=True)
    thread.start()
    return thread


def for_clip(device: torch.device, fp8: bool, in_use: MutableMapping[torch.device, Ops]) -> Ops:
    """The operations for one clip on this device. fp8: with float8 products, if it has them.

    in_use: those of a network's clips with float8 products, which share the converted weights.
    """
    if not (fp8 and has_fp8(device)):
        return for_device(device)
    return in_use.get(device) or in_use.setdefault(device, import_module("sgm.fast.fp8_ops").Fp8Ops(device))


@cache
def for_device(device: torch.device) -> Ops:
    """The operations for tensors on this device: the same object at every call."""
    if (ops := _triton(device)) is not None:
        return ops
    if device.type == "cuda":
        return TorchOps()
    return ProcessorOps() if device.type == "cpu" else ProcessorOps(max_chunk=sys.maxsize)


def _triton(device: torch.device) -> Ops | None:
    """The operations as Triton kernels; None where Triton does not support this device or cannot be used."""
    on_processor = os.environ.get("TRITON_INTERPRET") == "1"
    if os.environ.get("SGM_TRITON") == "0" or device.type != ("cpu" if on_processor else "cuda"):
        return None
    if device.type == "cuda" and (torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0)):
        return None
    try:
        module = import_module("sgm.fast.triton_ops")  # imported here, since Triton's import is slow
    except ImportError:  # there is no Triton for Windows and macOS
        return None
    # One kernel is tried, since Triton needs things of the system that may be missing, such as a C compiler.
    x = torch.zeros(1, 1, 64, dtype=torch.float16, device=device)
    try:
        ops = module.TritonOps(device)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            ops.blend(x, x, 1.0, 1.0, None)
    except Exception as error:  # of any kind: plain torch computes the same
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("Triton cannot be used here (%s); plain torch takes its place.", reason)
        return None
    return ops


def channels_last(module: nn.Module) -> None:
    """Convert the weights of all convolutions to channels-last memory format, which the operations read, in place."""
    with torch.inference_mode(False):
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | TemporalConv) and not layer.weight.is_inference():
                form = torch.channels_last_3d if isinstance(layer, TemporalConv) else torch.channels_last
                layer.weight.data = layer.weight.detach().contiguous(memory_format=form)
