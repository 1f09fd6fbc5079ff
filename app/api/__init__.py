"""The HTTP API of the app, on the page's own port and over the same table of jobs. Does not import Streamlit.

`stability`, `videos` and `nvidia` speak as others' servers do, `own` as this one; `work` makes jobs of their requests.
"""

from __future__ import annotations

from fastapi import Depends
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.routing import Mount, Router
from starlette.types import ASGIApp

from app.api import nvidia, own, stability, videos
from sgm import __version__


def application() -> ASGIApp:
    """The API as an ASGI application, with its documentation at /docs, which fetches nothing from elsewhere."""
    api = FastAPIOffline(
        title="sgm-video", version=__version__, redoc_url=None, static_url="/docs/static", summary="Picture to video."
    )
    told = Depends(HTTPBearer(auto_error=False, description="Any key, or one of SGM_API_KEYS."))  # for /docs alone
    for part in (own, stability, videos, nvidia):
        api.include_router(part.router, dependencies=[told])
    return Router([*own.polls, *stability.polls, *videos.polls, Mount("/", api)])
