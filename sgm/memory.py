"""Memory between tensors: keeps it with the process for the time of a job."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, freed memory is used again; at the end it goes back to the system. Also a decorator.

    By default glibc takes each large tensor's memory from the system anew, which clears it page by page. On a CPU that
    takes longer than most layers. Where the allocator is another one, nothing is changed.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    libc.mallopt(_TOP_PAD, 64 << 20)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, 65536)
        libc.mallopt(_TRIM_THRESHOLD, 128 << 10)
        libc.mallopt(_TOP_PAD, 0)
        libc.malloc_trim(0)
