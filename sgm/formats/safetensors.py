""".safetensors files: tensors, and a header in JSON that lists them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from sgm.errors import printable, shown
from sgm.formats.tensor_file import LARGEST_HEADER, Layout, Shape, TensorFile, WeightsError, is_shape, reading
from sgm.paths import replacing

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PACKED = ("F4", "F6_E2M3", "F6_E3M2")  # several values in a byte


class SafetensorsFile(TensorFile):
    """A .safetensors file. Only the tensors take memory, while `safe_open` maps the whole file."""

    def __init__(self, path: Path, file: FileIO) -> None:
        super().__init__(path, file)
        with reading(path, " as safetensors"):
            self.layout, self._offsets, self.metadata = _header(path, file)

    def read(self, name: str) -> Tensor:
        dtype, shape = self.layout[name]
        return self._values(self._offsets[name], math.prod(shape), dtype).view(shape)


def _header(path: Path, file: FileIO) -> tuple[dict[str, tuple[torch.dtype, Shape]], dict[str, int], dict[str, str]]:
    """Layout of a file, offsets of its tensors in bytes, metadata; all numbers are checked against the file."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_HEADER:
        raise WeightsError(
            f"{path} says that its header has {length / 1e6:,.0f} MB; of known weights none exceeds 1 MB, and more "
            f"than {LARGEST_HEADER >> 20} MB are not read. It is damaged or no .safetensors file."
        )
    start = 8 + length
    if start > size:
        raise WeightsError(
            f"{path} is cut short: it has {size:,} bytes, its header alone {start:,}. Get the file again."
        )
    entries = json.loads(file.read(length).decode())  # as bytes they could be UTF-16, too
    said = entries.pop("__metadata__", None)
    metadata = {key: text for key, text in said.items() if isinstance(text, str)} if isinstance(said, dict) else {}
    raw = []
    for name, entry in entries.items():
        begin, stop = entry["data_offsets"]
        kind, shape = str(entry["dtype"]), entry["shape"]
        if kind in _PACKED:
            raise WeightsError(
                f"{path} holds {printable(name)} as {kind}: it is quantised, which is not supported. Take the weights "
                "in fp16, bf16 or fp32."
            )
        if kind not in _DTYPES:
            raise WeightsError(f"{path} holds {printable(name)} as {printable(kind)}; known are {', '.join(_DTYPES)}.")
        valid = is_shape(shape) and type(begin) is int and type(stop) is int and begin >= 0
        size_of = math.prod(shape) * _DTYPES[kind].itemsize if valid else -1
        if not valid or size_of != stop - begin:
            expected = f"{size_of:,} bytes" if valid else "lengths and places"
            raise WeightsError(
                f"{path} contradicts itself: its header gives {printable(name)} the shape {shown(shape)} in {kind} and "
                f"the bytes {shown(begin)} to {shown(stop)}, where {expected} were expected. Get the file again."
            )
        raw.append((begin, stop, name, _DTYPES[kind], tuple(shape)))
    layout, offsets, end = {}, {}, 0
    for begin, stop, name, dtype, shape in sorted(raw, key=lambda entry: entry[:2]):
        if begin != end:
            raise WeightsError(
                f"{path} contradicts itself: its header has the values of {printable(name)} begin at the byte "
                f"{shown(begin)}, where those before end at {end:,}. Get the file again."
            )
        layout[name], offsets[name], end = (dtype, shape), start + begin, stop
    if start + end != size:
        problem = "is cut short" if size < start + end else "has something behind its end"
        raise WeightsError(
            f"{path} {problem}: its header speaks of {shown(start + end)} bytes, it has {size:,}. Get the file again."
        )
    return layout, offsets, metadata


def write_tensors(
    path: Path,
    layout: Layout,
    read: Callable[[str], Tensor],
    on_read: Callable[[int], None] = lambda size: None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a .safetensors file, one tensor in memory at a time; `on_read(size)` gets each one's size in bytes.

    The file appears under its name only when it is complete.
    """
    names = sorted(layout, key=lambda name: (-layout[name][0].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
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
