"""The operations of the fast paths by device: `for_device` chooses them once, by Triton's kernels or in plain torch.

The environment variable SGM_TRITON=0, read as a device is first used, keeps to plain torch. TRITON_INTERPRET=1 is
Triton's own: its interpreter then runs the kernels on processors, to try them.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from functools import cache
from importlib import import_module

import torch
from torch import nn

from sgm.fast.moments import Moments
from sgm.fast.torch_ops import ProcessorOps, TorchOps
from sgm.layers.residual import TemporalConv

__all__ = ["Moments", "Ops", "channels_last", "for_device"]
logger = logging.getLogger(__name__)
Ops = TorchOps  # the signatures, which all kinds share


@cache
def for_device(device: torch.device) -> Ops:
    """The operations for tensors on this device; chosen at the first call, the same object from then on."""
    if (ops := _triton(device)) is not None:
        return ops
    if device.type == "cuda":
        return TorchOps()
    return ProcessorOps() if device.type == "cpu" else ProcessorOps(max_chunk=sys.maxsize)


def _triton(device: torch.device) -> Ops | None:
    """The operations by Triton's kernels; None where Triton is not for this device or cannot be used."""
    on_processor = os.environ.get("TRITON_INTERPRET") == "1"
    if os.environ.get("SGM_TRITON") == "0" or device.type != ("cpu" if on_processor else "cuda"):
        return None
    if device.type == "cuda" and (torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0)):
        return None
    try:
        module = import_module("sgm.fast.triton_ops")  # only here, for Triton's import takes a while
    except ImportError:  # Triton is not made for Windows and macOS
        return None
    # One kernel is tried, for Triton may lack something of the system, a C compiler above all.
    x = torch.zeros(1, 1, 64, dtype=torch.float16, device=device)
    try:
        ops = module.TritonOps(device)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            ops.blend(x, x, 1.0, 1.0, None)
    except Exception as error:  # whatever it is, plain torch does the same
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("Triton cannot be used here (%s); plain torch takes its place.", reason)
        return None
    return ops


def channels_last(module: nn.Module) -> None:
    """Lay out the weights of the convolutions as the operations read them, channels-last, in place."""
    with torch.inference_mode(False):
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | TemporalConv) and not layer.weight.is_inference():
                form = torch.channels_last_3d if isinstance(layer, TemporalConv) else torch.channels_last
                layer.weight.data = layer.weight.detach().contiguous(memory_format=form)
