"""`sgm app`: serve page and HTTP API, for this machine only unless told."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import typer

from sgm.cli.console import echo_stderr, path_option
from sgm.cli.options import Ray, RayActors
from sgm.errors import UserError, shown
from sgm.process import importing_torch
from sgm.versions import bundle

_STAND = "The stand"  # heading of its options
_PATIENCE = 5.0  # seconds for an answer of what holds the port: it may be the app, and busy


def app(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8501,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser.")] = False,
    devices: Annotated[
        str | None,
        typer.Option(
            envvar="SGM_DEVICES",
            help="On which clips are made, one at a time on each: all, or names as cuda:0,cuda:1 or cpu,cpu. "
            "Unless given, all GPUs or, without any, the processor.",
        ),
    ] = None,
    gpus: Annotated[
        int,
        typer.Option(envvar="SGM_GPUS", min=1, max=16, help="How many of the GPUs compute each clip together."),
    ] = 1,
    ray: Ray = None,
    ray_actors: RayActors = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Another than 127.0.0.1 needs keys in SGM_API_KEYS, for the API.")
    ] = "127.0.0.1",
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="A site whose pages may use the API, as https://example.org. Can be given more than once."),
    ] = None,
    trust_network: Annotated[
        bool, typer.Option("--trust-network", help="Let all who reach --host use page and API, without a key.")
    ] = False,
    no_watermark: Annotated[
        bool,
        typer.Option("--no-watermark", envvar="SGM_NO_WATERMARK", help="Leave out the invisible watermark of clips."),
    ] = False,
    safety: Annotated[
        Literal["off", "warn", "block"] | None,
        typer.Option(
            envvar="SGM_SAFETY",
            help="The filter of pictures and clips unsafe for work: off unless given; at the stand block, if it is "
            "installed.",
        ),
    ] = None,
    stand: Annotated[
        bool,
        typer.Option("--stand", help="A page for passers-by in place of the page and the API.", rich_help_panel=_STAND),
    ] = False,
    stand_pictures: Annotated[
        Path | None, path_option("Folder of pictures to offer; their names are the titles.", rich_help_panel=_STAND)
    ] = None,
    stand_limit: Annotated[
        int | None, typer.Option(min=1, help="Films an hour of a visitor: 10 unless given.", rich_help_panel=_STAND)
    ] = None,
    stand_keep: Annotated[
        int | None,
        typer.Option(min=1, max=8760, help="Hours until films are deleted: 24 unless given.", rich_help_panel=_STAND),
    ] = None,
    stand_rest: Annotated[
        int | None,
        typer.Option(min=5, help="Seconds without a touch until it starts anew: 60.", rich_help_panel=_STAND),
    ] = None,
    stand_address: Annotated[
        str | None,
        typer.Option(help="How phones reach this server, if not by --host, as http://NAME.", rich_help_panel=_STAND),
    ] = None,
) -> None:
    """Open the page in your browser, and serve the HTTP API beside it. Both are for this machine only."""
    network = _checked_network(host, trust_network, stand)
    choices = {"limit": stand_limit, "keep": stand_keep, "rest": stand_rest, "address": stand_address}
    choices = {name: value for name, value in choices.items() if value is not None}
    if (choices or stand_pictures) and not stand:
        raise UserError("--stand-… belongs to the stand: add --stand.")
    origins = [_checked_origin(origin) for origin in allow_origin or []]
    if ray is not None and (devices is not None or gpus > 1):
        raise UserError(
            "--devices and --gpus, or SGM_DEVICES and SGM_GPUS, are of this machine, --ray of a cluster: give one."
        )
    if devices is not None:
        _check_devices(devices, gpus)
        os.environ["SGM_DEVICES"] = devices  # which the table of jobs reads
    os.environ |= {"SGM_GPUS": str(gpus), "SGM_NO_WATERMARK": "1" if no_watermark else ""}
    from sgm.outputs import outputs_folder, reserve

    address = _address(host, port)
    _check_port(host, port, address)
    os.environ["SGM_SAFETY"] = _checked_provenance(safety, stand)
    if ray is not None:
        _connect(ray, ray_actors)
    reserve(outputs_folder(), address)  # the app takes the lock over
    from sgm.cli.server import serve

    root = bundle()
    # `import app` must work here and in processes that the page starts.
    sys.path.insert(0, str(root))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    if stand:
        # By its name: the library knows no page.
        found = import_module("app.stand.host").open_stand(stand_pictures, host, port, echo_stderr, **choices)
        reason = "this machine has no address on a network" if network else "add --host 0.0.0.0"
        echo_stderr(f"Phones fetch their films from {found.address or f'nowhere: {reason}'}.")
    serve(root, port, address, not no_browser, host, network, origins, stand)


def _checked_network(host: str, trusted: bool, stand: bool) -> str:
    """Who else may ask, for OwnPageOnly. Raises UserError for what is no address, or is open to anybody."""
    try:
        listening = ipaddress.ip_address(host)
    except ValueError:
        raise UserError(f"--host must be an address, such as 127.0.0.1 or 0.0.0.0; got {shown(host)}.") from None
    if listening.is_loopback:
        return ""
    if stand and not trusted:
        if not listening.is_unspecified:
            raise UserError(
                f"With --host {host} nobody could open the stand, since phones only fetch films there. Use --host "
                "0.0.0.0 for a screen of this machine; for tablets of the network, add --trust-network."
            )
        return "films"
    keys = [key.strip() for key in os.environ.get("SGM_API_KEYS", "").split(",") if key.strip()]
    if not (keys or trusted):
        raise UserError(
            f"--host {host} lets other machines in: set SGM_API_KEYS to one or more keys, with commas between, for the "
            "API alone; or, where everybody on the network may use page and API, add --trust-network."
        )
    return "trusted" if trusted else "keys"


def _checked_origin(origin: str) -> str:
    """A site's origin, as browsers send it. Raises UserError for what is none."""
    if not re.fullmatch(r"https?://[^/\s*@?#]+/?", origin):
        raise UserError(f"--allow-origin must be a site's address, as https://example.org; got {shown(origin)}.")
    return origin.rstrip("/").lower()


def _check_devices(devices: str, gpus: int) -> None:
    """Raise UserError for devices that cannot be used."""
    with importing_torch():
        from sgm import choose_devices

    choose_devices(devices, gpus)


def _checked_provenance(safety: str | None, stand: bool) -> str:
    """The filter's mode. Raises UserError for a filter that is not there, or credentials that cannot be used."""
    with importing_torch():
        from sgm import can_filter, check_credentials, check_safety

    check_credentials()
    mode = safety or ("block" if stand and can_filter() else "off")
    check_safety(mode)
    return mode


def _connect(ray: str, actors: int | None) -> None:
    """Connect to a Ray cluster, for the table of jobs. Raises UserError as `Cluster` does."""
    echo_stderr("Connecting to Ray.")
    with importing_torch():
        from sgm import cluster_at

    cluster = cluster_at(ray, actors)
    os.environ |= {"SGM_RAY": ray, "SGM_RAY_ACTORS": str(actors or 0)}
    echo_stderr(f"Clips are made by {len(cluster.workers)} actors of the Ray cluster at {cluster.address}.")


def _address(host: str, port: int) -> str:
    """Where this machine's browser finds a server that listens on `host`."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def _check_port(host: str, port: int, address: str) -> None:
    """Raise UserError where nothing can listen; the message says whether this app is running there."""
    from sgm.outputs import outputs_folder, owner_of

    other = f"choose another port with --port {max(port % 65535 + 1, 1024)}"
    name = str(urlsplit(address).hostname)
    try:
        socket.create_server((host, port), family=_family(host)).close()
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(
                f"--host {host} is no address of this machine: take one of its own, or 0.0.0.0 for all of them."
            ) from None
        if error.errno != errno.EADDRINUSE:
            reason = os.strerror(error.errno or 0)
            raise UserError(f"Nothing can listen on port {port} of {host} ({reason}): {other}.") from None
    else:
        with socket.socket(_family(name)) as probe:  # macOS lets two listen, one on all addresses
            probe.settimeout(0.5)
            if probe.connect_ex((name, port)):
                return
    owner = owner_of(outputs_folder())
    if owner and owner.address == address:
        raise UserError(
            f"sgm app is already running at {address} ({owner}): open it, or {other} and another folder in SGM_OUTPUTS."
        )
    if _is_app(name, port):
        raise UserError(f"sgm app is already running at {address}, with another outputs folder: open it, or {other}.")
    raise UserError(f"Port {port} is taken by another program: {other}.")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _is_app(name: str, port: int) -> bool:
    """Whether this app is running on a port of this machine: it serves the file app/static/sgm-video.txt."""
    import http.client

    connection = http.client.HTTPConnection(name, port, timeout=_PATIENCE)  # does not use a proxy
    try:
        connection.request("GET", "/app/static/sgm-video.txt")
        return connection.getresponse().read(64).startswith(b"sgm app")
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
