"""What the stand's host has chosen, for the whole process. Does not import Streamlit."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.stand import visits
from app.stand.pictures import HostPicture, host_pictures
from sgm import UserError, printable


@dataclass(frozen=True)
class Stand:
    """limit: films an hour of a visitor. keep: hours that films are kept. rest: seconds until the page starts anew.

    address: at which phones reach the server; "" where it listens on this machine alone.
    """

    pictures: list[HostPicture]
    limit: int = 10
    keep: int = 24
    rest: float = 60
    address: str = ""


_stand: Stand | None = None


def stand() -> Stand:
    """The stand of this process; with the defaults where none was opened."""
    return _stand or open_stand()


def open_stand(
    folder: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8501,
    say: Callable[[str], object] = print,
    **choices: Any,
) -> Stand:
    """Note what the host has chosen, and begin to delete what visitors have left as it expires.

    folder: of pictures; None for the app's samples. host, port: where the server listens. say: called with the line
    that names the files which are left out. choices: of Stand's fields, where they are not to be the defaults. Raises
    UserError for a folder without pictures that can be shown, and for an address that is none.
    """
    global _stand
    choices["address"] = checked_address(choices.get("address", "")) or reachable(host, port)
    _stand = Stand(host_pictures(folder, say), **choices)
    visits.delete_expired_from_now_on(_stand.keep)
    return _stand


def checked_address(address: str) -> str:
    """An address without the slash at its end. Raises UserError for what is no address of a server."""
    if address and not re.fullmatch(r"https?://[\w.\-\[\]:]+/?", address):
        raise UserError(
            "--stand-address must be how phones reach this server, such as http://192.168.1.5:8501; "
            f"got {printable(address)!r}."
        )
    return address.rstrip("/")


def reachable(host: str, port: int) -> str:
    """The address at which other machines reach a server that listens on `host`; "" for none."""
    listening = ipaddress.ip_address(host)
    name = "" if listening.is_loopback else _own_address() if listening.is_unspecified else str(listening)
    return name and f"http://{f'[{name}]' if ':' in name else name}:{port}"


def _own_address() -> str:
    """This machine's address on its network: that of the way out or, without one, of its name; "" for none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # chooses the way and sends nothing
            return probe.getsockname()[0]
        except OSError:
            pass
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    except OSError:
        return ""
    return next((name for name in sorted(found) if not ipaddress.ip_address(name).is_loopback), "")
