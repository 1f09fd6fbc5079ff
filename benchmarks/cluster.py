"""Throughput of a Ray cluster's actors, on this machine: asleep, for what the machinery costs, and with svd_tiny.

Last line: `cost C ms a clip`: of processor time on this side, in the mean of those that are slept. See README.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sgm import Clip, Cluster, ClusterWorker, Progress, VideoRequest, open_picture  # noqa: E402
from sgm.cluster.maker import Maker  # noqa: E402

SECONDS = float(os.environ.get("SGM_SLEEP", "2"))  # of a clip that is slept; the nodes have it from here


class Sleeper(Maker):
    """A maker that sleeps between the steps, and has a clip of the right size ready."""

    def _generate(self, options: dict[str, Any], *job: Any) -> Clip:
        request, _, on_step, check, *_ = job
        preview = np.zeros((1, 72, 128, 3), np.uint8)
        for step in range(1, request.steps + 1):
            time.sleep(SECONDS / request.steps)
            check()
            on_step(Progress("sample", step, request.steps, preview=lambda: preview))
        return Clip(np.zeros((request.frames, *request.size, 3), np.uint8), request.fps, request.settings())


def processor_seconds() -> float:
    """Of this process, and of the children that it has waited for, as the driver."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measure(address: str, actors: int, clips: int, request: VideoRequest, maker: str) -> tuple[float, float]:
    """Seconds of `clips` clips by `actors` actors, and of the processor here. One more clip each comes before."""
    picture = open_picture(ROOT / "app" / "samples" / "lake.jpg").resize((1024, 576))
    cluster = Cluster(address, actors, maker=maker)
    free: SimpleQueue[ClusterWorker] = SimpleQueue()

    def make(_: int) -> None:
        worker = free.get()
        worker.generate(request, picture)
        free.put(worker)

    def first(worker: ClusterWorker) -> None:
        while reason := worker.missing():
            time.sleep(0.1)
            assert "free" in reason, reason
        worker.generate(request, picture)
        free.put(worker)

    with ThreadPoolExecutor(actors) as pool:
        list(pool.map(first, cluster.workers))
        start, cpu = time.perf_counter(), processor_seconds()
        list(pool.map(make, range(clips)))
        wall = time.perf_counter() - start
    cluster.close()  # counts the driver's time, with that of its start, which an idle one takes off again
    return wall, processor_seconds() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--clips", type=int, default=10, help="of each actor")
    parser.add_argument("--sleep", type=float, default=2, help="seconds of a clip that is slept")
    parser.add_argument("--frames", type=int, default=14, help="of svd_tiny; 0 leaves it out")
    arguments = parser.parse_args()
    os.environ |= {"SGM_SLEEP": str(arguments.sleep), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "OMP_NUM_THREADS": "1"}  # keeps to the loopback
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        ray = import_module("ray.cluster_utils").ray

        room = {"num_cpus": max(arguments.actors), "object_store_memory": 10**9, "include_dashboard": False}
        nodes = ray.cluster_utils.Cluster(True, head_node_args=room)
        print(f"{os.cpu_count()} CPUs, Ray {ray.__version__}, {arguments.clips} clips of each actor")
        print("maker     actors  clips       s  clips/s  CPU here, ms a clip")
        kinds = {"asleep": (VideoRequest("svd_xt"), "cluster:Sleeper")}
        if arguments.frames:
            kinds["svd_tiny"] = VideoRequest(frames=arguments.frames), "sgm.cluster.maker:Maker"
        costs = []
        try:
            for name, (request, maker) in kinds.items():
                _, idle = measure(nodes.address, 1, 0, request, maker)
                for actors in arguments.actors:
                    clips = actors * arguments.clips
                    wall, cpu = measure(nodes.address, actors, clips, request, maker)
                    cost = 1000 * max(0.0, cpu - idle) / clips
                    print(
                        f"{name:<9} {actors:>6} {clips:>6} {wall:>7.1f} {clips / wall:>8.3f} {cost:>20.1f}", flush=True
                    )
                    costs += [cost] if name == "asleep" else []
        finally:
            nodes.shutdown()
    print(f"cost {np.mean(costs):.0f} ms a clip, of {arguments.sleep:g} s of an actor")


if __name__ == "__main__":
    main()
