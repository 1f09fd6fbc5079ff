"""Bounds of a request's head, which uvicorn has none for: the time that it may take, and its size."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn import config
from uvicorn.protocols.http.auto import AutoHTTPProtocol

SLOWEST = 10.0  # seconds, from a connection or a head's first byte to the end of the head
LARGEST = 1 << 16  # bytes of a head


class BoundedHeads(AutoHTTPProtocol):  # type: ignore
    """uvicorn's protocol, which closes a connection whose next request's head is late or too large.

    Without this, a client that sends a byte now and then holds a connection, and the server's memory, for ever.
    """

    cycle: Any
    loop: asyncio.AbstractEventLoop
    transport: Any
    _read = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look(0)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _look(self, read: int) -> None:
        """Have the deadline run while a head is read, and only then."""
        answered = self.cycle is None or self.cycle.response_complete
        if not answered or self.transport.get_protocol() is not self:  # the head is whole, or a web socket's
            self._stop()
            return
        self._read += read
        if self._read > LARGEST:
            self.transport.abort()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(SLOWEST, self.transport.abort)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline, self._read = None, 0


def bound_heads() -> None:
    """Have uvicorn's servers of this process take `BoundedHeads`."""
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHeads.__name__}"
