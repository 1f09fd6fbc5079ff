"""`sgm download` against a small hub on loopback, which can break off, refuse, and announce a false checksum."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sgm import UserError, download_weights
from sgm.versions import VERSIONS

CONTENT = bytes(range(256)) * 4000
ROW = VERSIONS["svd"]


class Hub(ThreadingHTTPServer):
    """Serves CONTENT as every file. status: what it answers; breaks: how often it breaks off half-way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.status, self.code, self.breaks = 200, "", 0
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
        if hub.status != 200:
            self.send_response(hub.status)
            if hub.code:
                self.send_header("X-Error-Code", hub.code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hub.etag}"')
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        if not body:
            return
        if hub.breaks:
            hub.breaks -= 1
            self.wfile.write(CONTENT[start : start + (len(CONTENT) - start) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(CONTENT[start:])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)  # as of a large file
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the hub library's attempts
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_comes_whole_and_once_with_progress(hub: Hub, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    path = download_weights("svd", tmp_path, endpoint=hub.url, on_progress=lambda *what: told.append(what))
    assert path == tmp_path / "svd.safetensors"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["svd.safetensors"]
    for phase in ("download", "check"):
        shares = [share for name, share in told if name == phase]
        assert shares == sorted(shares)
        assert shares[-1] == 1
    assert hub.asked[0][1] == f"/{ROW.repo}/resolve/main/svd.safetensors"
    before = len(hub.asked)
    assert download_weights("svd", tmp_path, endpoint=hub.url) == path
    assert len(hub.asked) == before  # it is there: nothing is asked


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


def test_what_cannot_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"svd_tiny is not to be downloaded. It ships with the project"):
        download_weights("svd_tiny", tmp_path)
    with pytest.raises(UserError, match="Version 'svd_9' is unknown; choose one of svd_tiny"):
        download_weights("svd_9", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        download_weights("svd", tmp_path / "file", endpoint="http://127.0.0.1:9")
