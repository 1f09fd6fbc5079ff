"""The server of `sgm app`: Streamlit's, with this program's settings alone, for this machine's own page alone."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import streamlit as st
import typer
from anyio.to_thread import run_sync
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from streamlit import config, file_util
from streamlit.errors import Error

from sgm.cli.heads import bound_heads
from sgm.errors import UserError
from sgm.outputs import BROWSER
from sgm.process import importing_torch

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_A_YEAR = 365 * 24 * 3600  # seconds
_OWN_HOST = re.compile(r"(?:127(?:\.\d{1,3}){3}|\[::1\]|localhost)(?::\d+)?", re.IGNORECASE)
_ANSWERED = ("finish-reason", "seed", "retry-after", "location", "x-request-id")  # headers that the API answers with
_API = re.compile(r"/(?:api|v1|v2alpha|v2beta|docs)(?:/.*)?|/openapi\.json")
# At the stand: all but its page and what that is made of.
_STAND = re.compile(r"/(?!$|(?:_stcore|static|media|component|app/static)/|favicon\.png$|manifest\.json$).*")
_FILMS = re.compile(r"/clip/.*")


class OwnPageOnly:
    """ASGI middleware that refuses requests to another Host than this machine, and from pages of another Origin.

    A foreign Host is DNS rebinding: a stranger's page whose name leads to this address. Pages of other ports of this
    machine are other origins. The port itself may be another, as through an SSH tunnel. Nor may such pages frame this
    one, to have its buttons pressed unseen.

    network: who else may ask. "": nobody. "keys": programs of other machines, for the API, which looks at their keys.
    "films": those at the stand who have a film's token, for that film. "trusted": whoever reaches this machine by its
    address or name. origins: other sites', whose pages may use the API. browsers: whether each browser gets a cookie of
    chance, by which the page tells it from others.
    """

    def __init__(self, app: ASGIApp, network: str = "", origins: Collection[str] = (), browsers: bool = False) -> None:
        self.app, self.network, self.origins, self.browsers = app, network, frozenset(origins), browsers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.append("Content-Security-Policy", "frame-ancestors 'self'")
                html = headers.get("content-type", "").startswith("text/html")
                if self.browsers and html and BROWSER not in Request(scope).cookies:
                    cookie = f"{BROWSER}={secrets.token_hex(16)}; Path=/; Max-Age={_A_YEAR}; HttpOnly; SameSite=Lax"
                    headers.append("Set-Cookie", cookie)
            await send(message)

        if scope["type"] == "lifespan" or self._is_allowed(scope, Headers(scope=scope)):
            await self.app(scope, receive, unframed)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse("Only this machine's own page may ask here.\n", 403)(scope, receive, send)

    def _is_allowed(self, scope: Scope, headers: Headers) -> bool:
        hosts, origins = headers.getlist("host"), set(headers.getlist("origin"))
        if len(hosts) != 1:
            return False
        for_api = scope["type"] == "http" and bool(_API.fullmatch(scope["path"]))
        if for_api:
            origins -= self.origins
        client = (scope.get("client") or ("127.0.0.1",))[0]
        if _OWN_HOST.fullmatch(hosts[0]) and _is_loopback(client):
            return origins <= {f"http://{hosts[0]}"}
        if self.network == "keys":
            return for_api and not origins
        if self.network == "films" and not (scope["type"] == "http" and _FILMS.fullmatch(scope["path"])):
            return False
        return self.network in ("trusted", "films") and _is_of_here(hosts[0]) and origins <= {f"http://{hosts[0]}"}


@lru_cache
def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # no address, as of a socket in the file system
        return True


def _is_of_here(host: str) -> bool:
    """Whether a Host header holds an address or this machine's name, which no stranger's page can have."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    try:
        ipaddress.ip_address(name.strip("[]"))
        return True
    except ValueError:
        return name.lower().removesuffix(".local") in ("localhost", socket.gethostname().lower().removesuffix(".local"))


class WithRoutes:
    """ASGI middleware that has some paths answered by `application()` of a module, imported when it is needed.

    address: of the page, for the table of jobs.
    """

    def __init__(self, app: ASGIApp, address: str, paths: re.Pattern[str], module: str) -> None:
        self.page, self.routes, self.address, self.paths, self.module = app, None, address, paths, module

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.paths.fullmatch(scope["path"]):
            await self.page(scope, receive, send)
            return
        if self.routes is None:
            await run_sync(_resume, self.address, self.module)
            self.routes = self.routes or import_module(self.module).application()
        if scope["method"] == "HEAD" and not scope["path"].endswith("/events"):  # which do not end with their head
            scope = {**scope, "method": "GET"}  # whose body uvicorn leaves out, by its own scope
        await self.routes(scope, receive, send)


def serve(
    root: Path,
    port: int,
    address: str,
    open_browser: bool,
    host: str = "127.0.0.1",
    network: str = "",
    origins: Collection[str] = (),
    stand: bool = False,
) -> None:
    """Serve page and API, or the stand, at a port of `host` until Ctrl-C (KeyboardInterrupt) or SIGTERM (SystemExit).

    root: the folder that holds `app/` and `.streamlit/`; the current folder's `.streamlit/` is not read, and what
    files and variables of Streamlit's say elsewhere yields to the values passed here. network, origins: as of
    OwnPageOnly. Raises UserError where Streamlit cannot read them.
    """

    @asynccontextmanager
    async def announced(_: st.App) -> AsyncIterator[None]:
        typer.echo(f"The page is at {address}; Ctrl-C ends it.")
        if open_browser:
            threading.Thread(target=typer.launch, args=(address,), daemon=True).start()
        threading.Thread(target=_resume, args=(address, module), daemon=True).start()
        yield

    # No option of Streamlit's does this.
    file_util.get_project_streamlit_file_path = lambda *names: str(root.joinpath(".streamlit", *names))
    script = root / "app" / ("stand_main.py" if stand else "main.py")
    paths, module = (_STAND, "app.stand.routes") if stand else (_API, "app.api")
    settings = {**_settings(root), "server.address": host, "server.port": port, "browser.serverPort": port}
    hosts = ["*"] if network == "trusted" else [*settings["server.allowedHosts"], urlsplit(address).hostname]
    settings |= {"server.headless": True, "server.allowedHosts": hosts}
    settings |= {"client.toolbarMode": "minimal"} if stand else {}
    os.environ["STREAMLIT_SERVER_COOKIE_SECRET"] = secrets.token_hex()  # the one value that `run` does not take
    sys.argv = [str(script)]  # beside which Streamlit looks for the theme
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # raised when the server has ended
    try:
        bound_heads()
        every: Any = {"allow_methods": ["*"], "allow_headers": ["*"], "expose_headers": _ANSWERED}
        shared = [Middleware(CORSMiddleware, allow_origins=list(origins), **every)] if origins else []
        mounted = Middleware(WithRoutes, address, paths, module)
        middleware = [Middleware(OwnPageOnly, network, origins, browsers=not stand), *shared, mounted]
        routes = [] if stand else [Route("/progress/{id}", _progress)]
        st.App(script, routes=routes, middleware=middleware, lifespan=announced).run(config=settings)
    except (Error, UnicodeDecodeError) as error:
        raise UserError(f"Streamlit does not start ({error}): look at .streamlit/config.toml in your home.") from error


async def _progress(request: Request) -> Response:
    """How a job comes along, for the page, which has imported what answers."""
    return await import_module("app.create.progress").answer(request)


def _resume(address: str, module: str) -> None:
    """Open the table of jobs, so that what waited goes on before anybody opens the page, which then opens sooner."""
    try:
        with importing_torch():
            import_module(module)  # by its name: the library knows no page
            import_module("app.jobs").table(address)
    except Exception as error:  # the page says it
        logging.getLogger(__name__).warning("The jobs cannot be resumed: %s", error)


def _settings(root: Path) -> dict[str, Any]:
    """The values of `.streamlit/config.toml` that this Streamlit knows: "section.key" -> value."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    sections = tomllib.loads((root / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    values = {f"{section}.{key}": value for section, pairs in sections.items() for key, value in pairs.items()}
    values["logger.hideWelcomeMessage"] = True  # hides Streamlit's advertisements, on the page too
    return {name: value for name, value in values.items() if name in config._config_options_template}
