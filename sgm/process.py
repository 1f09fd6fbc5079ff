"""The process of a program: its allocator, garbage collector, interrupt and exit.

Called by the two programs, command line and app, never by the library, which leaves its caller's process as it is.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)
_reusing = 0  # how many threads are inside `reuse_freed_memory`
_reusing_lock = threading.Lock()


@contextmanager
def reuse_freed_memory() -> Iterator[None]:
    """Let glibc's allocator reuse freed memory for later tensors; it is returned to the system when all threads leave.

    By default glibc requests each large tensor's memory from the system, which clears it page by page. On a CPU that
    takes longer than most layers. Other allocators are not changed.
    """
    global _reusing
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    with _reusing_lock:
        _reusing += 1
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, -1)
        libc.mallopt(_TOP_PAD, 64 << 20)
    try:
        yield
    finally:
        with _reusing_lock:
            _reusing -= 1
            if not _reusing:
                libc.mallopt(_MMAP_MAX, 65536)
                libc.mallopt(_TRIM_THRESHOLD, 128 << 10)
                libc.mallopt(_TOP_PAD, 0)
                libc.malloc_trim(0)


def stand_back() -> None:
    """Have this thread, and those that it starts, take only processor time that no other thread wants. On Linux alone.

    Beside a network that computes on all cores, another thread delays each layer by its turn on one of them.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def freeze_objects() -> None:
    """Exclude all objects that live now from garbage collection, at no cost.

    Streamlit collects garbage after every script run, and so at every poll of a job's progress. With torch and a model
    among the objects to search, that stopped the worker for more than half of the time.
    """
    gc.freeze()


def collect_and_freeze() -> None:
    """Collect all garbage, also among frozen objects, then exclude the remaining objects from further collection."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@contextmanager
def importing_torch() -> Iterator[None]:
    """For the process's first import of torch: without garbage collection, and with Ctrl-C delayed until it is done.

    torch's module objects live for ever; excluding them from collection saves 1.3 s. An interrupt during the import can
    abort the process.
    """
    if "torch" in sys.modules:
        yield
        return
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True

    main = threading.current_thread() is threading.main_thread()  # others cannot handle signals
    handled = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:
        signal.signal(signal.SIGINT, press)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        if handled:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


def run_and_exit(program: Callable[[], object]) -> None:
    """Run a program and end the process with its exit code, without torch's clean-up, which takes up to a second.

    Exit handlers are called and the standard streams flushed; where stdout cannot be, as on a full disk, the exit code
    is not 0. Without torch, with other threads, or with a message instead of an exit code, the process ends as usual.
    """
    _replace_closed_streams()
    try:
        program()
    except SystemExit as end:
        code = end.code or 0
        unflushed, unheard = not _flushed(sys.stdout), not _flushed(sys.stderr)
        as_usual = "torch" not in sys.modules or threading.active_count() > 1
        if not isinstance(code, int) or (as_usual and not unflushed and not unheard):  # for which Python exits with 120
            raise
        atexit._run_exitfuncs()
        _flushed(sys.stdout)
        _flushed(sys.stderr)
        os._exit(code or int(unflushed))


def _replace_closed_streams() -> None:
    """Open the null device for each standard stream that is closed, lest another file take its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _flushed(stream: TextIO) -> bool:
    try:
        stream.flush()
    except (OSError, ValueError):  # its disk is full, its reader is gone, it was closed
        return False
    return True
