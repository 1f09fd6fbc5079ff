"""What goes wrong with the hub, the network and the disk during a download, each in a sentence that says what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.request import getproxies

from sgm.errors import UserError
from sgm.versions import Version

# Modules of the hub library's HTTP client, which it has changed more than once.
_HTTP_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")

# Their errors after something has answered.
_ANSWERED = ("RemoteProtocolError", "LocalProtocolError", "TooManyRedirects", "DecodingError", "ContentDecodingError")


class DownloadError(UserError):
    """A download that failed; the message says why and what to do."""


class RefusedError(Exception):
    """An answer of HTTP that is an error. code: its number; may_pass: whether the next answer may be another."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code, self.may_pass = code, code in (408, 429) or code >= 500


def of_http(error: Exception) -> bool:
    """Whether an error is the HTTP client's."""
    return type(error).__module__.partition(".")[0] in _HTTP_CLIENTS


@contextlib.contextmanager
def errors_explained(model: Version, part: Path | None = None, size: int = 0) -> Iterator[None]:
    """Turn every error into a DownloadError that says in a sentence what to do. part: the file while it is fetched."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:  # of the HTTP client, at its first look at the environment
        if "socks" not in str(error).lower():
            raise
        raise DownloadError(
            "A SOCKS proxy is set (ALL_PROXY or the like), for which a package is missing: run `python -m pip install "
            "socksio`, or name an HTTP proxy."
        ) from error
    except Exception as error:
        raise DownloadError(_explanation(error, model, part, size)) from error


def _explanation(error: Exception, model: Version, part: Path | None, size: int) -> str:
    from huggingface_hub import errors

    page = f"https://huggingface.co/{model.repo}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{model.name} is given to those who accept its licence: log in at {page}, accept it there, run `hf auth "
            f"login` with a token of your account, then `sgm download {model.name}` again."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"The hub shows no {model.repo} to you. If it asks for a licence, log in with `hf auth login` and accept "
            f"it at {page}; otherwise it has been removed."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return f"{model.repo} has no {model.hub_file} (any more): see {page}."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or bring the file."
    if isinstance(error, (RefusedError, errors.HfHubHTTPError)):
        code = error.code if isinstance(error, RefusedError) else getattr(error.response, "status_code", "an error")
        if code in (401, 403):
            return (
                f"The hub refuses {model.repo} ({code}): log in with `hf auth login`, and accept the licence at {page}."
            )
        return f"The hub answered {code} for {model.hub_file} of {model.repo}; try again later."
    if isinstance(error, OSError) and error.errno is not None and not of_http(error):
        if part is None:  # nothing is written yet
            return (
                f"The hub cannot be asked, since a file of this machine cannot be read ({_one_line(error)}): look at "
                "your login (HF_TOKEN_PATH, HF_HOME) and your certificates (SSL_CERT_FILE, SSL_CERT_DIR)."
            )
        return f"{model.name} cannot be stored ({error.strerror}): make room there, or name another place with --to."
    if isinstance(error, UnicodeEncodeError) or "header value" in str(error):
        return (
            "The token of your login (HF_TOKEN) holds characters that no token has: log in again with `hf auth login`."
        )
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            f"The hub's certificate is not trusted ({_one_line(error)}). If your network's proxy has a certificate of "
            "its own, name its file in SSL_CERT_FILE."
        )
    if part is not None and (of_http(error) or isinstance(error, EOFError)):
        done = part.stat().st_size if part.is_file() else 0
        return (
            f"The download broke off after {done / 1e9:.2f} of {size / 1e9:.2f} GB. Run `sgm download {model.name}` "
            "again: it goes on from there."
        )
    if (of_http(error) and type(error).__name__ not in _ANSWERED) or "proxy" in str(error):
        proxies = {re.sub(r"//[^/@]*@", "//", value) for kind, value in getproxies().items() if kind != "no"}
        through = f" through the proxy {' or '.join(sorted(proxies))}" if proxies else ""
        advice = "is it an HTTP proxy, and running?" if proxies else "is this machine online?"
        return f"The hub cannot be reached{through} ({type(error).__name__}): {advice} {model.how_to_get}"
    return (
        f"The hub's answer for {model.hub_file} cannot be used ({_one_line(error)}): check HF_ENDPOINT and other "
        "HF_… variables, or try later."
    )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
