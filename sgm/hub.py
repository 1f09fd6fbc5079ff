"""Downloads of weights from the Hugging Face hub: resumed after interruptions, checked, renamed when complete."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from sgm.errors import UserError
from sgm.versions import VERSIONS, Version, checkpoint_folders

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPARE = 256 << 20  # bytes of disk space to be left free


class DownloadError(UserError):
    """A download that failed; the message says why and what to do."""


def download_weights(
    version: str,
    folder: str | Path | None = None,
    *,
    endpoint: str | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> Path:
    """Download a version's official file into `folder` (default: the first of `checkpoint_folders`); return its path.

    An interrupted download is resumed. Size and, where the hub gives one, SHA-256 are checked before the file gets its
    name. endpoint: another hub's address. on_progress(phase, share) is called with "download" or "check" and the share
    that is done, 0 to 1.
    Raises UserError for an unknown version, DownloadError for a hub that cannot be reached or refuses, too little disk
    space, and content with another size or checksum than the hub announced.
    """
    if version not in VERSIONS:
        raise UserError(f"Version '{version}' is unknown; choose one of {', '.join(VERSIONS)}.")
    model = VERSIONS[version]
    if model.repo is None:
        raise UserError(f"{version} is not to be downloaded. {model.how_to_get}")
    target = Path(folder or checkpoint_folders()[0]) / f"{version}.safetensors"
    if target.is_file():
        return target
    report = on_progress or (lambda phase, share: None)
    from huggingface_hub import get_hf_file_metadata, hf_hub_url  # imported here, since it takes a second

    # The function below `hf_hub_download`, which itself (2.4) deletes an unfinished file and checks no checksum.
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with _errors_explained(model):
        url = hf_hub_url(model.repo, model.hub_file, endpoint=endpoint)
        meta = get_hf_file_metadata(url, endpoint=endpoint)
    size, etag = meta.size, (meta.etag or "").strip('"').lower()
    if not size or not etag:
        raise DownloadError(f"The hub does not say how large {model.hub_file} of {model.repo} is; try again later.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{version}-{etag[:16]}.part")  # named by the content, so that only it is resumed
        done = part.stat().st_size if part.is_file() else 0
    except OSError as error:
        raise DownloadError(f"Nothing can be written to {target.parent} ({error.strerror}): choose another.") from error
    if done > size:
        part.unlink()
        done = 0
    free = shutil.disk_usage(target.parent).free
    if free < size - done + _SPARE:
        raise DownloadError(
            f"{version} needs {(size - done) / 1e9:.2f} GB more, but {target.parent} has {free / 1e9:.2f} GB free: "
            "make room, or name another place with --to."
        )
    headers = build_hf_headers()
    if urlparse(meta.location).netloc != urlparse(url).netloc:
        headers.pop("authorization", None)  # the token is for the hub, not for its storage servers
    with _errors_explained(model, part, size), part.open("ab") as file:
        bar = _bar(lambda count: report("download", count / size))
        report("download", done / size)
        http_get(meta.location, file, resume_size=done, headers=headers, expected_size=size, tqdm_class=bar)
    if _SHA256.fullmatch(etag) and (checksum := _sha256(part, size, report)) != etag:
        part.unlink()
        raise DownloadError(
            f"What came as {model.hub_file} of {model.repo} has the checksum {checksum[:12]}…, but the hub announced "
            f"{etag[:12]}…: it was damaged on its way or is not genuine, and has been deleted. Try again."
        )
    os.replace(part, target)
    return target


@contextlib.contextmanager
def _errors_explained(model: Version, part: Path | None = None, size: int = 0) -> Iterator[None]:
    """Turn errors of the hub's library into DownloadErrors that say in a sentence what to do."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{model.repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{model.name} is given to those who accept its licence: log in at {page}, accept it there, run `hf auth "
            f"login` with a token of your account, then `sgm download {model.name}` again."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"The hub shows no {model.repo} to you. If it asks for a licence, log in with `hf auth login` and accept "
            f"it at {page}; otherwise it has been removed."
        ) from error
    except errors.EntryNotFoundError as error:
        raise DownloadError(f"{model.repo} has no {model.hub_file} (any more): see {page}.") from error
    except errors.OfflineModeIsEnabled as error:
        raise DownloadError("HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or bring the file.") from error
    except errors.HfHubHTTPError as error:
        code = getattr(error.response, "status_code", "an error")
        if code in (401, 403):
            raise DownloadError(
                f"The hub refuses {model.repo} ({code}): log in with `hf auth login`, and accept the licence at {page}."
            ) from error
        raise DownloadError(
            f"The hub answered {code} for {model.hub_file} of {model.repo}; try again later."
        ) from error
    except Exception as error:
        # The hub's library has changed its HTTP client more than once: errors of all of them are handled.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "requests", "urllib3"):
            if not isinstance(error, OSError):
                raise
            if error.errno is not None:
                raise DownloadError(f"{model.name} cannot be stored ({error.strerror}): make room.") from error
        if part is None:
            kind = type(error).__name__
            raise DownloadError(
                f"The hub cannot be reached ({kind}): is this machine online? {model.how_to_get}"
            ) from error
        done = part.stat().st_size if part.is_file() else 0
        raise DownloadError(
            f"The download broke off after {done / 1e9:.2f} of {size / 1e9:.2f} GB. Run `sgm download {model.name}` "
            "again: it goes on from there."
        ) from error


def _bar(show: Callable[[int], None]) -> Any:
    """A tqdm class that draws nothing and calls `show` with the number of bytes so far."""
    from tqdm import tqdm

    class Reporting(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **kwargs: Any) -> None:
            super().__init__(disable=True)
            self.count = initial

        def update(self, n: float | None = 1) -> None:
            self.count += int(n or 0)
            show(self.count)

    return Reporting


def _sha256(path: Path, size: int, report: Callable[[str, float], None]) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(16 << 20):
            digest.update(block)
            done += len(block)
            report("check", done / size)
    return digest.hexdigest()
