"""The routes of a contract: who asks, the bounds of the body, and what is refused, in the contract's shape."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from app.api import bounds, keys
from app.api.refused import Refused
from sgm import UserError


def route(shape: Callable[[Refused], Response], bad: int = 400) -> type[APIRoute]:
    """The class of a contract's routes. They look who asks, bound the body, and answer what is refused in its shape.

    bad: the contract's status for a wrong value.
    """

    class ContractRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

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
                    logging.getLogger(__name__).exception("%s %s failed", request.method, request.url.path)
                    return answer(Refused(500, "The server failed. Its log has the details."))

            return handle

    def answer(refused: Refused) -> Response:
        response = shape(refused)
        response.headers.update(refused.headers)
        return response

    return ContractRoute
