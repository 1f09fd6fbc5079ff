"""Checkpoints of torch.save (.ckpt, .pt, .bin): a zip archive of a pickle, which names tensors, and of their values."""

from __future__ import annotations

import logging
import math
import os
import zipfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from torch import Tensor

from sgm.errors import printable
from sgm.formats.pickles import CodeError, Other, Stored, Unusual, unpickle
from sgm.formats.tensor_file import LARGEST_HEADER, TensorFile, WeightsError, reading

logger = logging.getLogger(__name__)

_LARGEST_PICKLE = 64 << 20  # bytes
_LARGEST_GAPS = 1 << 30  # bytes between a tensor's values that are read with them
_USUAL_KEYS = ("state_dict", "model_state_dict", "model", "module")
_DEEPEST = 4  # dicts inside dicts in which tensors are looked for


class CheckpointFile(TensorFile):
    """A file of torch.save. No code in it is run, and only the tensors that are read take memory.

    The tensors are those of its dict `state_dict`, or else of the dict that holds the most of them.
    """

    def __init__(self, path: Path, file: FileIO) -> None:
        super().__init__(path, file)
        with reading(path, " as a PyTorch checkpoint"):
            archive = _Archive(path, file)
            data = archive.content("data.pkl", _LARGEST_PICKLE)
            try:
                content = unpickle(data, lambda key: archive.place(f"data/{key}"))
            except CodeError as error:
                raise WeightsError(
                    f"{path} needs {printable(error)} to be opened, which is more than tensors and plain values: it "
                    "could run code, so nothing of it was. Get the weights as .safetensors."
                ) from None
            self._byte_order = archive.content("byteorder", 16).decode() if "byteorder" in archive else "little"
            if self._byte_order not in ("little", "big"):
                raise ValueError("its byte order is unknown")
            self._stored = _state(path, content)
        self.layout = {name: (value.dtype, value.shape) for name, value in self._stored.items()}

    def read(self, name: str) -> Tensor:
        stored = self._stored[name]
        size = math.prod(stored.shape)
        if (stored.span - size) * stored.dtype.itemsize > _LARGEST_GAPS:
            raise WeightsError(f"{self.path} holds {printable(name)} scattered over {stored.span:,} values.")
        values = self._values(stored.start, stored.span, stored.dtype, self._byte_order)
        return values.as_strided(stored.shape, stored.stride).contiguous()


class _Archive:
    """The entries of a zip archive, found and checked against its size. Raises WeightsError for other zip archives.

    torch.save never compresses; zip bombs do.
    """

    def __init__(self, path: Path, file: FileIO) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(_Bounded(file)) as archive:  # type: ignore[arg-type]
                entries = archive.infolist()
        except Exception as error:
            reason = printable(error)
            raise WeightsError(
                f"{path} is a damaged or cut short zip archive ({reason}); get the file again."
            ) from error
        root = entries[0].filename.partition("/")[0] if entries else ""
        self._entries = {entry.filename.removeprefix(f"{root}/"): entry for entry in entries}
        if "constants.pkl" in self or any(name.startswith("code/") for name in self._entries):
            raise WeightsError(
                f"{path} is a TorchScript archive, which holds a program; it was not opened. Get the weights as "
                ".safetensors, or as torch.save(model.state_dict(), ...) writes them."
            )
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > self._size or any(
            entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries
        ):
            raise WeightsError(
                f"{path} is a compressed archive that would unpack from {self._size:,} to {unpacked:,} bytes. A "
                "PyTorch checkpoint is not compressed, so this is not one; it was not opened."
            )
        if "data.pkl" not in self:
            names = ", ".join(printable(entry.filename, 80) for entry in entries[:4]) or "nothing"
            raise WeightsError(f"{path} is a zip archive of {names}, not a PyTorch checkpoint: give the weights' file.")
        if (size := self._entries["data.pkl"].file_size) > _LARGEST_PICKLE:
            raise WeightsError(
                f"{path} lists its tensors in {size / 1e6:,.0f} MB, where known weights need 1 MB; it was not opened."
            )

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def place(self, name: str) -> tuple[int, int]:
        """First byte and size of an entry's content."""
        if name not in self:
            raise ValueError(f"its entry {printable(name)} is missing")
        entry = self._entries[name]
        self._file.seek(entry.header_offset)
        header = self._file.read(30)
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = entry.header_offset + 30 + lengths
        if header[:4] != b"PK\x03\x04" or start + entry.file_size > self._size:
            raise ValueError(f"its entry {printable(name)} lies elsewhere than its list says")
        return start, entry.file_size

    def content(self, name: str, limit: int) -> bytes:
        """The content of an entry of at most `limit` bytes."""
        start, size = self.place(name)
        self._file.seek(start)
        return self._file.read(min(size, limit))


class _Bounded:
    """A file for zipfile, which reads an archive's list of entries at once, however long that says to be."""

    def __init__(self, file: FileIO) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size > LARGEST_HEADER:
            raise ValueError(f"a list of entries of {size / 1e6:,.0f} MB")
        return self._file.read(size)


def _state(path: Path, content: Any) -> dict[str, Stored]:
    """The tensors by name, out of the dict that holds them."""
    if not isinstance(content, dict) or (isinstance(content, Other) and not content):
        kind = getattr(content, "kind", type(content).__name__)
        raise WeightsError(
            f"{path} holds a {printable(kind)}, but a checkpoint is a dict of tensors, as "
            "torch.save(model.state_dict(), ...) writes it."
        )
    key, state = _fullest(content)
    if isinstance(inner := content.get("state_dict"), dict) and (first := _fullest(inner))[1]:
        key, state = first
    if not state:
        keys = ", ".join(printable(key, 40) for key in list(content)[:8]) or "nothing"
        raise WeightsError(f"{path} holds no tensors ({keys}), but a checkpoint is a dict of tensors.")
    if key:
        logger.info("%s: its dict %s holds the tensors.", path, printable(key))
    stored = {name: value for name, value in state.items() if isinstance(value, Stored)}
    for name, value in state.items():
        if isinstance(value, Unusual):
            raise WeightsError(
                f"{path} holds {printable(name)} as a {value.kind} tensor; weights are plain tensors of fp16, bf16 or "
                "fp32. Take them as such."
            )
    return stored


def _fullest(content: dict) -> tuple[str, dict[str, Stored | Unusual]]:
    """Of a dict and those inside it the one that holds the most tensors: its key, and its tensors by name."""
    found = [
        (key, {str(n): v for n, v in owner.items() if isinstance(v, (Stored, Unusual)) and isinstance(n, (str, int))})
        for key, owner in _dicts(content)
    ]
    return max(found, key=lambda item: (len(item[1]), item[0] in _USUAL_KEYS))


def _dicts(content: dict) -> Iterator[tuple[str, dict]]:
    """A dict and those inside it with their keys, each once, the outer ones first."""
    level, seen = [("", content)], {id(content)}
    for _ in range(_DEEPEST):
        yield from level
        inner = [(str(key), value) for _, owner in level for key, value in owner.items() if isinstance(value, dict)]
        level = []
        for key, value in inner:
            if id(value) not in seen:
                seen.add(id(value))
                level.append((key, value))
