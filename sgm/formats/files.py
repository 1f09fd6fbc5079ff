"""Files of tensors, .safetensors and PyTorch's .ckpt, .pt and .bin: recognised by content, read tensor by tensor."""

from __future__ import annotations

import os
from pathlib import Path

from sgm.formats.checkpoint import CheckpointFile
from sgm.formats.safetensors import SafetensorsFile, write_tensors
from sgm.formats.tensor_file import Layout, Shape, TensorFile, WeightsError, reading
from sgm.paths import exists, is_file

__all__ = ["Layout", "Shape", "TensorFile", "WeightsError", "open_tensors", "write_tensors"]

_QUANTISED = "quantised for other programs, which is not supported: take the .safetensors file of the model in fp16"
_PACKED = "a packed archive (unpack it)"
# What other files begin with, in lower case, and what is said of them.
_OTHERS = (
    (b"version https://git-lfs", "a pointer that git-lfs left in place of the file (run `git lfs pull`)"),
    (b"<!doctype", "a web page: the download brought a notice rather than the file"),
    (b"<html", "a web page: the download brought a notice rather than the file"),
    (b"<?xml", "a web page: the download brought a notice rather than the file"),
    (b"{", "text in JSON, such as an index or a notice"),
    (
        b"\x80\x02\x8a\nl\xfc\x9c",
        "of torch.save's format before torch 1.6 (load it with torch.load and save it anew)",
    ),
    (b"\x80", "a bare pickle, which can hold code and is not opened; weights come as .safetensors"),
    (b"\x1f\x8b", _PACKED),
    (b"7z\xbc\xaf", _PACKED),
    (b"rar!", _PACKED),
    (b"\xfd7zxz", _PACKED),
    (b"\x28\xb5\x2f\xfd", _PACKED),
)


def open_tensors(path: Path) -> TensorFile:
    """Open a file in the format of its content, whatever its suffix. Raises WeightsError for unreadable files."""
    with reading(path):
        if not is_file(path):
            raise WeightsError(_absence(path))
        file = path.open("rb", buffering=0)
        try:
            start = file.read(64)
            if start.startswith(b"PK\x03\x04"):
                return CheckpointFile(path, file)
            _check_start(path, start)
            return SafetensorsFile(path, file)
        except BaseException:
            file.close()
            raise


def _absence(path: Path) -> str:
    """What lies at a path where no file does."""
    if path.is_symlink() and not exists(path):
        return f"{path} is a link to {os.readlink(path)}, where nothing lies: mend the link or put the file there."
    if exists(path):
        return f"{path} is no file that can be read as weights, but a folder, pipe or device."
    return f"There are no weights at {path}."


def _check_start(path: Path, start: bytes) -> None:
    """Raise WeightsError for other kinds of files; the message names those that failed downloads leave."""
    text = start.lstrip().lower()
    if start[8:9] == b"{":
        return
    if start.startswith(b"GGUF"):
        raise WeightsError(f"{path} is a GGUF file, {_QUANTISED}.")
    problem = next((f"is {kind}" for mark, kind in _OTHERS if text.startswith(mark)), None)
    if not start:
        problem = "is empty"
    elif problem is None and len(start) > 8:
        problem = "cannot be read as safetensors, nor as a PyTorch checkpoint"
    raise WeightsError(f"{path} {problem or 'is cut short'}; get the file again.")
