"""The error whose message is written for the person at the keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user gave or can mend; the message says what was given, what was expected and what to do."""


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raises UserError where memory runs out inside. Also a decorator."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error)
        # torch has a class of its own for CUDA only.
        if not (isinstance(error, MemoryError) or "out of memory" in said or "DefaultCPUAllocator" in said):
            raise
        raise UserError(
            "This needs more memory than there is. Close other programs, take fewer frames or a smaller size, or "
            "decode fewer frames at once."
        ) from error
