"""Sending answers: head and body at once, and without Python's global lock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import Any

_SMALL = 1 << 16  # bytes: more is left to the transport, as it comes


class Sending:
    """A transport that sends all that is written within a turn of the event loop at its end.

    uvloop's own holds the lock while the system sends. That wakes the client, which on a busy machine runs first, and
    so long the thread that makes a clip waits. Here it is let go.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._written: list[bytes] = []
        plain = sys.platform != "win32" and transport.get_extra_info("sslcontext") is None
        self._socket: int | None = transport.get_extra_info("socket").fileno() if plain else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if len(data) > _SMALL:
            self._send()
            self._transport.write(data)
            return
        if not self._written:
            self._loop.call_soon(self._send)
        self._written.append(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        data = b"".join(self._written)
        self._written.clear()
        if self._transport.is_closing():  # then its socket may be another connection's already
            return
        if self._socket is not None and not self._transport.get_write_buffer_size():
            with contextlib.suppress(OSError):  # a full buffer; the transport meets all others
                data = data[os.write(self._socket, data) :]
        if data:
            self._transport.write(data)
