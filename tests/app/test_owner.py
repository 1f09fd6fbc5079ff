"""One process owns an outputs folder: what a second one says, and that it touches nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import look
from app.jobs import FolderInUse, Job, Table
from sgm import Clip, Progress, UserError, VideoRequest
from sgm.outputs import owner_of

ROOT = Path(__file__).resolve().parents[2]
REQUEST = VideoRequest(frames=2, steps=1, height=64, width=96)
LIMIT = 60.0  # seconds, for what takes a few
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}

# Submits three jobs and writes what it runs into runs.txt; each is held until a file of its number lies there.
FIRST = """
import sys, time
from pathlib import Path
import numpy as np
from PIL import Image
from app.jobs import Table
from sgm import Clip, Progress, VideoRequest

folder, signals = Path(sys.argv[1]), Path(sys.argv[2])

def run(job, on_step, check):
    on_step(Progress("sample", 1, 2))
    with (signals / "runs.txt").open("a") as runs:
        runs.write(f"first {job.name}\\n")
    while not (signals / job.name).exists():
        time.sleep(0.01)
    return Clip(np.zeros((2, 64, 96, 3), np.uint8), 7, job.request.settings())

table = Table(folder, run, address="http://127.0.0.1:8599")
for name in "123":
    table.submit(VideoRequest(frames=2, steps=1, height=64, width=96), Image.new("RGB", (96, 64)), name)
time.sleep(600)
"""


def draw(job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
    return Clip(np.zeros((2, 64, 96, 3), np.uint8), 7, job.request.settings())


def until(happens: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT
    while not happens():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def content(folder: Path) -> dict[Path, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "app.lock")
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_two_tables_in_one_process(tmp_path: Path) -> None:
    first = Table(tmp_path, draw, address="http://127.0.0.1:8599")
    job = first.wait(first.submit(REQUEST, Image.new("RGB", (96, 64))).id, LIMIT)
    assert job is not None
    assert job.state == "done"
    before = content(tmp_path)
    with pytest.raises(FolderInUse, match=re.escape("http://127.0.0.1:8599")) as refused:
        Table(tmp_path, draw)
    assert refused.value.address == "http://127.0.0.1:8599"
    for said in (str(os.getpid()), str(tmp_path), "History", "SGM_OUTPUTS"):
        assert said in str(refused.value)
    assert content(tmp_path) == before
    first.close()
    assert owner_of(tmp_path) is None
    second = Table(tmp_path, draw)
    first.close()  # once more: the folder stays the second one's
    assert owner_of(tmp_path) is not None
    assert [known.id for known in second.jobs()] == [job.id]
    second.close()


def test_a_second_process_leaves_a_running_job_alone_and_takes_over_after_a_kill(tmp_path: Path) -> None:
    folder, signals = tmp_path / "outputs", tmp_path / "signals"
    signals.mkdir()
    runs = signals / "runs.txt"
    runs.touch()

    def states() -> dict[str, str]:
        records = [json.loads(path.read_text("utf-8")) for path in folder.glob("2*/job.json")]
        return {record["name"]: record["state"] for record in records}

    def resumed(job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        with runs.open("a") as file:
            file.write(f"second {job.name}\n")
        return draw(job, on_step, check)

    command = [sys.executable, "-c", FIRST, str(folder), str(signals)]
    first = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: "first 1" in runs.read_text() and len(states()) == 3, first)
        before = content(folder)
        with pytest.raises(FolderInUse, match=f"process {first.pid}, since"):
            Table(folder, resumed)
        assert content(folder) == before
        assert states() == {"1": "running", "2": "queued", "3": "queued"}
        (signals / "1").touch()
        until(lambda: "first 2" in runs.read_text() and states()["1"] == "done", first)
    finally:
        first.kill()
        first.communicate()
    assert states() == {"1": "done", "2": "running", "3": "queued"}

    second = Table(folder, resumed)  # at once
    three = next(job for job in second.jobs() if job.name == "3")
    second.wait(three.id, LIMIT)
    assert {job.name: job.state for job in second.jobs()} == {"1": "done", "2": "interrupted", "3": "done"}
    assert runs.read_text().split("\n") == ["first 1", "first 2", "second 3", ""]
    second.close()


@pytest.mark.parametrize(
    "left",
    [
        None,
        "",
        "[]",
        '{"pid": 1}',
        '{"pid": [], "address": 1, "since": ""}',
        '{"pid": 1, "address": "http://x", "since": 0}',
        '{"pid": 1, "address": "http://x", "since": 1e300}',
        '{"pid": Infinity, "address": "http://x", "since": NaN}',
        "[" * 100_000,
    ],
)
def test_an_owners_file_means_nothing_without_the_lock(tmp_path: Path, left: str | None) -> None:
    if left is not None:
        (tmp_path / "app.json").write_text(left, encoding="utf-8")
        (tmp_path / "app.lock").touch()
    assert owner_of(tmp_path) is None
    table = Table(tmp_path, draw)
    owner = owner_of(tmp_path)
    assert owner is not None
    assert owner.pid == os.getpid()
    (tmp_path / "app.json").write_text(left or "{", encoding="utf-8")
    with pytest.raises(FolderInUse, match="SGM_OUTPUTS"):
        Table(tmp_path, draw)
    table.close()


def test_a_folder_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some network file systems: the system's own call fails."""
    fcntl = pytest.importorskip("fcntl", reason="Windows has no flock to fail")

    def fails(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(UserError, match=r"and locked \(No locks available\): name another") as refused:
        Table(tmp_path, draw)
    assert not isinstance(refused.value, FolderInUse)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"written and locked \(a file is in the way\): name another folder"):
        Table(tmp_path / "file", draw)


# `sgm app`


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def sgm_app(port: int, folder: Path, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sgm.cli", "app", "--no-browser", "--port", str(port)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT | {"SGM_OUTPUTS": ""} | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def refusal(process: subprocess.Popen[str]) -> str:
    """What an app that does not start says: one sentence, and nothing on stdout."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert (process.returncode, out) == (1, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def first(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A running `sgm app` that no browser has opened yet, and its port."""
    port = free_port()
    process = sgm_app(port, tmp_path)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2):
                return True
        except OSError:
            return False

    try:
        until(answers, process)
        yield process, port
    finally:
        process.kill()
        process.communicate()


def test_sgm_app_twice(first: tuple[subprocess.Popen[str], int], tmp_path: Path) -> None:
    process, port = first
    address = f"http://127.0.0.1:{port}"
    other_folder = {"SGM_OUTPUTS": str(tmp_path / "other")}
    attempts = {
        "folder": sgm_app(free_port(), tmp_path),
        "port": sgm_app(port, tmp_path, **other_folder),
        "both": sgm_app(port, tmp_path),
    }
    said = {name: refusal(attempt) for name, attempt in attempts.items()}
    who = (
        rf"sgm app is already running at {re.escape(address)} \(process {process.pid}, since \d\d \w+ \d+, \d\d:\d\d\)"
    )
    assert re.search(rf"{who} and owns the outputs folder {re.escape(str(tmp_path / 'outputs'))}: open", said["folder"])
    assert re.search(rf"{who}: open it, or choose another port with --port \d+ and another folder", said["both"])
    assert f"sgm app is already running at {address}, with another outputs folder: open it, or" in said["port"]
    assert not (tmp_path / "other").exists()
    process.kill()
    process.wait()
    assert owner_of(tmp_path / "outputs") is None


def test_what_waited_goes_on_before_anybody_opens_the_page(tmp_path: Path) -> None:
    table = Table(tmp_path / "outputs", draw)
    job = table.wait(table.submit(REQUEST, Image.new("RGB", (96, 64), "teal")).id, LIMIT)
    assert job is not None
    table.close()
    record = job.folder / "job.json"
    record.write_text(json.dumps(json.loads(record.read_text("utf-8")) | {"state": "queued"}), encoding="utf-8")
    job.clip.unlink()
    process = sgm_app(free_port(), tmp_path)
    try:
        until(lambda: json.loads(record.read_text("utf-8"))["state"] == "done", process)
    finally:
        process.kill()
        process.communicate()
    assert job.clip.is_file()


def test_an_outputs_folder_that_is_deleted_under_its_table(tmp_path: Path) -> None:
    folder = tmp_path / "outputs"
    first = Table(folder, draw)
    lost = first.wait(first.submit(REQUEST, Image.new("RGB", (96, 64))).id, LIMIT)
    assert lost is not None
    shutil.rmtree(folder)
    job = first.wait(first.submit(REQUEST, Image.new("RGB", (96, 64))).id, LIMIT)
    assert job is not None
    assert (job.state, job.message) == ("done", "")
    with pytest.raises(FolderInUse):  # the new folder is the first one's, too
        Table(folder, draw)
    with pytest.raises(UserError, match="deleted"):
        first.video(lost)
    shutil.rmtree(folder)
    other = Table(folder, draw)  # took the empty place before the first one wrote there again
    with pytest.raises(FolderInUse):
        first.submit(REQUEST, Image.new("RGB", (96, 64)))
    first.close()
    assert owner_of(folder) is not None
    assert other.submit(REQUEST, Image.new("RGB", (96, 64))).id
    other.close()


@pytest.mark.parametrize(("host", "written"), [(None, "127.0.0.1"), ("::1", "[::1]"), ("localhost", "localhost")])
def test_a_page_s_address_can_be_opened(host: str | None, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"server.address": host, "server.port": 8501, "server.baseUrlPath": ""}
    monkeypatch.setattr(look.st, "get_option", options.get)
    assert look.address() == f"http://{written}:8501"
