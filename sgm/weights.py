"""Loading weights from files into modules: several formats, strict, without a second copy in memory."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgm.formats.diffusers import FIRST_STAGE, UNET, folder_counterparts, unet_counterparts
from sgm.formats.files import Layout, TensorFile, WeightsError, open_tensors
from sgm.formats.folder import Folder

__all__ = [
    "Weights",
    "WeightsError",
    "load_weights",
    "open_weights",
    "quick_hash",
    "to_channels_last",
]

logger = logging.getLogger(__name__)
OnProgress = Callable[[float], None]
Shapes = Mapping[str, tuple[int, ...]]

_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt")
_FORMATS = (
    "known are a whole checkpoint (model.diffusion_model.*, conditioner.*, first_stage_model.*), a diffusers folder, "
    "and a network alone to be laid over a base"
)
# Weights of other kinds, given by mistake: parts of their tensors' names, and their description for the message.
_OTHER_KINDS = (
    (
        ("lora_", ".lora.", "lora.", ".alpha", "hada_"),
        "a LoRA, which changes a model and is none; LoRAs are not supported",
    ),
    (("motion_modules.",), "a motion module for another kind of model (AnimateDiff)"),
    (
        ("vision_model.", "visual_projection."),
        "an image encoder alone; give the whole checkpoint or the diffusers folder",
    ),
    (("text_model.", "cond_stage_model.", "transformer.text_model."), "a model that is told what to draw by text"),
    (
        ("decoder.", "encoder.", "first_stage_model."),
        "an autoencoder alone; give the whole checkpoint or diffusers folder",
    ),
)


class Weights:
    """Open weights, with the names of official checkpoints. layout: name -> (dtype, shape); `read(name)`: the tensor.

    form: description of the format. base: the weights that supply what a network alone lacks, None for a whole model.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        read: Callable[[str], Tensor],
        close: Callable[[], None],
        form: str,
        base: Path | None = None,
    ) -> None:
        self.path, self.layout, self.read, self.close, self.form = path, dict(layout), read, close, form
        self.base = base

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def check(self, expected: Shapes) -> None:
        """Raise WeightsError, listing tensors that are missing, unexpected or of the wrong shape."""
        shapes = {name: shape for name, (_, shape) in self.layout.items()}
        missing = [name for name in expected if name not in shapes]
        unexpected = [name for name in shapes if name not in expected]
        wrong = [
            f"{n} {shapes[n]} instead of {expected[n]}" for n in expected if shapes.get(n, expected[n]) != expected[n]
        ]
        faults = [
            f"{len(names)} {fault}: {_shortened(names)}"
            for fault, names in (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", wrong))
            if names
        ]
        if faults:
            raise WeightsError(f"{self.path} does not fit this model. " + "; ".join(faults) + ".")

    def cast(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        """The tensor on the device, floats in `dtype`. Raises WeightsError where it is not finite."""
        stored = self.read(name)
        value = stored.to(device, dtype if dtype and stored.is_floating_point() else stored.dtype)
        if not _finite(value):
            if value.dtype == stored.dtype or not _finite(stored):
                raise WeightsError(
                    f"{self.path}: {name} holds NaN or infinity. The weights are spoilt; get them again."
                )
            raise WeightsError(
                f"{self.path}: {name} exceeds what {_dtype_name(value.dtype)} can hold; use bfloat16 or float32."
            )
        return value


def load_weights(
    module: nn.Module,
    path: str | Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    base: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Path | None:
    """Fill a module that was built on the `meta` device from a checkpoint file or a diffusers folder.

    base: supplies the other tensors where the file holds the network alone. Tensors go to the device one by one, in
    `dtype`; a file in float16 never becomes a float32 model in between. on_progress(share) is called with the share
    that is loaded, 0 to 1. Returns the base if it was used, None if the weights are whole.
    Raises WeightsError, listing missing, unexpected and wrongly shaped tensors, before anything is loaded.
    """
    start = time.perf_counter()
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    with open_weights(path, expected, base) as weights:
        weights.check(expected)
        done, total = 0, sum(map(math.prod, expected.values())) or 1
        for name in weights.layout:
            _assign(module, name, _channels_last(weights.cast(name, dtype, device)))
            done += math.prod(expected[name])
            if on_progress is not None:
                on_progress(done / total)
    for name, buffer in module.named_buffers():
        if not buffer.is_meta:
            _assign(module, name, buffer.to(device))
    empty = [name for name, value in (*module.named_parameters(), *module.named_buffers()) if value.is_meta]
    if empty:
        raise WeightsError(f"{path} leaves {_shortened(empty)} without a value.")
    logger.info("Loaded %s (%s) in %.1f s.", path, weights.form, time.perf_counter() - start)
    return weights.base


def open_weights(path: str | Path, expected: Shapes, base: str | Path | None = None) -> Weights:
    """Open a checkpoint file, a diffusers folder, or a file of the network alone with `base`, for the names `expected`.

    The format is recognised by the content. Raises WeightsError for other content, saying what it is.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(Folder(path), expected)
    file = open_tensors(path)
    try:
        form = _recognised(file, expected)
        if form == "checkpoint":
            return Weights(path, file.layout, file.read, file.close, form)
        if base is None:
            raise WeightsError(
                f"{path} holds the network alone: the image encoder and the autoencoder must come from a base, such as "
                "svd_xt's weights. Give it with --base."
            )
        return _overlay(file, form, expected, open_weights(base, expected))
    except BaseException:
        file.close()
        raise


def _recognised(file: TensorFile, expected: Shapes) -> str:
    """The format of a file: "checkpoint", "network", "bare network" (without prefix) or "diffusers network"."""
    names = list(file.layout)
    network = sum(name.startswith(UNET) for name in names) == len(names)
    if names and network and any(not name.startswith(UNET) for name in expected):
        return "network"
    if any(name in expected for name in names):
        return "checkpoint"
    bare = {name.removeprefix(UNET) for name in expected if name.startswith(UNET)}
    if any(name in bare for name in names):
        return "bare network"
    theirs = {counterpart.names[0] for counterpart in unet_counterparts(bare).values()} if bare else set()
    if any(name in theirs for name in names):
        return "diffusers network"
    kind = next((kind for marks, kind in _OTHER_KINDS if any(mark in name for name in names for mark in marks)), None)
    if kind:
        raise WeightsError(f"{file.path} is {kind} (it holds {_shortened(names, 3)}).")
    raise WeightsError(f"{file.path} is of no known format. It holds {_shortened(names, 5) or 'nothing'}; {_FORMATS}.")


def _overlay(file: TensorFile, form: str, expected: Shapes, base: Weights) -> Weights:
    """The weights of `base`, the network replaced by that in `file`."""
    if form == "diffusers network":
        bare = [name.removeprefix(UNET) for name in expected if name.startswith(UNET)]
        names = {counterpart.names[0]: UNET + name for name, counterpart in unet_counterparts(bare).items()}
    else:
        names = {name: UNET + name.removeprefix(UNET) for name in file.layout}
    over = {names.get(name, f"unet/{name}"): name for name in file.layout}
    layout = {name: entry for name, entry in base.layout.items() if not name.startswith(UNET)}
    layout |= {name: file.layout[theirs] for name, theirs in over.items()}

    def close() -> None:
        file.close()
        base.close()

    def read(name: str) -> Tensor:
        return file.read(over[name]) if name in over else base.read(name)

    return Weights(file.path, layout, read, close, f"{form} over {base.path}", base.path)


def _open_folder(folder: Folder, expected: Shapes) -> Weights:
    """A diffusers folder with our names; tensors without one are called part/name.

    Folders other than those of `sgm convert` lack tensors that inference does not use: they become zeros. The first
    stage's encoder is read from the conditioner's, which is the same.
    """
    counterparts, unmapped = folder_counterparts(expected)
    rest = folder.rest.layout if folder.rest else {}
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    used: set[tuple[str, str]] = set()
    for name, (part, counterpart) in counterparts.items():
        files = folder.parts[part]
        if all(theirs in files for theirs in counterpart.names):
            entries = [files[theirs].layout[theirs] for theirs in counterpart.names]
            layout[name] = entries[0][0], counterpart.shape([shape for _, shape in entries])
            used |= {(part, theirs) for theirs in counterpart.names}
    for part, files in folder.parts.items():
        for theirs, file in files.items():
            if (part, theirs) not in used and not theirs.endswith("position_ids"):
                layout[f"{part}/{theirs}"] = file.layout[theirs]
    dtype = next(iter(layout.values()))[0]
    for name, substitute in unmapped.items():
        layout[name] = rest[name] if name in rest else layout.get(substitute or "", (dtype, expected[name]))

    def read(name: str) -> Tensor:
        if name in counterparts:
            part, counterpart = counterparts[name]
            return counterpart.ours([folder.parts[part][theirs].read(theirs) for theirs in counterpart.names])
        if name in rest and folder.rest:
            return folder.rest.read(name)
        substitute = unmapped[name]
        if substitute is None:
            return torch.zeros((), dtype=layout[name][0]).expand(layout[name][1])
        value = read(substitute)
        quant = substitute.partition("encoder.conv_out.")[0] + "quant_conv.weight"
        if "encoder.conv_out." in substitute and quant in layout and f"{FIRST_STAGE}quant_conv.weight" not in expected:
            return _with_conv_folded_in(value, read(quant), read(quant.replace("weight", "bias")))
        return value

    return Weights(folder.path, layout, read, folder.close, "diffusers folder")


def _with_conv_folded_in(value: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """A convolution's kernel (o, i, h, w) or bias (o,), with the 1x1 convolution that follows folded in."""
    mixed = torch.einsum("po,o...->p...", kernel[:, :, 0, 0].double(), value.double())
    return (mixed if value.ndim == 4 else mixed + bias.double()).to(value.dtype)


_BLOCKS, _BLOCK = 64, 1 << 16


def quick_hash(path: str | Path) -> dict[str, Any]:
    """Name and partial hash of weights, for recipes: {"name": ..., "sha256": ...}. A file of 10 GB takes milliseconds.

    The SHA-256 of each file's name and size, its first MiB (where the header is) and 64 blocks of 64 KiB, evenly spaced
    in the rest; for a folder, of all its weights in order of name.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        digest.update(f"{name}:{size}".encode())
        with file.open("rb") as content:
            digest.update(content.read(1 << 20))
            for i in range(_BLOCKS):
                content.seek(max(size - _BLOCK, 0) * (i + 1) // _BLOCKS)
                digest.update(content.read(_BLOCK))
    return {"name": path.name, "sha256": digest.hexdigest()}


def to_channels_last(module: nn.Module) -> None:
    """Convert the kernels of all convolutions to channels-last memory format, as the activations have."""
    for parameter in module.parameters():
        parameter.data = _channels_last(parameter.data)


def _channels_last(value: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return value.contiguous(memory_format=formats[value.ndim]) if value.ndim in formats else value


def _finite(value: Tensor) -> bool:
    if not value.is_floating_point() or not value.numel():
        return True
    if value.dtype.itemsize == 1:  # float8, for which torch has no order
        value = value.float()
    low, high = value.aminmax()  # NaN if any value is; many times as fast as `isfinite` of each value
    return bool(low.isfinite() & high.isfinite())


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shortened(names: Iterable[str], count: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _assign(module: nn.Module, key: str, value: torch.Tensor) -> None:
    owner, _, name = key.rpartition(".")
    target = module.get_submodule(owner)
    if name in target._parameters:
        target._parameters[name] = nn.Parameter(value, requires_grad=False)
    else:
        target._buffers[name] = value
