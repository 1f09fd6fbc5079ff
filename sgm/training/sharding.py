"""Strategies for several cards: each has all of the network and averages gradients (DDP), or a part of it (FSDP).

Of FSDP2 (Zhao et al. 2023, arXiv:2304.11277; in torch, `fully_shard`), each card holds a part of the weights,
gradients, averages and optimizer states. Checkpoints are those of a training on one card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from sgm.unet.unet import UNet


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Divide a UNet's parameters over the processes of a mesh, block by block, which gather them when they run."""
    assert isinstance(network, UNet)
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # others, as channels-last ones, cannot be divided
    for block in (*network.input_blocks, network.middle_block, *network.output_blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


_LARGE = 2**22  # values from which on a gradient is averaged by itself


def average(gradients: list[Tensor], group: Any) -> None:
    """Average tensors over a group's processes, in place: large ones each, small ones together. All must call it."""
    large: list[Tensor] = []
    small: list[Tensor] = []
    for g in gradients:  # a tensor that fills its memory is averaged as it lies there, channels-last or not
        whole_memory = g.numel() >= _LARGE and g.untyped_storage().nbytes() == g.nbytes
        (large if whole_memory else small).append(g)
    together = torch.cat([g.flatten() for g in small]) if small else torch.zeros(0)
    flat = [*(g.as_strided((g.numel(),), (1,)) for g in large), *([together] if small else [])]
    for work in [group.allreduce([g]) for g in flat]:
        work.wait()
    torch._foreach_div_(flat, group.size())  # pyright: ignore[reportPrivateImportUsage]
    for g, mean in zip(small, together.split([g.numel() for g in small]), strict=True):
        g.copy_(mean.view_as(g))


class Averaged(DDPStrategy):
    """Lightning's strategy for DDP, without torch's wrapper: `Task` averages gradients, once a step.

    The wrapper averages them while others are computed, in hooks of the backward pass, and so could not be replayed
    (see `GraphedNetwork`). Weights are the same on all cards from the start: they come from a file, or a seed.
    """

    def configure_ddp(self) -> None:
        pass


def whole(value: Any) -> Any:
    """Tensors, or what holds them, with those that are divided put together. All processes must call it."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


def gathered(value: Any) -> list[Any]:
    """A plain value of each process, in the order of their ranks. All processes must call it."""
    if not torch.distributed.is_initialized():
        return [value]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def divided(value: Tensor, like: Tensor) -> Tensor:
    """A tensor on the device of another and, if that is divided and of its shape, divided in the same way."""
    value = value.to(like.device)
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for `fully_shard`, with checkpoints in the form of every other strategy's."""

    def __init__(self, devices: int) -> None:
        super().__init__(devices, 1, save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return whole(optimizer.state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        saved = torch.load(Path(checkpoint_path), map_location="cpu", weights_only=True)
        module: Any = self.lightning_module
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in saved["state_dict"]:
                    parameter.copy_(divided(saved["state_dict"][name], parameter))
        for optimizer, states in zip(self.optimizers, saved["optimizer_states"], strict=True):
            parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
            for index, values in states["state"].items():
                for key, value in values.items():
                    if isinstance(value, Tensor) and value.ndim:
                        values[key] = divided(value, parameters[index])
            optimizer.load_state_dict(states)
        return saved
