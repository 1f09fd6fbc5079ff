"""Refused: an answer other than success, before each contract gives it its own shape."""

from __future__ import annotations

_NAMES = {
    400: "bad_request",
    401: "unauthorized",
    403: "content_moderation",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    409: "conflict",
    413: "payload_too_large",
    422: "unprocessable_entity",
    429: "rate_limit_exceeded",
    500: "internal_error",
    503: "unavailable",
}


class Refused(Exception):
    """A request that is refused. name: of the status, as in Stability's API. field: which value is wrong, or ""."""

    def __init__(self, status: int, message: str, field: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.field = status, message, field
        self.name = _NAMES.get(status, "error")
        self.headers = headers or {}
