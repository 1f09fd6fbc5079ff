"""What all files of tensors have in common: their error, their layout, and reading values by offset."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgm.errors import UserError, reason_of

Shape = tuple[int, ...]
Layout = Mapping[str, tuple[torch.dtype, Shape]]

LARGEST_HEADER = 16 << 20  # bytes of what lists the tensors of a file; that of the official files has 0.3 MB
LARGEST_LENGTH = 1 << 60


class WeightsError(UserError):
    """Weights that are missing, damaged, or not of this model."""


@contextmanager
def reading(path: Path, what: str = "") -> Iterator[None]:
    """Context manager that turns whatever fails inside into a WeightsError with the path: files come from anywhere.

    what: how the file was being read, such as " as safetensors".
    """
    try:
        yield
    except WeightsError:
        raise
    except UserError as error:
        raise WeightsError(error) from error
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror or error}): check the disk and its permissions."
        ) from error
    except Exception as error:
        raise WeightsError(f"{path} cannot be read{what} ({reason_of(error)}); get the file again.") from error


def is_shape(value: Any) -> bool:
    """Whether a value is a shape that torch can make: a zero among its lengths hides no overflow of the others."""
    if not isinstance(value, (list, tuple)) or len(value) > 64:
        return False
    product = 1
    for length in value:
        if type(length) is not int or not 0 <= length < LARGEST_LENGTH:
            return False
        product *= length or 1
    return product < LARGEST_LENGTH


class TensorFile(ABC):
    """An open file. layout: name -> (dtype, shape); `read(name)`: a tensor on the CPU, not memory-mapped.

    metadata: what a .safetensors file says of itself beside its tensors.
    The dtypes are those of the file: what may be a weight is for the reader of the layout to say.
    """

    layout: dict[str, tuple[torch.dtype, Shape]]
    metadata: dict[str, str]

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path, self._file = path, file
        self.metadata = {}

    @abstractmethod
    def read(self, name: str) -> Tensor: ...

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _values(self, start: int, count: int, dtype: torch.dtype, byte_order: str = "little") -> Tensor:
        """`count` values that lie at the byte `start`, shape (count,)."""
        data = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
        remaining = data.numpy().data
        with reading(self.path):
            self._file.seek(start)
            while remaining:
                read = self._file.readinto(remaining)
                if not read:
                    raise WeightsError(f"{self.path} ended while it was read: it has been cut short meanwhile.")
                remaining = remaining[read:]
        if byte_order != sys.byteorder:
            data.untyped_storage().byteswap(dtype)
        return data.view(dtype)


def is_finite(value: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    if not value.is_floating_point() or not value.numel():
        return True
    if value.dtype.itemsize == 1:  # float8, for which torch has no order
        value = value.float()
    low, high = value.aminmax()  # NaN if any value is; many times as fast as `isfinite` of each value
    return bool(low.isfinite() & high.isfinite())
