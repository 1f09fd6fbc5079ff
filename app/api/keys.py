"""Who asks: the key of a request, or its client; and how often."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections import deque
from functools import cache

from starlette.requests import Request

from app.api.refused import Refused
from app.jobs.record import API_OWNER

MOST, WITHIN = 150, 10.0  # requests of one key in so many seconds, as Stability's API allows
_asked: dict[str, deque[float]] = {}  # owner -> when its latest requests came; used by the event loop alone


def admit(request: Request) -> None:
    """Note the request's owner. Raises Refused 401 without one of SGM_API_KEYS, 429 for too many requests.

    Where no keys are set, any key is taken, and none: what was asked for with a key is found with this key alone.
    """
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else ""
    allowed = _allowed(os.environ.get("SGM_API_KEYS", ""))
    digest = hashlib.sha256(key.encode()).digest()
    known = sum(hmac.compare_digest(digest, one) for one in allowed) > 0  # compares with all, in constant time
    client = request.client.host if request.client else ""
    owner = API_OWNER + hashlib.sha256(f"key {key}".encode() if key else f"client {client}".encode()).hexdigest()[:32]
    times = _times(owner if known or not allowed else client)
    now = time.monotonic()
    if len(times) == MOST and now - times[0] < WITHIN:
        wait = {"retry-after": str(max(1, round(WITHIN - (now - times[0]))))}
        raise Refused(429, f"more than {MOST} requests in {WITHIN:g} seconds: ask less often", headers=wait)
    times.append(now)
    if allowed and not known:
        told = {"www-authenticate": "Bearer"}
        raise Refused(401, "authorization: expected 'Bearer KEY' with a key of this server", headers=told)
    request.state.owner = owner


@cache
def _allowed(keys: str) -> list[bytes]:
    return [hashlib.sha256(key.strip().encode()).digest() for key in keys.split(",") if key.strip()]


def _times(owner: str) -> deque[float]:
    if len(_asked) > 10_000:
        old = time.monotonic() - WITHIN
        for name in [name for name, times in _asked.items() if times[-1] < old]:
            del _asked[name]
    return _asked.setdefault(owner, deque(maxlen=MOST))
