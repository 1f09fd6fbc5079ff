"""The server of `sgm app`: Streamlit's, with this program's settings alone, for this machine's own page alone."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st
import typer
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from streamlit import config, file_util

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_OWN_HOST = re.compile(r"(?:127\.0\.0\.1|localhost)(?::\d+)?")


class OwnPageOnly:
    """ASGI middleware that refuses requests to another Host than this machine, and from pages of another Origin.

    A foreign Host is DNS rebinding: a stranger's page whose name leads to this address. Pages of other ports of this
    machine are other origins. The port itself may be another, as through an SSH tunnel.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_own(Headers(scope=scope)):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse("Only this machine's own page may ask here.\n", 403)(scope, receive, send)

    @staticmethod
    def _is_own(headers: Headers) -> bool:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        return len(hosts) == 1 and bool(_OWN_HOST.fullmatch(hosts[0])) and set(origins) <= {f"http://{hosts[0]}"}


def serve(root: Path, port: int, address: str, open_browser: bool) -> None:
    """Serve the page at a port of 127.0.0.1 until Ctrl-C (KeyboardInterrupt) or SIGTERM (SystemExit).

    root: the folder that holds `app/` and `.streamlit/`; the current folder's `.streamlit/` is not read, and what
    files and variables of Streamlit's say elsewhere yields to the values passed here.
    """

    @asynccontextmanager
    async def announced(_: st.App) -> AsyncIterator[None]:
        typer.echo(f"The page is at {address}; Ctrl-C ends it.")
        if open_browser:
            threading.Thread(target=typer.launch, args=(address,), daemon=True).start()
        threading.Thread(target=_resume, args=(address,), daemon=True).start()
        yield

    # No option of Streamlit's does this.
    file_util.get_project_streamlit_file_path = lambda *names: str(root.joinpath(".streamlit", *names))
    script = root / "app" / "main.py"
    settings = {**_settings(root), "server.port": port, "browser.serverPort": port, "server.headless": True}
    os.environ["STREAMLIT_SERVER_COOKIE_SECRET"] = secrets.token_hex()  # the one value that `run` does not take
    sys.argv = [str(script)]  # beside which Streamlit looks for the theme
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # raised when the server has ended
    st.App(script, middleware=[Middleware(OwnPageOnly)], lifespan=announced).run(config=settings)


def _resume(address: str) -> None:
    """Open the table of jobs, so that what waited goes on before anybody opens the page, which then opens sooner."""
    try:
        import_module("app.jobs").table(address)  # by its name: the library knows no page
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
