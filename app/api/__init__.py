"""The HTTP API of the app, on the page's own port and over the same table of jobs. Does not import Streamlit.

`stability`, `videos` and `nvidia` speak as others' servers do, `own` as this one; `work` makes jobs of their requests.
"""

from __future__ import annotations

from fastapi import Depends, Request, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from app.api import nvidia, own, stability, videos
from app.api.refused import Refused
from app.api.route import PollsFirst
from sgm import __version__, printable

_CONTRACTS = {"/v2": stability, nvidia.PATH: nvidia, "/v1": videos, "": own}  # what the addresses of each begin with


def application() -> ASGIApp:
    """The API as an ASGI application, with its documentation at /docs, which fetches nothing from elsewhere."""
    api = FastAPIOffline(
        title="sgm-video", version=__version__, redoc_url=None, static_url="/docs/static", summary="Picture to video."
    )
    api.add_exception_handler(HTTPException, _no_route)
    told = Depends(HTTPBearer(auto_error=False, description="Any key, or one of SGM_API_KEYS."))  # for /docs alone
    for part in (own, stability, videos, nvidia):
        api.include_router(part.router, dependencies=[told])
    return PollsFirst(api, own.polls | stability.polls | videos.polls)


async def _no_route(request: Request, error: Exception) -> Response:
    """What is answered where there is nothing, or not by this method: the contract's error."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    part = next(part for beginning, part in _CONTRACTS.items() if path.startswith(beginning))
    said = f"There is no {request.method} {printable(path, 100)} here: /docs shows what there is."
    response = part.shape(Refused(error.status_code, said))
    response.headers.update(error.headers or {})
    return response
