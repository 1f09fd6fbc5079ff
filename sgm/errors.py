"""UserError: the error whose message is shown to the user as it is."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class UserError(ValueError):
    """An error that the user can fix; the message says what was given, what was expected and what to do."""


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 2


def shown(value: Any) -> str:
    """A value as messages show it: its repr, shortened where that is long, as a file from elsewhere may make it."""
    try:
        return _short.repr(value)
    except ValueError:  # Python writes no more than some thousand digits of an int
        return f"a number of {value.bit_length()} bits"


@contextmanager
def enough_memory() -> Iterator[None]:
    """Context manager or decorator that raises UserError where memory runs out inside."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = str(error)
        # Only for CUDA has torch an error class of its own.
        if not (isinstance(error, MemoryError) or "out of memory" in message or "DefaultCPUAllocator" in message):
            raise
        raise UserError(
            "This needs more memory than there is. Close other programs, take fewer frames or a smaller size, or "
            "decode fewer frames at once."
        ) from error
