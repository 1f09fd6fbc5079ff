"""Clips on a Ray cluster: three nodes of this machine, one of which dies in the midst, and then the head."""

from __future__ import annotations

import importlib.util
import os
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
from sgm import Clip, Cluster, DeviceAway, UserError, VideoRequest, generate, load_engine, open_picture, read_frames
from sgm.cli.commands import cli
from sgm.cluster import workers

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs Ray: pip install "sgm-video[ray]"'),
    pytest.mark.skipif(sys.platform == "win32", reason="Ray starts several nodes on one machine on Linux and macOS only"),
]
ROOT = Path(__file__).parents[2]
CLIPS = int(os.environ.get("SGM_RAY_CLIPS", "8"))
REQUEST = VideoRequest(frames=2, steps=4, width=64, height=64)
LONG = VideoRequest(frames=14, steps=100, width=192, height=128)
LIMIT = 120.0  # seconds, for what takes some
_NODES = """
import sys
from ray.cluster_utils import Cluster

def head():
    node = {"include_dashboard": False, "object_store_memory": 80_000_000}
    cluster = Cluster(True, head_node_args={**node, "num_cpus": 0, "gcs_server_port": int(sys.argv[1])})
    return cluster, [cluster.head_node, *(cluster.add_node(num_cpus=2, **node) for _ in range(2))]

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
    """A head without cores, and two nodes with two each, in a process group of their own, on the loopback alone."""

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
    write = table._write

    def count(job: Job, clip: Clip) -> dict:
        written[job.id] += 1
        return write(job, clip)

    table._write = count
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
