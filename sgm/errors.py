"""UserError: the error whose message is shown to the user as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An error that the user can fix; the message says what was given, what was expected and what to do."""


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
