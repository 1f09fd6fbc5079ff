"""Downloads of weights from the Hugging Face hub: resumed after interruptions, checked, renamed when complete.

Whatever the hub, its storage servers, the proxy or the disk do, nothing gets the official name unchecked, and the error
is one sentence.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Generator
from pathlib import Path
from urllib.parse import urlsplit

from sgm.errors import UserError
from sgm.hub_errors import DownloadError, RefusedError, errors_explained, of_http
from sgm.paths import check_writable, exists, is_file, locked, patiently, refusals_explained, rename_new, user_path
from sgm.versions import ALL_VERSIONS, Version, checkpoint_folders

logger = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPARE = 256 << 20  # bytes of disk space to be left free
_LARGEST = 1 << 40  # bytes that a file of weights may have
_TRIES = 5  # connections in a row that bring nothing


def download_weights(
    version: str,
    folder: str | Path | None = None,
    *,
    endpoint: str | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> Path:
    """Download a version's official file into `folder` (default: the first of `checkpoint_folders`); return its path.

    An interrupted download is resumed. Size and, where the hub gives one, SHA-256 are checked before the file gets its
    name; without one, a warning is logged. A file that lies there already is kept if it passes the same checks, or
    is whole and cannot be compared since the hub is not reached; one that is damaged is replaced.
    endpoint: another hub's address. on_progress(phase, share) is called with "download" or "check" and the share that
    is done, 0 to 1.
    Raises UserError for an unknown version, DownloadError for a hub that cannot be reached, refuses, or sends other
    content than it announced; for another download of the same file that is running; for a whole file of another size
    that lies there; and for a disk that is full or cannot be written.
    """
    if version not in ALL_VERSIONS:
        raise UserError(f"Version '{version}' is unknown; choose one of {', '.join(ALL_VERSIONS)}.")
    model = ALL_VERSIONS[version]
    if model.repo is None:
        raise UserError(f"{version} is not to be downloaded. {model.how_to_get}")
    target = (user_path(folder) if folder is not None else checkpoint_folders()[0]) / f"{version}.safetensors"
    check_writable(target.parent)
    if (exists(target) or target.is_symlink()) and not is_file(target):
        raise DownloadError(f"{target} is no file: move it away, or name another folder with --to.")
    damage = _damage(target)
    try:
        url, size, etag, headers = _announced(model, endpoint)
    except DownloadError as error:
        if not is_file(target) or damage:
            raise
        logger.warning("%s is whole, but could not be compared with the hub's: %s", target, error)
        return target
    report = on_progress or (lambda phase, share: None)
    busy = f"Another download of {version} to {target.parent} is running: wait for it."
    with locked(target.with_name(f".{version}.lock"), busy, "--to", DownloadError):
        if is_file(target) and not (damage := _damage(target)):
            if (there := target.stat().st_size) != size:
                raise DownloadError(
                    f"{target} is another file than the hub's: it has {there} bytes, the hub's {size}. Nothing has "
                    "been changed: move it away to download the hub's, or name another folder with --to."
                )
            damage = _wrong_checksum(target, size, etag, report)
            if not damage:
                return target
        if damage:
            logger.warning("%s is downloaded again, since what lies there is damaged.", target)
        return _download(model, target, url, size, etag, headers, report, damage)


def _announced(model: Version, endpoint: str | None) -> tuple[str, int, str, dict[str, str]]:
    """Ask the hub about a version's file: its address, size in bytes, ETag, and the headers to send for it."""
    with errors_explained(model):
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url  # imported here: they take a second
        from huggingface_hub.utils import build_hf_headers

        constants.HF_HUB_DISABLE_TELEMETRY = True  # with it, any other answer of the hub is read first, however long
        hub = endpoint or constants.ENDPOINT
        _check_address(hub, f"The hub's address (HF_ENDPOINT) is {hub}")
        url = hf_hub_url(model.repo or "", model.hub_file, endpoint=endpoint)
        meta = get_hf_file_metadata(url, endpoint=endpoint)
        _check_address(meta.location, f"The hub says that {model.hub_file} lies at {meta.location}")
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if urlsplit(meta.location)[:2] != urlsplit(url)[:2]:
            headers.pop("authorization", None)  # the token is for the hub, not for its storage servers
    etag = (meta.etag or "").strip('"').lower()
    if not meta.size or not etag or not 0 < meta.size <= _LARGEST:
        raise DownloadError(f"The hub does not say how large {model.hub_file} of {model.repo} is; try again later.")
    return meta.location, meta.size, etag, headers


def _check_address(address: str, said: str) -> None:
    """Raise DownloadError for what is no address of HTTP."""
    try:
        parts = urlsplit(address)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 443) > 0
    except ValueError:  # of a bad port, or brackets
        right = False
    if not right:
        raise DownloadError(f"{said}, which is no address of a server: it must be like https://huggingface.co.")


def _download(
    model: Version,
    target: Path,
    url: str,
    size: int,
    etag: str,
    headers: dict[str, str],
    report: Callable[[str, float], None],
    replace: str,
) -> Path:
    """Bring a file whole, check it and give it its name."""
    # Named by the content, so that only it is resumed; by a hash, since an ETag may hold anything.
    part = target.with_name(f".{model.name}-{hashlib.sha256(etag.encode()).hexdigest()[:16]}.part")
    if part.is_symlink() or (exists(part) and not is_file(part)):
        raise DownloadError(f"{part} is no file of this program's: delete it, then start again.")
    done = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(target.parent).free
    if free < size - done + _SPARE:
        raise DownloadError(
            f"{model.name} needs {(size - done) / 1e9:.2f} GB more, but {target.parent} has {free / 1e9:.2f} GB free: "
            "make room, or name another place with --to."
        )
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with errors_explained(model, part, size):
        file = io.FileIO(os.open(part, flags, 0o666), "r+")
    count: int | None = done
    try:
        with file, contextlib.closing(_fetch(url, headers, file, size)) as steps:
            while count is not None:
                report("download", min(count / size, 1))  # outside of the boundary: its errors are the caller's
                with errors_explained(model, part, size):
                    count = next(steps, None)
    except DownloadError as error:
        if isinstance(error, _Unannounced) or not part.stat().st_size:
            part.unlink()
        raise
    problem = _wrong_checksum(part, size, etag, report)
    if not _SHA256.fullmatch(etag):
        logger.warning("The hub gives no checksum of %s: only its size and header are checked.", model.hub_file)
        problem = "cannot be read as weights" if _damage(part) else ""
    if problem:
        part.unlink()
        raise DownloadError(
            f"What came as {model.hub_file} of {model.repo} {problem}: it was damaged on its way or is not genuine, "
            "and has been deleted. Try again."
        )
    with refusals_explained(target):
        patiently(os.replace if replace else rename_new, part, target)
    return target


class _Unannounced(DownloadError):
    """A server that sends something else than it announced."""


def _fetch(url: str, headers: dict[str, str], file: io.FileIO, size: int) -> Generator[int]:
    """Append to a file what it lacks of `size` bytes, over as many connections as it takes; yields its size so far.

    Not by the hub library's `http_get`, which unpacks what is compressed and writes whatever comes, to the disk's end.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import http_stream_backoff

    if (count := file.seek(0, os.SEEK_END)) > size:
        count = _emptied(file)
    failures = 0
    while count < size:
        before = count
        resumed = {"Range": f"bytes={count}-"} if count else {}
        try:
            with http_stream_backoff(
                "GET",
                url,
                headers={**headers, **resumed},
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                retry_on_exceptions=(),
                retry_on_status_codes=(),  # else it waits for as long as the hub says
            ) as response:
                if response.status_code >= 400:
                    raise RefusedError(response.status_code)
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise _Unannounced("The hub sends a compressed file, which was not asked for: try again later.")
                if count and response.status_code != 206:  # from the start again
                    count = _emptied(file)
                for chunk in response.iter_raw():
                    count += len(chunk)
                    if count > size:
                        raise _Unannounced(
                            f"The hub sends more than the {size} bytes that it announced: it is faulty or not genuine. "
                            "What came has been deleted."
                        )
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[file.write(rest) :]
                    yield count
        except Exception as error:
            if not of_http(error) and not (isinstance(error, RefusedError) and error.may_pass):
                raise
            failures = 0 if count > before else failures + 1
            if failures > _TRIES:
                raise
            time.sleep(1)
        else:
            if count < size:
                raise EOFError  # ended in good order, but early
    os.fsync(file.fileno())


def _emptied(file: io.FileIO) -> int:
    file.truncate(0)
    return file.seek(0)


def _damage(path: Path) -> str:
    """Why a file cannot be weights, by its header; "" if it can, or is not there."""
    if not is_file(path):
        return ""
    from sgm.formats.files import WeightsError, open_tensors  # imported here, since torch takes a second

    try:
        open_tensors(path).close()
    except WeightsError as error:
        return str(error)
    return ""


def _wrong_checksum(path: Path, size: int, etag: str, report: Callable[[str, float], None]) -> str:
    """What is wrong with a file's SHA-256, in words; "" if nothing, or if the hub's ETag is no SHA-256."""
    if not _SHA256.fullmatch(etag):
        return ""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(16 << 20):
            digest.update(block)
            done += len(block)
            report("check", done / size)
    checksum = digest.hexdigest()
    return "" if checksum == etag else f"has the checksum {checksum[:12]}…, but the hub announced {etag[:12]}…"
