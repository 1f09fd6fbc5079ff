"""The routes of a contract: who asks, the bounds of the body, and what is refused, in the contract's shape."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import bounds, keys
from app.api.refused import Refused
from sgm import UserError, printable

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def answering(handler: Handler, shape: Callable[[Refused], Response], bad: int = 400) -> Handler:
    """A handler by a contract: it looks who asks, bounds the body, and answers what is refused in the contract's shape.

    bad: the contract's status for a wrong value.
    """

    async def handle(request: Request) -> Response:
        response = await attempt(request)
        response.headers["x-request-id"] = secrets.token_hex(16)
        return response

    async def attempt(request: Request) -> Response:
        try:
            keys.admit(request)
            return await handler(Request(request.scope, bounds.bounded(request), request._send))
        except Refused as refused:
            return answer(refused)
        except UserError as error:
            return answer(Refused(bad, str(error)))
        except RequestValidationError as error:
            first = error.errors()[0]
            return answer(Refused(bad, str(first["msg"]), str(first["loc"][-1])))
        except HTTPException as error:  # of the parser of forms
            return answer(Refused(error.status_code, str(error.detail), headers=dict(error.headers or {})))
        except Exception:
            logging.getLogger(__name__).exception("%s %s failed", request.method, printable(request.url.path))
            return answer(Refused(500, "The server failed. Its log has the details."))

    def answer(refused: Refused) -> Response:
        response = shape(refused)
        response.headers.update(refused.headers)
        return response

    return handle


def route(shape: Callable[[Refused], Response], bad: int = 400) -> type[APIRoute]:
    """The class of a contract's routes, with `answering` around each."""

    class ContractRoute(APIRoute):
        def get_route_handler(self) -> Handler:
            return answering(super().get_route_handler(), shape, bad)

    return ContractRoute


class PollsFirst:
    """ASGI application that answers polls itself, and has another one answer all else.

    Polls ask for the state of a job again and again while a clip is made: the frameworks' ways to a function would take
    most of their time. polls: the path before the job's id -> handler, which has `id` in `request.path_params`.
    """

    def __init__(self, app: ASGIApp, polls: Mapping[str, Handler]) -> None:
        self.app, self.polls = app, polls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":  # also what was asked by HEAD
            path, _, job_id = scope["path"].rpartition("/")
            if job_id and (handler := self.polls.get(path)):
                scope["path_params"] = {"id": job_id}
                response = await handler(Request(scope, receive, send))
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


def polled(one: Callable[[str, Request], Coroutine[Any, Any, Response]], shape: Any) -> Handler:
    """The handler of a contract's polls, answered by `one(id, request)`."""
    return answering(lambda request: one(request.path_params["id"], request), shape)
