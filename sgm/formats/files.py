"""Files of tensors: .safetensors and PyTorch's .ckpt, .pt and .bin, recognised by content, read tensor by tensor."""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgm.errors import UserError
from sgm.paths import replacing

Shape = tuple[int, ...]
Layout = Mapping[str, tuple[torch.dtype, Shape]]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LARGEST_HEADER = 32 << 20  # bytes; those of the official files have 0.3 MB
_LARGEST_PICKLE = 64 << 20  # bytes
_MAX_MAPPED = 32 << 20  # bytes of a memory-mapped file that may stay in memory


class WeightsError(UserError):
    """Weights that are missing, damaged, or not of this model."""


class TensorFile(ABC):
    """An open file. layout: name -> (dtype, shape); `read(name)`: a tensor on the CPU, not memory-mapped."""

    layout: dict[str, tuple[torch.dtype, Shape]]

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def read(self, name: str) -> Tensor: ...

    def close(self) -> None:  # noqa: B027
        """Close the file."""


def open_tensors(path: Path) -> TensorFile:
    """Open a file in the format of its content, whatever its suffix. Raises WeightsError for unreadable files."""
    try:
        if not path.is_file():
            raise WeightsError(f"There are no weights at {path}.")
        with path.open("rb") as file:
            start = file.read(64)
        if start.startswith(b"PK\x03\x04"):
            return PickledFile(path)
        _check_start(path, start)
        return SafetensorsFile(path)
    except OSError as error:
        raise _unreadable(path, error) from error


class SafetensorsFile(TensorFile):
    """A .safetensors file. Only the tensors take memory, while `safe_open` maps the whole file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.layout, self._offsets = _header(path)
        self._file = path.open("rb", buffering=0)

    def read(self, name: str) -> Tensor:
        dtype, shape = self.layout[name]
        data = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
        remaining = data.numpy().data
        try:
            self._file.seek(self._offsets[name])
            while remaining:
                count = self._file.readinto(remaining)
                if not count:
                    raise WeightsError(f"{self.path} ended while {name} was read: it has been cut short meanwhile.")
                remaining = remaining[count:]
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return data.view(dtype).view(shape)

    def close(self) -> None:
        self._file.close()


class PickledFile(TensorFile):
    """A file of torch.save. Only tensors and plain values are unpickled, and no code in it is run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        _check_zip(path)
        self._open()
        self.layout = {name: (value.dtype, tuple(value.shape)) for name, value in self._state.items()}

    def _open(self) -> None:
        self._mapped = 0
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise WeightsError(_unpickling_message(self.path, str(error))) from None
        except (RuntimeError, EOFError, KeyError, AttributeError, TypeError, ValueError) as error:
            raise WeightsError(
                f"{self.path} cannot be read as a PyTorch checkpoint ({_first_line(error)}); get the file again."
            ) from None
        state = content.get("state_dict", content) if isinstance(content, dict) else None
        if not isinstance(state, dict):
            raise WeightsError(f"{self.path} holds a {type(content).__name__}, but a checkpoint is a dict of tensors.")
        self._state = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
        if not self._state:
            keys = ", ".join(map(str, list(state)[:8])) or "nothing"
            raise WeightsError(f"{self.path} holds no tensors ({keys}), but a checkpoint is a dict of tensors.")

    def read(self, name: str) -> Tensor:
        dtype, shape = self.layout[name]
        value = self._state[name].detach().contiguous().clone()
        self._mapped += math.prod(shape) * dtype.itemsize
        if self._mapped > _MAX_MAPPED:  # pages of a memory map that were read stay in memory until it is closed
            self._state = {}
            self._open()
        return value

    def close(self) -> None:
        self._state = {}


def write_tensors(
    path: Path, layout: Layout, read: Callable[[str], Tensor], on_read: Callable[[int], None] = lambda size: None
) -> None:
    """Write a .safetensors file, one tensor in memory at a time; `on_read(size)` gets each one's size in bytes.

    The file appears under its name only when it is complete.
    """
    names = sorted(layout, key=lambda name: (-layout[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype, shape = layout[name]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            dtype, shape = layout[name]
            value = read(name)
            assert (value.dtype, tuple(value.shape)) == (dtype, tuple(shape)), name
            file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            on_read(value.numel() * dtype.itemsize)


def _header(path: Path) -> tuple[dict[str, tuple[torch.dtype, Shape]], dict[str, int]]:
    """Layout of a file and offsets of its tensors in bytes; every number of the header is checked against the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEADER:
            raise WeightsError(
                f"{path} says that its header has {length / 1e6:,.0f} MB; of known weights none exceeds 1 MB, and more "
                f"than {_LARGEST_HEADER >> 20} MB are not read. It is damaged or no .safetensors file."
            )
        if 8 + length > size:
            raise WeightsError(
                f"{path} is cut short: it has {size:,} bytes, its header alone {8 + length:,}. Get the file again."
            )
        text = file.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        raw = []
        for name, entry in entries.items():
            begin, stop = entry["data_offsets"]
            raw.append((begin, stop, name, str(entry["dtype"]), tuple(entry["shape"])))
        raw.sort()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path} cannot be read as safetensors ({_first_line(error)}); get the file again."
        ) from None
    layout, offsets, end = {}, {}, 0
    for begin, stop, name, kind, shape in raw:
        if kind not in _DTYPES:
            raise WeightsError(f"{path} holds {name} as {kind}; known are {', '.join(_DTYPES)}.")
        numbers = (*shape, begin, stop)
        valid = all(isinstance(number, int) and number >= 0 for number in numbers)
        expected = math.prod(shape) * _DTYPES[kind].itemsize if valid else -1
        if expected != stop - begin or begin != end:
            raise WeightsError(
                f"{path} contradicts itself: its header gives {name} the shape {list(shape)} in {kind} and the bytes "
                f"{begin} to {stop}, where {max(expected, 0):,} bytes from {end:,} on were expected. Get the file "
                "again."
            )
        layout[name], offsets[name], end = (_DTYPES[kind], shape), 8 + length + begin, stop
    if 8 + length + end != size:
        problem = "is cut short" if size < 8 + length + end else "has something behind its end"
        raise WeightsError(
            f"{path} {problem}: its header speaks of {8 + length + end:,} bytes, it has {size:,}. Get the file again."
        )
    return layout, offsets


def _check_start(path: Path, start: bytes) -> None:
    """Raise WeightsError for other kinds of files; the message names those that failed downloads leave."""
    text = start.lstrip().lower()
    problem = None
    if start[8:9] == b"{":
        return
    if not start:
        problem = "is empty"
    elif start.startswith(b"version https://git-lfs"):
        problem = "is a pointer that git-lfs left in place of the file (run `git lfs pull`)"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        problem = "is a web page: the download brought a notice rather than the file"
    elif start.startswith(b"\x80"):
        problem = "is a bare pickle, which can hold code and is not opened; weights come as .safetensors"
    elif len(start) > 8:
        problem = "cannot be read as safetensors, nor as a PyTorch checkpoint"
    raise WeightsError(f"{path} {problem or 'is cut short'}; get the file again.")


def _check_zip(path: Path) -> None:
    """Raise WeightsError for zip archives other than torch.save's, which never compresses (zip bombs do)."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{path} is a damaged or cut short zip archive ({error}); get the file again.") from None
    unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError(
            f"{path} is a compressed archive that would unpack from {size:,} to {unpacked:,} bytes. A PyTorch "
            "checkpoint is not compressed, so this is not one; it was not opened."
        )
    pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
    if not pickles:
        names = ", ".join(entry.filename for entry in entries[:4]) or "nothing"
        raise WeightsError(f"{path} is a zip archive of {names}, not a PyTorch checkpoint: give the weights' file.")
    if pickles[0].file_size > _LARGEST_PICKLE:
        raise WeightsError(
            f"{path} lists its tensors in {pickles[0].file_size / 1e6:,.0f} MB, where known weights need 1 MB; "
            "it was not opened."
        )


def _unpickling_message(path: Path, reason: str) -> str:
    match = re.search(r"(?:GLOBAL|function|class) ([\w.]+)", reason)
    problem = f"needs {match.group(1)} to be opened" if match else f"cannot be opened ({reason.splitlines()[0]})"
    return (
        f"{path} {problem}, which is more than tensors and plain values: it could run code, so nothing of it was. "
        "Get the weights as .safetensors."
    )


def _unreadable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(f"{path} cannot be read ({error.strerror or error}): check the disk and its permissions.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
