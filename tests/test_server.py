"""`sgm app` as strangers meet it: other names for this machine, other pages, files in the current folder."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

ROOT = Path(__file__).resolve().parents[1]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
HOSTILE = """
[server]
address = "0.0.0.0"
allowedHosts = ["*"]
enableCORS = false
enableXsrfProtection = false
enableAgentApi = true
baseUrlPath = "elsewhere"
sslCertFile = "none.pem"
corsAllowedOrigins = ["http://evil.example"]
[client]
allowedOrigins = ["http://evil.example"]
[theme]
base = "dark"
"""
SCRIPT = "from sgm.cli import main\nmain()\n"  # as pip writes it for the command `sgm`


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def running(command: list[str], port: int, **process: object) -> Iterator[int]:
    """Run a server until the block ends; yields its port."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **process) as server:  # pyright: ignore
        try:
            while server.poll() is None:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield port
        finally:
            server.kill()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose files would turn protections off, or be imported in place of libraries."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / ".streamlit").mkdir()
    (folder / ".streamlit" / "config.toml").write_text(HOSTILE)
    (folder / ".streamlit" / "secrets.toml").write_text('PYTHONPATH = "."\n[auth]\ncookie_secret = "known"\n')
    for name in ("sgm", "typer", "streamlit", "starlette", "torch", "app"):
        (folder / f"{name}.py").write_text("open('executed', 'w').close()")
    return folder


@pytest.fixture(scope="module")
def page(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """`sgm app` in that folder, in an environment that also speaks against protections; yields its port."""
    home, port = tmp_path_factory.mktemp("home"), free_port()
    shutil.copytree(hostile / ".streamlit", home / ".streamlit")
    script = home / "sgm"
    script.write_text(SCRIPT)
    speaking = {"STREAMLIT_SERVER_ENABLE_CORS": "false", "STREAMLIT_SERVER_ALLOWED_HOSTS": '["*"]'}
    environment = {**os.environ, **speaking, "PYTHONPATH": str(ROOT), "HOME": str(home), "USERPROFILE": str(home)}
    command = [sys.executable, str(script), "app", "--no-browser", "--port", str(port)]
    with running(command, port, cwd=hostile, env=environment):
        yield port


def status(port: int, path: str = "/_stcore/health", method: str = "GET", **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse().status
    connection.close()
    return answer


def opens(port: int, host: str, origin: str | None) -> bool:
    """Whether a WebSocket opens that is asked for at another name, or from another page."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        address = f"ws://{host}/_stcore/stream"
        try:
            with connect(address, sock=connection, origin=origin, subprotocols=["streamlit"], proxy=None):  # pyright: ignore
                return True
        except InvalidStatus as refused:
            return refused.response.status_code != 403


def drawn(port: int, origin: str | None = None) -> bytes:
    """What the page's script draws for a page of that origin. It runs to its end, without an exception."""
    address, content = f"ws://127.0.0.1:{port}/_stcore/stream", b""
    with connect(address, subprotocols=["streamlit"], origin=origin, proxy=None, max_size=None) as page:  # pyright: ignore
        page.send(BackMsg(rerun_script=ClientState()).SerializeToString())
        while True:
            message = ForwardMsg.FromString(bytes(page.recv(60)))  # pyright: ignore
            if message.WhichOneof("type") == "script_finished":
                assert message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY
                return content
            assert message.delta.new_element.WhichOneof("type") != "exception"
            content += message.SerializeToString()


@pytest.mark.parametrize(
    ("host", "origin", "own"),
    [
        ("127.0.0.1:{}", "http://127.0.0.1:{}", True),
        ("localhost:{}", "http://localhost:{}", True),
        ("127.0.0.1:{}", None, True),  # no browser
        ("localhost:9", "http://localhost:9", True),  # a tunnel's end
        ("evil.example:{}", "http://evil.example:{}", False),
        ("evil.example:{}", None, False),
        ("127.0.0.1.evil.example:{}", None, False),
        ("127.0.0.1:{}", "http://evil.example:{}", False),
        ("127.0.0.1:{}", "http://127.0.0.1:9", False),
        ("127.0.0.1:{}", "http://localhost:{}", False),
        ("127.0.0.1:{}", "https://127.0.0.1:{}", False),
        ("127.0.0.1:{}", "null", False),
    ],
)
def test_only_its_own_page_is_answered(page: int, host: str, origin: str | None, own: bool) -> None:
    host, origin = host.format(page), origin and origin.format(page)
    headers = {"Host": host} | ({"Origin": origin} if origin else {})
    assert status(page, **headers) == (200 if own else 403)
    assert opens(page, host, origin) == own


def test_the_current_folder_changes_nothing(page: int, hostile: Path) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", page, timeout=20)
    connection.request("GET", "/_stcore/host-config", headers={"Origin": f"http://127.0.0.1:{page}"})
    answer = connection.getresponse()
    assert json.loads(answer.read())["allowedOrigins"] == []
    assert answer.headers.get("Access-Control-Allow-Origin") != "*"
    assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'self'"
    connection.request("GET", "/")
    cookie = connection.getresponse().headers["Set-Cookie"]
    assert re.fullmatch(r"sgm_browser=\w{32}; .*; HttpOnly; SameSite=Lax", cookie)
    connection.close()
    assert b"Generate" in drawn(page)
    assert status(page, "/_stcore/agent/interact", "POST") in (403, 404, 405)  # Streamlit's agent API is off
    assert not (hostile / "executed").exists()


def test_streamlit_run_refuses_foreign_names_and_shows_nothing_to_other_ports(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "app/main.py", f"--server.port={port}", "--server.headless=1"]
    with running(command, port, cwd=ROOT, env={**os.environ, "SGM_OUTPUTS": str(tmp_path)}):
        assert opens(port, f"localhost:{port}", f"http://localhost:{port}")
        assert not opens(port, f"evil.example:{port}", f"http://evil.example:{port}")
        for origin, own in ((f"http://127.0.0.1:{port}", True), ("http://127.0.0.1:9", False)):
            assert (b"Generate" in drawn(port, origin), b"own address" in drawn(port, origin)) == (own, not own)


OPENS = """address => new Promise(done => {
    const socket = new WebSocket(address, ["streamlit"]);
    socket.onopen = () => done(true);
    socket.onerror = () => done(false);
})"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed (Debian: chromium)")
def test_a_browser_is_refused_under_another_name_and_on_other_pages(page: int) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

    class Blank(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Blank) as other, sync_api.sync_playwright() as playwright:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        flags = ["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        tab = browser.new_page()
        for document, stream, own in (
            (f"http://127.0.0.1:{page}/_stcore/health", f"127.0.0.1:{page}", True),
            (f"http://evil.example:{page}/_stcore/health", f"evil.example:{page}", False),
            (f"http://127.0.0.1:{other.server_port}/", f"127.0.0.1:{page}", False),
            (f"http://evil.example:{other.server_port}/", f"evil.example:{page}", False),
        ):
            tab.goto(document)
            assert tab.evaluate(OPENS, f"ws://{stream}/_stcore/stream") == own, document
        browser.close()
        other.shutdown()


def test_training_several_configs_imports_nothing_from_the_current_folder(hostile: Path, tmp_path: Path) -> None:
    (tmp_path / "sgm").write_text(SCRIPT)
    for name in ("a.yaml", "b.yaml"):
        (hostile / name).write_text("no config\n")
    command = [sys.executable, str(tmp_path / "sgm"), "train", "a.yaml", "b.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=hostile, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.startswith("Error: a.yaml is not a config")
    assert not (hostile / "executed").exists()
