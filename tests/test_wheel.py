"""The wheel, unpacked far from the checkout, has all that `sgm sample` and `sgm app` need."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from sgm import __version__

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def environment(unpacked: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONIOENCODING": "utf-8"}


def test_holds_the_page_the_configs_and_the_small_model_only(unpacked: Path) -> None:
    bundle = unpacked / "sgm" / "_bundle"
    for folder in ("app", "configs"):
        assert _files(bundle / folder) == _files(ROOT / folder) != set()
    assert (bundle / ".streamlit" / "config.toml").is_file()
    shipped = {"README.md", "svd_tiny.safetensors", "u2netp.onnx", "u2netp.LICENSE"}
    assert {p.name for p in (bundle / "checkpoints").iterdir()} == shipped
    assert {p.name for p in unpacked.iterdir() if not p.name.endswith(".dist-info")} == {"sgm"}


def test_says_its_version_and_carries_types(unpacked: Path) -> None:
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    assert f"Version: {__version__}" in metadata.read_text(encoding="utf-8").splitlines()
    assert (unpacked / "sgm" / "py.typed").is_file()


def test_samples(unpacked: Path, environment: dict[str, str], tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "plain.png")
    command = [sys.executable, "-m", "sgm.cli", "sample", "plain.png", "--frames", "2", "--steps", "1"]
    command += ["--width", "96", "--height", "96"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / done.stdout.strip()).stat().st_size > 0


def test_page_runs(unpacked: Path, environment: dict[str, str], tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from streamlit.testing.v1 import AppTest
from sgm.versions import bundle
sys.path.insert(0, str(bundle()))
page = AppTest.from_file(str(bundle() / "app" / "main.py"), default_timeout=30).run()
assert not page.exception, page.exception
import app.jobs
print(Path(app.jobs.__file__).is_relative_to(Path(sys.argv[1])))
"""
    command = [sys.executable, "-c", code, str(unpacked)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True"


def test_page_is_served_to_this_machine_only(environment: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sgm.cli", "app", "--no-browser", "--port", str(port)]
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert _health(f"http://127.0.0.1:{port}/_stcore/health", running) == b"ok"
        with socket.socket() as other:
            other.settimeout(1)
            assert other.connect_ex(("127.0.0.2", port)) != 0
    finally:
        running.terminate()
        out, _ = running.communicate(timeout=20)
    assert f"The page is at http://127.0.0.1:{port};" in out.decode()
    assert "Streamlit" not in out.decode()


def _files(folder: Path) -> set[Path]:
    found = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {p for p in found if "__pycache__" not in p.parts}


def _health(url: str, running: subprocess.Popen[bytes]) -> bytes:
    for _ in range(150):
        assert running.poll() is None, running.communicate()[0].decode()
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                return answer.read()
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError(f"No answer from {url} within 30 s")
