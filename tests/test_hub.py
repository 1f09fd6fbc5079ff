"""`sgm download` against a small hub on loopback, which can break off, refuse, and announce a false checksum."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session
from safetensors.torch import save

from sgm import UserError, download_weights
from sgm.hub import DownloadError
from sgm.versions import VERSIONS

CONTENT = save({"w": torch.arange(1 << 20).to(torch.uint8)})
ROW = VERSIONS["svd"]
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBkTCCATagAwIBAgIUMQWXMyqL+Cz6HDLuKtRqGDR8kwowCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyNjA2NTQzMFoYDzIxMjYxMTAy
MDY1NDMwWjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAT29HEuimE73Rzg/5YoVWzx7L2CT8heDDI9d4pFTFK0PiGMKsM2+ho6
I2BI5SsJxZue4BzBWs+clSI6jjTjKMAlo2QwYjAdBgNVHQ4EFgQULAMDJwA6Vqvw
DkOkFLQwkmBSeWkwHwYDVR0jBBgwFoAULAMDJwA6VqvwDkOkFLQwkmBSeWkwDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0kAMEYC
IQDYAEmT7VlmtNfJYGxnBBpRv4rIf/zkQdWW+sgsV/uXnQIhAI0L2f1iyWxZOESK
BUVowS2D2IMWe8qhjrh8FK9pzO0/
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgAACQKi2wyuHIDgWN
cj6A6nJeSfMZiZtX0cQXvejda/ahRANCAAT29HEuimE73Rzg/5YoVWzx7L2CT8he
DDI9d4pFTFK0PiGMKsM2+ho6I2BI5SsJxZue4BzBWs+clSI6jjTjKMAl
-----END PRIVATE KEY-----
"""  # for 127.0.0.1, and its key, of no use elsewhere


class Hub(ThreadingHTTPServer):
    """Serves CONTENT as every file.

    status: what it answers, and get_status to GET; breaks: how often it breaks off half-way; headers: more of them, or
    others in place of its own; body: what it sends instead, without saying how much; wait: an event before the first
    byte of a body.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.status, self.code, self.breaks = 200, "", 0
        self.get_status = 200
        self.headers: dict[str, str] = {}
        self.body: Iterable[bytes] | None = None
        self.wait: threading.Event | None = None
        self.etag = hashlib.sha256(CONTENT).hexdigest()
        self.asked: list[tuple[str, str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        hub, wanted = self.server, self.headers.get("Range")
        hub.asked.append((self.command, self.path, wanted))
        if (status := hub.get_status if body and hub.status == 200 else hub.status) != 200:
            self.send_response(status)
            if hub.code:
                self.send_header("X-Error-Code", hub.code)
            for name, value in {"Content-Length": "0", **hub.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        start = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
        assert "/resolve/" not in self.path or self.headers["Accept-Encoding"] == "identity"
        moved = "Location" in hub.headers and not body
        self.send_response(302 if moved else 206 if wanted else 200)
        headers = {"X-Repo-Commit": "0" * 40, "ETag": f'"{hub.etag}"', "Content-Length": str(len(CONTENT) - start)}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        if body and hub.body is not None:
            del headers["Content-Length"]
        for name, value in {**headers, **hub.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        if hub.wait:
            hub.wait.wait(20)
        if hub.body is not None:
            with contextlib.suppress(OSError):
                for part in hub.body:
                    self.wfile.write(part)
            return
        if hub.breaks:
            hub.breaks -= 1
            self.wfile.write(CONTENT[start : start + (len(CONTENT) - start) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            with contextlib.suppress(OSError):  # whoever asked may have heard enough
                self.wfile.write(CONTENT[start:])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_comes_whole_and_once_with_progress(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever else the hub's library asks, it asks there.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    address = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
    told: list[tuple[str, float]] = []
    path = download_weights("svd", tmp_path, endpoint=hub.url, on_progress=lambda *what: told.append(what))
    assert path == tmp_path / "svd.safetensors"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["svd.safetensors"]
    for phase in ("download", "check"):
        shares = [share for name, share in told if name == phase]
        assert shares == sorted(shares)
        assert shares[-1] == 1
    assert {place for _, place, _ in hub.asked} == {f"/{ROW.repo}/resolve/main/svd.safetensors"}
    hub.asked.clear()
    assert download_weights("svd", tmp_path, endpoint=hub.url) == path
    assert [command for command, *_ in hub.asked] == ["HEAD"]  # it is there: only its size is compared


def test_goes_on_where_the_connection_broke(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = 2
    assert download_weights("svd", tmp_path, endpoint=hub.url).read_bytes() == CONTENT
    first, *later = [wanted for command, _, wanted in hub.asked if command == "GET"]
    begun = [int(str(wanted).removeprefix("bytes=").removesuffix("-")) for wanted in later]
    assert first is None
    assert len(CONTENT) // 3 < begun[0] < begun[1] < len(CONTENT)


class Cancelled(Exception):
    pass


def test_goes_on_where_an_earlier_call_stopped(hub: Hub, tmp_path: Path) -> None:
    def stop(phase: str, share: float) -> None:
        if share >= 0.5:
            raise Cancelled

    hub.breaks = 1
    with pytest.raises(Cancelled):
        download_weights("svd", tmp_path, endpoint=hub.url, on_progress=stop)
    (part,) = tmp_path.iterdir()
    assert not part.name.endswith(".safetensors")
    done = part.stat().st_size
    hub.asked.clear()
    assert download_weights("svd", tmp_path, endpoint=hub.url).read_bytes() == CONTENT
    assert [wanted for command, _, wanted in hub.asked if command == "GET"] == [f"bytes={done}-" if done else None]
    assert [p.name for p in tmp_path.iterdir()] == ["svd.safetensors"]


def test_a_part_of_other_content_is_not_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / ".svd-0123456789abcdef.part").write_bytes(b"of an older file")
    assert download_weights("svd", tmp_path, endpoint=hub.url).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "GatedRepo", "given to those who accept its licence: log in at .*hf auth login.*sgm download svd"),
        (403, "GatedRepo", "given to those who accept its licence"),
        (401, "", r"The hub refuses stabilityai/stable-video-diffusion-img2vid \(401\): log in with `hf auth login`"),
        (404, "EntryNotFound", "has no svd.safetensors"),
        (404, "RepoNotFound", "The hub shows no"),
        (500, "", "The hub answered 500 for svd.safetensors"),
    ],
)
def test_a_refusal_is_explained(hub: Hub, tmp_path: Path, status: int, code: str, said: str) -> None:
    hub.status, hub.code = status, code
    with pytest.raises(UserError, match=said) as caught:
        download_weights("svd", tmp_path, endpoint=hub.url)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("status", "asked"), [(503, 6), (429, 6), (416, 1)])  # 6: what may pass is waited for
def test_a_storage_servers_refusal_is_explained(hub: Hub, tmp_path: Path, status: int, asked: int) -> None:
    hub.get_status, hub.headers = status, {"Retry-After": "100000"}
    with pytest.raises(DownloadError, match=rf"The hub answered {status} for svd.safetensors .*; try again later"):
        download_weights("svd", tmp_path, endpoint=hub.url)
    assert [command for command, *_ in hub.asked] == ["HEAD", *["GET"] * asked]
    assert not list(tmp_path.iterdir())


def test_a_false_checksum_is_told_and_nothing_stays(hub: Hub, tmp_path: Path) -> None:
    hub.etag = "0" * 64
    with pytest.raises(UserError, match=r"has the checksum .* but the hub announced 000000000000…"):
        download_weights("svd", tmp_path, endpoint=hub.url)
    assert not list(tmp_path.iterdir())


def test_a_connection_that_never_holds_is_told_and_what_came_stays(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = 10**9
    with pytest.raises(UserError, match=r"broke off after .* of .* GB. Run `sgm download svd` again: it goes on"):
        download_weights("svd", tmp_path, endpoint=hub.url)
    assert not (tmp_path / "svd.safetensors").exists()
    hub.breaks = 0
    assert download_weights("svd", tmp_path, endpoint=hub.url).read_bytes() == CONTENT


def test_offline_is_said_plainly(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    with pytest.raises(UserError, match=r"The hub cannot be reached .* is this machine online\? Accept the licence at"):
        download_weights("svd", tmp_path, endpoint=url)


def test_a_full_disk_is_told_before_the_start(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"svd needs 0.00 GB more, but .* has 0.00 GB free: make room"):
        download_weights("svd", tmp_path, endpoint=hub.url)
    assert [command for command, *_ in hub.asked] == ["HEAD"]


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        ({}, itertools.repeat(bytes(1 << 16)), "sends more than the [0-9]+ bytes that it announced"),
        ({"Content-Encoding": "gzip"}, None, "sends a compressed file"),
        ({"X-Linked-Size": "9" * 400}, None, "does not say how large"),
        ({"X-Linked-Size": "-5"}, None, "does not say how large"),
        ({"X-Linked-Size": "many"}, None, "svd"),
        ({"Location": "http://[::1"}, None, "svd.safetensors"),
        ({"Location": "http://127.0.0.1:99999/x"}, None, "svd.safetensors"),
        ({"Location": "file:///etc/passwd"}, None, "svd.safetensors"),
        ({"Content-Length": "-5"}, None, "The hub's answer for svd.safetensors cannot be used"),
        ({}, [b"too little"], "broke off after 0.00 of 0.00 GB"),
        ({}, [bytes(len(CONTENT))], "has the checksum"),
        ({"X-Linked-Etag": "no checksum"}, [bytes(len(CONTENT))], "cannot be read as weights"),
    ],
)
def test_a_hub_that_lies_is_one_sentence_and_leaves_nothing(
    hub: Hub, tmp_path: Path, headers: dict[str, str], body: Iterable[bytes] | None, said: str
) -> None:
    hub.headers, hub.body = headers, body
    with pytest.raises(DownloadError, match=said):
        download_weights("svd", tmp_path, endpoint=hub.url)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 100
    assert not (tmp_path / "svd.safetensors").exists()


def test_an_etag_may_hold_anything_and_a_missing_checksum_is_said(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.etag = "../" * 100
    assert download_weights("svd", tmp_path, endpoint=hub.url).read_bytes() == CONTENT
    assert "The hub gives no checksum of svd.safetensors" in caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["svd.safetensors"]


def test_two_at_once_are_one_download_and_one_refusal(hub: Hub, tmp_path: Path) -> None:
    hub.wait = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(download_weights, "svd", tmp_path, endpoint=hub.url)
        while not any(command == "GET" for command, *_ in hub.asked):
            threading.Event().wait(0.01)
        with pytest.raises(DownloadError, match=r"Another download of svd to .* is running"):
            download_weights("svd", tmp_path, endpoint=hub.url)
        hub.wait.set()
        assert first.result().read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["svd.safetensors"]


@pytest.mark.parametrize("content", [b"", CONTENT[:5000], b"not weights at all", CONTENT[:-1] + b"\0"])
def test_a_damaged_file_is_downloaded_again(
    hub: Hub, tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "svd.safetensors").write_bytes(content)
    assert download_weights("svd", tmp_path, endpoint=hub.url).read_bytes() == CONTENT
    assert "what lies there is damaged" in caplog.text


def test_a_whole_file_of_another_size_is_told_and_kept(hub: Hub, tmp_path: Path) -> None:
    own = save({"w": torch.zeros(3)})
    (tmp_path / "svd.safetensors").write_bytes(own)
    with pytest.raises(DownloadError, match=r"is another file than the hub's: it has .* bytes"):
        download_weights("svd", tmp_path, endpoint=hub.url)
    hub.status = 500
    assert download_weights("svd", tmp_path, endpoint=hub.url).read_bytes() == own  # nothing to compare it with


@pytest.mark.skipif(sys.platform == "win32", reason="links need an administrator on Windows")
def test_what_is_in_the_way_is_told(hub: Hub, tmp_path: Path) -> None:
    part = tmp_path / f".svd-{hashlib.sha256(hub.etag.encode()).hexdigest()[:16]}.part"
    part.symlink_to(tmp_path / "another's")
    with pytest.raises(DownloadError, match="is no file of this program's"):
        download_weights("svd", tmp_path, endpoint=hub.url)
    assert not (tmp_path / "another's").exists()
    (tmp_path / "svd.safetensors").symlink_to("nowhere")
    with pytest.raises(DownloadError, match=r"svd\.safetensors is no file"):
        download_weights("svd", tmp_path, endpoint=hub.url)
    (tmp_path / "svd.safetensors").unlink()
    (tmp_path / "svd.safetensors").mkdir()
    with pytest.raises(DownloadError, match=r"svd\.safetensors is no file"):
        download_weights("svd", tmp_path, endpoint=hub.url)
    with pytest.raises(UserError, match=r"File name too long|cannot be used"):
        download_weights("svd", tmp_path / ("x" * 300), endpoint=hub.url)


@pytest.mark.parametrize(
    ("variable", "value", "endpoint", "said"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "", "SOCKS proxy|proxy socks5"),
        ("HTTP_PROXY", "http://me:secret@127.0.0.1:9", "", r"the proxy http://127\.0\.0\.1:9 .*and running\?"),
        ("ALL_PROXY", "socks4://127.0.0.1:9", "", r"the proxy socks4://127\.0\.0\.1:9 .*is it an HTTP proxy"),
        ("HF_TOKEN", "hf_secret\u20ac", "", "The token of your login"),
        ("SSL_CERT_FILE", "/none.pem", "", r"a file of this machine cannot be read .*SSL_CERT_FILE"),
        ("", "", "huggingface.co", r"HF_ENDPOINT.* is huggingface\.co, which is no address"),
        ("", "", "file:///etc", "HF_ENDPOINT.* is file:///etc, which is no address"),
        ("", "", "SELF-SIGNED", "certificate is not trusted .* SSL_CERT_FILE"),
    ],
)
def test_surroundings_are_explained(
    variable: str, value: str, endpoint: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy", variable or "HF_ENDPOINT"):
        monkeypatch.setenv(name, value if name == variable else "")
    close_session()  # the HTTP client has read the environment
    hub = self_signed(tmp_path) if endpoint == "SELF-SIGNED" else contextlib.nullcontext(endpoint or "http://192.0.2.1")
    with hub as address, pytest.raises(DownloadError, match=said) as caught:
        download_weights("svd", tmp_path / "weights", endpoint=address)
    close_session()
    assert "secret" not in str(caught.value)


def test_an_address_that_the_hubs_library_refuses(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sgm.cli", "download", "svd", "--to", str(tmp_path)]
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:99999"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "check HF_ENDPOINT" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@contextlib.contextmanager
def self_signed(folder: Path) -> Iterator[str]:
    """A server whose certificate nobody trusts; yields its address."""
    certificate = folder / "certificate.pem"
    certificate.write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Hub() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server.url.replace("http:", "https:")
        server.shutdown()


def test_what_cannot_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"svd_tiny is not to be downloaded. It ships with the project"):
        download_weights("svd_tiny", tmp_path)
    with pytest.raises(UserError, match="Version 'svd_9' is unknown; choose one of svd_tiny"):
        download_weights("svd_9", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        download_weights("svd", tmp_path / "file", endpoint="http://127.0.0.1:9")
