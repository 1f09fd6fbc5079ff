"""Thrift: ways to train in less memory and time that change no result but by rounding."""

from __future__ import annotations

import math
import os
import sys
from importlib import import_module

import torch
from torch import nn

from sgm.fast.ops import has_triton
from sgm.unet.unet import Block, UNet


def halve(model: nn.Module, precision: str) -> None:
    """Keep frozen kernels and matrices in the dtype to which autocast would convert them at each use.

    precision: Lightning's; without autocast ("32-true", "bf16-true") nothing is done. What is trained keeps float32.
    """
    kind, _, how = precision.partition("-")
    if how != "mixed":
        return
    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)


def park(*parts: nn.Module | None) -> None:
    """Move parameters that are not needed any more to the processor's memory."""
    for part in parts:
        for parameter in part.parameters() if part is not None else ():
            parameter.data = parameter.data.cpu()


def use_expandable_segments() -> None:
    """Turn on expandable segments of torch's CUDA allocator, which lose less memory between tensors (fragmentation).

    To be called before the device is used. What the user's environment says of the allocator stays.
    """
    if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def recompute(network: nn.Module, share: float) -> None:
    """Have a share of a UNet's blocks, those of the largest maps first, compute their activations anew in backward."""
    assert isinstance(network, UNet)
    down, up = list(network.input_blocks), list(network.output_blocks)[::-1]
    blocks = [block for pair in zip(down, up, strict=True) for block in pair] + [network.middle_block]
    for i, block in enumerate(blocks):
        assert isinstance(block, Block)
        block.use_checkpoint = i < math.ceil(share * len(blocks))


def fuse_layers(network: nn.Module, frames: int) -> None:
    """Have a UNet's layers take fewer passes over memory, on devices with Triton. See `sgm.training.fused`."""
    if has_triton(next(network.parameters()).device):
        import_module("sgm.training.fused").fuse(network, frames)
