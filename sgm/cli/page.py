"""`sgm app`: serve the Streamlit app, on this machine only."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated

import typer

from sgm.cli.console import errors_as_sentences
from sgm.errors import UserError
from sgm.versions import bundle


def app(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8501,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser.")] = False,
) -> None:
    """Open the page in your browser. It can be reached from this machine only."""
    with errors_as_sentences():
        from sgm.outputs import outputs_folder, reserve

        address = f"http://127.0.0.1:{port}"
        _check_port(port, address)
        reserve(outputs_folder(), address)  # the app takes the lock over
        from sgm.cli.server import serve

        root = bundle()
        # `import app` must work here and in processes that the page starts.
        sys.path.insert(0, str(root))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        serve(root, port, address, open_browser=not no_browser)


def _check_port(port: int, address: str) -> None:
    """Raise UserError for a port that is in use; the message says whether this app is running there."""
    from sgm.outputs import outputs_folder, owner_of

    with socket.socket() as probe:
        probe.settimeout(0.5)
        if probe.connect_ex(("127.0.0.1", port)):
            return
    other = f"choose another port with --port {port % 65535 + 1}"
    owner = owner_of(outputs_folder())
    if owner and owner.address == address:
        raise UserError(
            f"sgm app is already running at {address} ({owner}): open it, or {other} and another folder in SGM_OUTPUTS."
        )
    if _is_app(port):
        raise UserError(f"sgm app is already running at {address}, with another outputs folder: open it, or {other}.")
    raise UserError(f"Port {port} is taken by another program: {other}.")


def _is_app(port: int) -> bool:
    """Whether this app is running on a port of this machine: it serves the file app/static/sgm-video.txt."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)  # does not use a proxy; the app may be busy
    try:
        connection.request("GET", "/app/static/sgm-video.txt")
        return connection.getresponse().read(64).startswith(b"sgm app")
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
