"""Clips on a Ray cluster: three nodes of this machine, one of which dies in the midst, and then the head."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from app.jobs import Job, Table, runners_of
from sgm import (
    Clip,
    Cluster,
    DeviceAway,
    UserError,
    VideoRequest,
    generate,
    load_engine,
    open_picture,
    read_frames,
    write_video,
)
from sgm.cli.commands import cli
from sgm.cluster import workers

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "sgm-video[ray]"'),
    pytest.mark.skipif(
        sys.platform == "win32", reason="Ray starts several nodes on one machine on Linux and macOS only"
    ),
]
ROOT = Path(__file__).parents[2]
CLIPS = int(os.environ.get("SGM_RAY_CLIPS", "8"))
REQUEST = VideoRequest(frames=2, steps=4, width=64, height=64)
LONG = VideoRequest(frames=14, steps=100, width=192, height=128)
LIMIT = 60.0  # seconds, for what takes some
_NODES = """
import sys
from ray.cluster_utils import Cluster

def head():
    node = {"include_dashboard": False, "object_store_memory": 80_000_000}
    cluster = Cluster(True, head_node_args={**node, "num_cpus": 0, "gcs_server_port": int(sys.argv[1])})
    return cluster, [cluster.head_node, *(cluster.add_node(num_cpus=4, **node) for _ in range(2))]

cluster, nodes = head()
print("up", flush=True)
for line in sys.stdin:
    if line.strip() == "head":
        cluster, nodes = head()
    else:
        nodes[int(line)].kill_all_processes(check_alive=False, allow_graceful=False)
    print("done", flush=True)
"""


class Nodes:
    """A head without cores, and two nodes with four each, in a process group of their own, on the loopback alone."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NODES, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._answer("up")

    def kill(self, number: int) -> None:
        """Kill a node; the head is 0."""
        self._tell(str(number))

    def restart(self) -> None:
        """Start all nodes anew, at the same address."""
        self._tell("head")

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def _tell(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        self._answer("done")

    def _answer(self, word: str) -> None:
        assert self._process.stdout
        while (line := self._process.stdout.readline()).strip() != word:  # Ray says things, too
            assert line, "the nodes have ended"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets' paths are short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # keeps to the loopback
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        nodes = Nodes()
        yield nodes
        nodes.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(nodes: Nodes) -> Iterator[Cluster]:
    cluster = Cluster(nodes.address, actors=2)
    yield cluster
    cluster.close()


@pytest.fixture
def table(cluster: Cluster, tmp_path: Path) -> Iterator[Table]:
    table = Table(tmp_path / "outputs", runners_of(cluster))
    yield table
    table.close()


@pytest.fixture(scope="module")
def local() -> Callable[[VideoRequest], Clip]:
    """A clip as this machine makes it with one thread, as many as an actor has."""
    import torch

    engine, picture = load_engine(), open_picture(ROOT / "app" / "samples" / "lake.jpg")

    def make(request: VideoRequest) -> Clip:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return generate(engine, request, picture)
        finally:
            torch.set_num_threads(threads)

    return make


@pytest.fixture
def picture() -> Image.Image:
    return open_picture(ROOT / "app" / "samples" / "lake.jpg")


def ready(worker: workers.ClusterWorker) -> None:
    until(lambda: not worker.missing())


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def running(table: Table) -> list[Job]:
    return [job for job in table.jobs() if job.state == "running"]


def finished(table: Table, job: Job) -> Job:
    ended = table.wait(job.id, LIMIT)
    assert ended
    assert ended.state == "done", (ended.state, ended.message)
    return ended


def test_all_clips_come_once_though_a_node_dies(
    nodes: Nodes, cluster: Cluster, table: Table, local: Callable[[VideoRequest], Clip], picture: Image.Image
) -> None:
    for worker in cluster.workers:
        ready(worker)
    written: Counter[str] = Counter()
    write = table._workers.write

    def count(job: Job, clip: Clip) -> dict:
        written[job.id] += 1
        return write(job, clip)

    table._workers.write = count
    jobs = [table.submit(REQUEST.replace(seed=seed), picture) for seed in range(CLIPS - 2)]
    jobs += [table.submit(REQUEST.replace(seed=seed, steps=40), picture, owner="other") for seed in (90, 91)]
    until(lambda: written and all(job.device and job.phase == "sample" for job in running(table)))
    nodes.kill(1)
    ended = [finished(table, job) for job in jobs]
    assert sum(job.lost for job in ended) == 1
    assert written == {job.id: 1 for job in ended}
    for job in ended:
        clip = local(job.request)
        frames, fps = read_frames(job.frames)
        assert np.array_equal(frames, clip.frames)
        assert (fps, job.settings) == (clip.fps, clip.settings)


def test_progress_and_preview_come_back_and_a_cancel_reaches_the_actor_within_a_step(
    table: Table, cluster: Cluster, picture: Image.Image
) -> None:
    long = table.submit(LONG, picture)
    until(lambda: (job := table.get(long.id)) and job.preview_number > 1)
    job = table.get(long.id)
    assert job
    assert job.device in {worker.name for worker in cluster.workers}
    assert job.progress
    step, seconds = job.progress.step, sum(job.phases.values())
    assert 0 < step < LONG.steps
    assert seconds > 0
    start = time.monotonic()
    table.cancel(long.id)
    ended = table.wait(long.id, LIMIT)
    assert ended
    assert ended.state == "cancelled"
    at = ended.progress.step if ended.progress else 0
    assert at <= step + 2, (at, step)  # one that was on its way, and one
    assert time.monotonic() - start < 10
    finished(table, table.submit(REQUEST, picture))  # by the same actors


def test_a_folder_becomes_the_files_that_it_becomes_here(
    cluster: Cluster, tmp_path: Path, local: Callable[[VideoRequest], Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("b", "a"):
        shutil.copy(ROOT / "app" / "samples" / "lake.jpg", pictures / f"{name}.jpg")
    (pictures / "c.jpg").write_bytes(b"no picture")
    settings = [f"--{name}={getattr(REQUEST, name)}" for name in ("frames", "steps", "width", "height")]
    words = ["sample", "--ray", str(pictures), "--ray-actors", "2", *settings]
    done = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 1, done.stderr
    assert "c.jpg" in done.stderr
    paths = [tmp_path / "out" / f"{name}-svd_tiny-23.mp4" for name in ("a", "b")]
    assert done.stdout.split() == [str(path) for path in paths]
    clip = local(REQUEST)
    expected = tmp_path / "local.mp4"
    write_video(expected, clip.frames, clip.fps, clip.settings)
    assert all(path.read_bytes() == expected.read_bytes() for path in paths)


def test_other_versions_and_missing_weights_are_sentences(
    nodes: Nodes, cluster: Cluster, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = cluster.workers[0]
    ready(worker)
    monkeypatch.setattr(cluster, "options", {"checkpoint": "nowhere.safetensors"})
    with pytest.raises(DeviceAway, match=r", a node of the Ray cluster, cannot load svd_tiny: .*nowhere.safetensors"):
        worker.generate(REQUEST, picture)
    assert "cannot load svd_tiny" in worker.missing()  # it is left alone for a while
    monkeypatch.setattr(workers, "versions", lambda: {"sgm-video": "0.0.1", "torch": "1.13.0"})
    other = Cluster(nodes.address, actors=1)
    until(lambda: "free" not in other.workers[0].missing())
    assert re.fullmatch(
        r"A node of the Ray cluster has sgm-video [\d.]+ and torch [\d.]+, "
        r"this machine sgm-video 0.0.1 and torch 1.13.0: "
        "install the same on both",
        other.workers[0].missing(),
    )
    other.close()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:1", r"No Ray cluster answers at 127.0.0.1:1 \(Connection refused\): start its head there"),
        ("somewhere", "HOST:PORT of its head"),
    ],
)
def test_an_address_without_a_cluster_is_a_sentence(address: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Cluster(address)


def test_jobs_stay_in_line_while_the_head_is_gone_and_go_on_when_it_is_back(
    nodes: Nodes, cluster: Cluster, table: Table, picture: Image.Image, local: Callable[[VideoRequest], Clip]
) -> None:
    for worker in cluster.workers:
        ready(worker)
    jobs = [table.submit(REQUEST.replace(steps=30, seed=seed), picture) for seed in range(3)]
    until(lambda: any(job.phase == "sample" for job in running(table)))
    nodes.kill(0)
    until(table.none_left)
    assert "line waits: " in table.none_left()
    assert cluster.address in table.none_left()
    nodes.restart()
    until(lambda: not table.none_left())
    for job in jobs:
        ended = finished(table, job)
        assert np.array_equal(read_frames(ended.frames)[0], local(job.request).frames)
