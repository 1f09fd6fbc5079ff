"""Loading weights from files into modules: several formats, strict, without a second copy in memory."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgm.errors import UserError, printable
from sgm.formats.files import TensorFile, WeightsError, open_tensors
from sgm.formats.folder import LEFTOVERS, PARTS, weight_files
from sgm.formats.tensor_file import is_finite, reading
from sgm.kinds import listed, mismatch, unusable
from sgm.matching import Found, Shapes, Stored, find_tensors, part_of
from sgm.paths import contents, is_file, is_folder, user_path

__all__ = [
    "Weights",
    "WeightsError",
    "load_weights",
    "open_weights",
    "quick_hash",
    "stored_tensors",
    "to_channels_last",
]

logger = logging.getLogger(__name__)
OnProgress = Callable[[float], None]

_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt")
_LONGEST_NAME = 1000  # characters; official names have up to 100
_USUAL_NAMES = ("diffusion_pytorch_model.", "model.", "pytorch_model.")  # of the weights in a folder of diffusers


class Weights:
    """Open weights that fit a model, under the names of official checkpoints.

    tensors: name -> dtype, shape and read(). form: description of the format. base: the weights that supply what
    these lack, None for a whole model. notes: what was left out or taken off, for the user.
    """

    def __init__(self, path: Path, tensors: dict[str, Stored], close: Callable[[], None], form: str) -> None:
        self.path, self.tensors, self._close, self.form = path, tensors, close, form
        self.base: Path | None = None
        self.notes: list[str] = []

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._close()

    def tell_notes(self) -> None:
        """Log in one line what was left out or taken off."""
        if self.notes:
            logger.warning("%s", printable(f"{self.path.name}: {'; '.join(self.notes)}.", 1000))

    def cast(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        """The tensor on the device, in `dtype`. Raises WeightsError where it is not finite, or no plain tensor."""
        stored = self.tensors[name].read()
        if stored.layout is not torch.strided or stored.is_nested or stored.is_meta or stored.is_quantized:
            raise self._spoilt(name, "is no plain tensor, but sparse, nested, quantised or without values.")
        value = stored.to(device, dtype or stored.dtype)
        if not is_finite(value):
            if value.dtype == stored.dtype or not is_finite(stored):
                raise self._spoilt(name, "holds NaN or infinity. The weights are spoilt; get them again.")
            kind = str(value.dtype).removeprefix("torch.")
            raise self._spoilt(name, f"exceeds what {kind} can hold; use bfloat16 or float32.")
        return value

    def _spoilt(self, name: str, problem: str) -> WeightsError:
        return WeightsError(f"{self.path}: {printable(name)} {problem}")


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

    base: supplies the parts that the file lacks. Tensors go to the device one by one, in `dtype`; a file in float16
    never becomes a float32 model in between. on_progress(share) is called with the share that is loaded, 0 to 1.
    Returns the base if it was used, None if the weights are whole.
    Raises WeightsError, listing missing, unexpected and wrongly shaped tensors, before anything is loaded.
    """
    start = time.perf_counter()
    expected = shapes_of(module)
    with open_weights(path, expected, base) as weights:
        weights.tell_notes()
        done, total = 0, sum(map(math.prod, expected.values())) or 1
        for name in weights.tensors:
            _assign(module, name, _channels_last(weights.cast(name, dtype, device)))
            done += math.prod(expected[name])
            if on_progress is not None:
                on_progress(done / total)
    for name, buffer in module.named_buffers():
        if not buffer.is_meta:
            _assign(module, name, buffer.to(device))
    empty = [name for name, value in (*module.named_parameters(), *module.named_buffers()) if value.is_meta]
    if empty:
        raise WeightsError(f"{path} leaves {listed(empty)} without a value.")
    logger.info("Loaded %s (%s) in %.1f s.", path, weights.form, time.perf_counter() - start)
    return weights.base


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's tensors by name: what its weights must hold."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def open_weights(path: str | Path, expected: Shapes, base: str | Path | None = None, *, ema: bool = False) -> Weights:
    """Open a checkpoint file, a diffusers folder, or some of a model's parts with `base`, for the names `expected`.

    Reads headers only. The format is recognised by the content; see `sgm.matching` for what is tolerated. ema: take
    the moving averages of the network's weights in place of the weights.
    Raises WeightsError for what does not fit, saying what it is, or listing what is missing, unexpected and wrong.
    """
    path = user_path(path)
    stored, files = stored_tensors(path)

    def close() -> None:
        for file in files:
            file.close()

    try:
        with reading(path):
            found = find_tensors(stored, expected, ema)
            _check(path, found, expected)
        if ema and not found.averages:
            raise WeightsError(f"{path} holds no moving averages (model_ema.*): leave out --ema.")
        form = "diffusers folder" if any("/" in name for name in stored) else "checkpoint"
        weights = Weights(path, found.tensors, close, form)
        weights.notes = found.notes
        if found.absent:
            _lay_over(weights, found, expected, base)
        return weights
    except BaseException:
        close()
        raise


def stored_tensors(path: Path) -> tuple[dict[str, Stored], list[TensorFile]]:
    """The tensors of a file, or those of a diffusers folder as part/name, complete or not; and the files to be closed.

    A folder without parts stands for the weights that lie in it. Raises WeightsError for what cannot be read.
    """
    files: list[TensorFile] = []
    stored: dict[str, Stored] = {}
    try:
        for prefix, place in _places(path):
            file = open_tensors(place)
            files.append(file)
            for name, (dtype, shape) in file.layout.items():
                if len(name) > _LONGEST_NAME:
                    raise WeightsError(
                        f"{place} holds a tensor whose name has {len(name):,} characters ({printable(name, 60)}): it "
                        "is damaged, or no file of weights."
                    )
                stored[prefix + name] = Stored(dtype, shape, partial(file.read, name))
    except BaseException as error:
        for file in files:
            file.close()
        if isinstance(error, UserError) and not isinstance(error, WeightsError):
            raise WeightsError(error) from error
        raise
    return stored, files


def _places(path: Path) -> list[tuple[str, Path]]:
    """The files that hold the weights at a path, each with the prefix of its tensors' names."""
    if not is_folder(path):
        return [("", path)]
    parts = [part for part in PARTS if is_folder(path / part)]
    if parts:
        rest = [("", path / LEFTOVERS)] if is_file(path / LEFTOVERS) else []
        return [(f"{part}/", file) for part in parts for file in weight_files(path / part)] + rest
    content = contents(path)
    inside = [file for file in content if file.suffix in _SUFFIXES or ".index." in file.name]
    if any(file.name.startswith(_USUAL_NAMES) for file in inside):
        return [("", file) for file in weight_files(path)]
    if len(inside) == 1:
        return [("", inside[0])]
    if inside:
        raise WeightsError(f"{path} holds several files of weights ({listed(f.name for f in inside)}): give one.")
    raise WeightsError(
        f"{path} is a folder with {listed(f.name for f in content) or 'nothing'}, but no diffusers folder: that has "
        f"{', '.join(PARTS)}. Give a file of weights or such a folder."
    )


def _check(path: Path, found: Found, expected: Shapes) -> None:
    """Raise WeightsError unless the parts that were found are whole and fit."""
    dtypes = {name: tensor.dtype for name, tensor in found.stored.items()} | {
        name: tensor.dtype for name, tensor in found.tensors.items()
    }
    if problem := unusable(dtypes, found.tensors):
        raise WeightsError(f"{path} {problem}")
    missing = [name for name in found.missing if part_of(name) not in found.absent]
    wrong = [
        f"{name} {tensor.shape} instead of {expected[name]}"
        for name, tensor in found.tensors.items()
        if tensor.shape != expected[name]
    ]
    faults = (("missing", missing), ("unexpected", found.surplus + found.others), ("wrongly shaped", wrong))
    if missing or found.surplus or wrong or not found.tensors:
        said = "; ".join(f"{len(names)} {fault}: {listed(names)}" for fault, names in faults if names)
        if lacking := [part for part in PARTS if is_folder(path) and missing and not is_folder(path / part)]:
            said = f"It lacks {', '.join(lacking)}: a diffusers folder has {', '.join(PARTS)}. Get it whole. {said}"
        shapes = {name: tensor.shape for name, tensor in found.stored.items()}
        said = said or f"It holds {listed(shapes, 3) or 'nothing'}"
        raise WeightsError(f"{path} {mismatch(shapes, expected, said + '.')}")


def _lay_over(weights: Weights, found: Found, expected: Shapes, base: str | Path | None) -> None:
    """Supply the parts that weights lack from a base."""
    absent = " and the ".join(found.absent)
    alone = "holds the network alone" if len(found.absent) > 1 and "network" not in found.absent else "is not whole"
    if base is None:
        raise WeightsError(
            f"{weights.path} {alone}: the {absent} must come from a base, such as svd_xt's weights. Give it with "
            "--base."
        )
    try:
        below, close = open_weights(base, expected), weights._close
    except WeightsError as error:
        raise WeightsError(f"{weights.path} takes the {absent} from a base, which does not serve: {error}") from error
    tensors = {name: tensor for name, tensor in below.tensors.items() if part_of(name) in found.absent}
    weights.tensors, weights.base = {**weights.tensors, **tensors}, below.path
    weights.form += f" over {below.path}"
    weights._close = lambda: (close(), below.close())[0]


_BLOCKS, _BLOCK = 64, 1 << 16


def quick_hash(path: str | Path) -> dict[str, Any]:
    """Name and partial hash of weights, for recipes: {"name": ..., "sha256": ...}. A file of 10 GB takes milliseconds.

    The SHA-256 of each file's name and size, its first MiB (where the header is) and 64 blocks of 64 KiB, evenly spaced
    in the rest; for a folder, of all its weights in order of name.
    """
    path = user_path(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
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


def _assign(module: nn.Module, key: str, value: torch.Tensor) -> None:
    owner, _, name = key.rpartition(".")
    target = module.get_submodule(owner)
    if name in target._parameters:
        target._parameters[name] = nn.Parameter(value, requires_grad=False)
    else:
        target._buffers[name] = value
