"""The bounds of a request's body: its size, counted while it is read, and the time that it may take."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

LARGEST = 10 << 20  # bytes: a request of Stability's API
SLOWEST = 30.0  # seconds, from the request's head to the end of its body
_CLOSE = {"connection": "close"}  # what is left of the body is not read


def bounded(request: Request) -> Receive:
    """The request's `receive`, which raises HTTPException 413 for a larger body and 408 for a slower one."""
    receive, read, ended = request.receive, 0, False
    deadline = asyncio.get_running_loop().time() + SLOWEST
    if (announced := request.headers.get("content-length", "")).isdecimal() and int(announced[:20]) > LARGEST:
        raise _too_large()

    async def counted() -> Message:
        nonlocal read, ended
        if ended:  # waits for the client to leave
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), deadline - asyncio.get_running_loop().time())
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the body took longer than {SLOWEST:g} seconds", _CLOSE) from None
        read += len(message.get("body", b""))
        ended = not message.get("more_body", False)
        if read > LARGEST:
            raise _too_large()
        return message

    return counted


def _too_large() -> HTTPException:
    return HTTPException(413, f"the request is larger than {LARGEST >> 20} MiB: make what it holds smaller", _CLOSE)
