"""Weights from files into modules: strict, and without a second copy in memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from sgm.errors import UserError


class WeightsError(UserError):
    """A checkpoint that is missing, damaged, or not of this model."""


def load_weights(module: nn.Module, path: str | Path, device: torch.device, dtype: torch.dtype) -> None:
    """Fill a module that was built on `meta` from a .safetensors file.

    Tensor by tensor to the device in the dtype asked for; a file in float16 never becomes a float32 model in between.
    Raises WeightsError that lists missing, unexpected and wrongly shaped keys; then nothing has been loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"There are no weights at {path}.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            _check(module, shapes, path)
            for key in shapes:
                _assign(module, key, file.get_tensor(key).to(device, dtype))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors ({error}); get the file again.") from None
    for name, buffer in module.named_buffers():
        if not buffer.is_meta:
            _assign(module, name, buffer.to(device))
    rest = [name for name, value in (*module.named_parameters(), *module.named_buffers()) if value.is_meta]
    if rest:
        raise WeightsError(f"{path} leaves {_some(rest)} without a value.")
    to_channels_last(module)


def to_channels_last(module: nn.Module) -> None:
    """Lay the kernels of all two-dimensional convolutions out as the networks' activations are."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _check(module: nn.Module, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing = [key for key in wanted if key not in shapes]
    unexpected = [key for key in shapes if key not in wanted]
    wrong = [
        f"{key} {shapes[key]} instead of {wanted[key]}" for key in wanted if shapes.get(key, wanted[key]) != wanted[key]
    ]
    faults = [
        f"{len(keys)} {what}: {_some(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", wrong))
        if keys
    ]
    if faults:
        raise WeightsError(f"{path} does not fit this model. " + "; ".join(faults) + ".")


def _some(names: Iterable[str], count: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _assign(module: nn.Module, key: str, value: torch.Tensor) -> None:
    owner, _, name = key.rpartition(".")
    target = module.get_submodule(owner)
    if name in target._parameters:
        target._parameters[name] = nn.Parameter(value, requires_grad=False)
    else:
        target._buffers[name] = value
