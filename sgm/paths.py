"""Paths that users name: home folders, looking at files, writing them whole, and never over another's.

Each function turns what the system refuses (permissions, names that are too long, loops of links, full disks) into a
UserError that names the path.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from sgm.amounts import file_size
from sgm.errors import UserError


def user_path(text: str | Path) -> Path:
    """A path as a user writes it, with `~` for the home folder. Raises UserError for "", and for an unknown home."""
    if not str(text).strip():
        raise UserError("An empty path is given: name a file or a folder (a variable may be unset).")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text} cannot be found: this user has no home folder. Write the path in full.") from None


def exists(path: Path) -> bool:
    """Whether something lies at a path, links followed. Raises UserError where that cannot be known."""
    return _mode(path) is not None


def is_file(path: Path) -> bool:
    """Whether a path is a regular file, links followed. Raises UserError where that cannot be known."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder, links followed. Raises UserError where that cannot be known."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def contents(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name, without hidden entries. Raises UserError where it cannot be read."""
    with refusals_explained(folder):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


@contextlib.contextmanager
def refusals_explained(
    path: Path, advice: str = "check the name, and the permissions of its folders", verb: str = "used"
) -> Iterator[None]:
    """Raise a UserError that names the path for an OSError inside, or for a name that no file can have."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:
        in_the_way = isinstance(error, (FileExistsError, NotADirectoryError))
        reason = "a file is in the way" if in_the_way else getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be {verb} ({reason}): {advice}.") from error


writes_explained = functools.partial(refusals_explained, advice="make room or choose another place", verb="written")


def nearest_folder(path: Path) -> Path:
    """The nearest of a path and its parents that exists. Raises UserError where that cannot be known."""
    path = path.absolute()
    return next((place for place in (path, *path.parents) if exists(place)), path)


def check_writable(folder: Path, size: int = 0) -> None:
    """Raise UserError for a folder that cannot be written or made, or whose disk has less than `size` bytes free."""
    nearest = nearest_folder(folder)
    if not is_folder(nearest):
        raise UserError(f"Nothing can be written to {folder}: {nearest} is a file. Choose another place.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"Nothing can be written to {folder} (permission denied at {nearest}): choose another place.")
    with refusals_explained(nearest):
        free = shutil.disk_usage(nearest).free
    if free < size:
        raise UserError(
            f"{folder} needs {file_size(size)}, but has {file_size(free)} free: make room or choose another place."
        )


def private_folder() -> Path:
    """A temporary folder of this user alone: the same one each time, unless another user has taken its name."""
    if os.name == "nt":  # there, each user has a folder for temporary files
        folder = Path(tempfile.gettempdir(), "sgm-video")
        folder.mkdir(exist_ok=True)
        return folder
    folder = Path(tempfile.gettempdir(), f"sgm-video-{os.getuid()}")
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
        if stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077:
            return folder
    return Path(tempfile.mkdtemp(prefix="sgm-video-"))


@contextlib.contextmanager
def replacing(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A temporary name beside `path` for a file or folder, renamed to `path` at the end and deleted on errors.

    Files reach the disk before they get their name, so that a power cut leaves the old file or the new one. new: raise
    FileExistsError at the end rather than replace what another process has put there meanwhile. Raises OSError as the
    system does.
    """
    # Absolute, lest FFmpeg take a colon in a folder's name for a protocol; with the suffix, which encoders read.
    temporary = path.absolute().with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        (rename_new if new else os.replace)(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, busy: str, option: str, error: type[UserError] = UserError) -> Iterator[None]:
    """The exclusive right to what a lock file stands for, until the block or its process ends; the file is removed.

    Raises `error` with the sentence `busy` where another process has it, and where the disk knows no locks; then, and
    where nothing can be written, `option` is said to name another place.
    """
    from filelock import FileLock, Timeout

    with refusals_explained(path.parent, f"choose another place with {option}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(path, timeout=0)
            lock.acquire()
        except Timeout:
            raise error(busy) from None
        except NotImplementedError as missing:
            raise error(f"{path.parent} is on a disk without file locks: choose another with {option}.") from missing
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # still locked: whoever has it open sees that, and makes a new one
        lock.release()


def rename_new(temporary: Path, path: Path) -> None:
    """Rename a file or folder. Raises FileExistsError where the new name is taken, whoever takes it when."""
    if os.name == "nt":
        os.rename(temporary, path)
    elif temporary.is_dir():
        path.mkdir()
        os.replace(temporary, path)  # of an empty folder
    else:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a disk without hard links
            path.open("x").close()
            os.replace(temporary, path)
        else:
            temporary.unlink()


def numbered(path: Path) -> Iterator[Path]:
    """The path, then with -2, -3, ... before its suffix."""
    yield path
    yield from (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))


def write_new(path: Path, write: Callable[[Path], object]) -> Path:
    """Have a file written as `path`, or with -2, -3, ... before its suffix: nothing that exists is overwritten.

    An empty file takes the name before `write` begins, so that no other process can take it; the folder is made.
    Returns the name. Raises UserError if nothing can be written there.
    """
    name = path
    with writes_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in numbered(path):
            with contextlib.suppress(FileExistsError):
                name.open("x").close()
                break
        try:
            write(name)
        except BaseException:
            name.unlink(missing_ok=True)
            raise
    return name


def make_folder(path: Path) -> Path:
    """Make a new folder, `path` or with -2, -3, ... at its end where that is taken. Returns it; errors: `write_new`."""
    name, numbers = path, itertools.count(2)
    with writes_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                name.mkdir()
                return name
            except FileExistsError:
                name = path.with_name(f"{path.name}-{next(numbers)}")


def _mode(path: Path) -> int | None:
    """The kind of file at a path, as os.stat gives it; None where nothing is."""
    with refusals_explained(path):
        try:
            return os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
