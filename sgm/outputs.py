"""The app's outputs folder, and the file lock by which one process owns it.

The operating system releases the lock when its process ends, also by `kill -9`. A file beside the lock describes its
owner; it is for messages only and is ignored while the lock is free.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sgm.errors import UserError
from sgm.paths import refusals_explained, replacing, user_path

LOCK, OWNER = "app.lock", "app.json"  # their names in the folder
BROWSER = "sgm_browser"  # a cookie that tells the browsers of the page apart


@dataclass(frozen=True)
class Owner:
    """The process that holds the lock. address: of its page, or ""; since: start in seconds since 1970."""

    pid: int
    address: str
    since: float

    def __str__(self) -> str:
        return f"process {self.pid}, since {time.strftime('%d %b %Y, %H:%M', time.localtime(self.since))}"


class FolderInUse(UserError):
    """Another process, or this one, owns the outputs folder already. address: of its page, "" where it is not known."""

    def __init__(self, folder: Path, owner: Owner | None) -> None:
        self.address = owner.address if owner else ""
        at, who = f" at {self.address}" if self.address else "", f" ({owner})" if owner else ""
        super().__init__(
            f"sgm app is already running{at}{who} and owns the outputs folder {folder}: open it (its History shows "
            "these clips), or name another folder in SGM_OUTPUTS and start again."
        )


class FolderLock:
    """Exclusive ownership of an outputs folder, which is created if missing, until `release` or the process's end.

    Raises FolderInUse if the folder has an owner, in this process or another; UserError if it cannot be locked.
    """

    def __init__(self, folder: Path, address: str = "") -> None:
        from filelock import FileLock  # imported here, since `sgm --help` does not need it

        self.folder, self.address = folder, address
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
        self._renewing = threading.Lock()
        self._acquire()

    def renew(self) -> None:
        """Make and lock the folder anew where it, or the lock's file, was deleted meanwhile. Raises as the class."""
        with self._renewing:
            if self._identity != _identity(self.folder / LOCK):
                self._lock.release()
                self._acquire()

    def _acquire(self) -> None:
        from filelock import Timeout

        folder = self.folder
        advice = "name another folder, on a disk of this computer, in SGM_OUTPUTS and start the app again"
        with refusals_explained(folder, advice, "written and locked"):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except (Timeout, NotImplementedError) as error:
                if isinstance(error, Timeout) and (folder / LOCK).exists():
                    raise FolderInUse(folder, _read(folder)) from None
                raise OSError(errno.ENOLCK, "no file can be made or locked there") from error
        self._identity = _identity(folder / LOCK)
        _write(folder, Owner(os.getpid(), self.address, time.time()))

    def release(self) -> None:
        """Release the lock. Its file stays: another process may have it open."""
        if self._lock.is_locked:
            if self._identity == _identity(self.folder / LOCK):
                with suppress(OSError):
                    (self.folder / OWNER).unlink()
            self._lock.release()


def outputs_folder() -> Path:
    """`$SGM_OUTPUTS`, else `outputs` in the current folder. Raises UserError for an unknown home."""
    return user_path(os.environ.get("SGM_OUTPUTS") or "outputs").absolute()


def owner_of(folder: Path) -> Owner | None:
    """The present owner of a folder; None if it has none or cannot be read."""
    from filelock import FileLock, Timeout

    if not (folder / LOCK).is_file():
        return None
    try:
        with FileLock(folder / LOCK, timeout=0):
            return None
    except Timeout:
        return _read(folder)
    except (OSError, NotImplementedError):
        return None


_reserved: dict[Path, FolderLock] = {}


def reserve(folder: Path, address: str) -> None:
    """Lock a folder now, for this process's first `take` of it. Raises as FolderLock does."""
    _reserved[folder] = FolderLock(folder, address)


def take(folder: Path, address: str = "") -> FolderLock:
    """The lock that this process has reserved for a folder, else a new one. Raises as FolderLock does."""
    return _reserved.pop(folder, None) or FolderLock(folder, address)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another of the same name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _read(folder: Path) -> Owner | None:
    try:
        content = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        owner = Owner(int(content["pid"]), str(content["address"]), float(content["since"]))
        str(owner)  # of a date that there is
        return owner
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _write(folder: Path, owner: Owner) -> None:
    """Write the owner's file atomically. Failures are ignored: messages then say less."""
    with suppress(OSError), replacing(folder / OWNER) as temporary:
        temporary.write_text(json.dumps(asdict(owner)), encoding="utf-8")
