"""The rate of clips with one worker and with one on each device, through the app's table of jobs.

`python benchmarks/devices.py [--devices cuda:0,cuda:1] [--clips 16] [--steps 25] [--repeat 2]`
makes SVD-XT clips from made-up weights on GPUs, svd_tiny's on a processor (`OMP_NUM_THREADS=2 … --devices cpu,cpu`:
each worker has one thread, also the one alone). Models are loaded and warm before the clock runs; saving counts.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def timed(folder: Path, workers: Sequence, version: str, clips: int, steps: int) -> tuple[float, list[str]]:
    """Seconds that the clips take, and a hash of each one's frames. folder: for the outputs."""
    from app.jobs import EngineRunner, Table
    from sgm import VideoRequest, open_picture

    image = open_picture(ROOT / "app" / "samples" / "lake.jpg")
    table = Table(folder, [EngineRunner(worker) for worker in workers])

    def make(count: int, steps: int) -> tuple[float, list[str]]:
        start = time.perf_counter()
        jobs = [table.submit(VideoRequest(version, steps=steps, seed=seed), image) for seed in range(count)]
        ended = [table.wait(job.id) for job in jobs]
        seconds = time.perf_counter() - start
        for job in ended:
            assert job, "a clip was deleted"
            assert job.state == "done", job.message
        return seconds, [hashlib.sha256(table.frames(job)[0].tobytes()).hexdigest() for job in ended if job]

    make(2 * len(workers), 1)  # each worker loads its model
    result = make(clips, steps)
    table.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="all", help="as of `sgm app`")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeat", type=int, default=1, help="times that both are made, in turn")
    parser.add_argument("--weights", type=Path, help="where the made-up weights are kept between runs, as gpu.py's")
    arguments = parser.parse_args()
    from benchmarks.gpu import weights
    from sgm import choose_devices, describe_device, load_engine, workers_on

    devices = choose_devices(arguments.devices)
    for device in devices:
        print(f"{device}: {describe_device(device)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        version, checkpoint = "svd_tiny", None
        if devices[0].type == "cuda":
            version, checkpoint = "svd_xt", arguments.weights or Path(folder, "svd_xt")
            if not (checkpoint / "model_index.json").exists():
                weights(checkpoint)
        workers = workers_on(devices, partial(load_engine, checkpoint=checkpoint))
        took: dict[int, list[float]] = {1: [], len(workers): []}
        hashes: list[list[str]] = []
        for turn in range(arguments.repeat):
            for count, seconds in took.items():
                outputs = Path(folder, f"{turn}-{count}")
                result = timed(outputs, workers[:count], version, arguments.clips, arguments.steps)
                seconds.append(result[0])
                hashes.append(result[1])
                rate = 3600 * arguments.clips / result[0]
                print(f"{count} at work: {arguments.clips} clips in {result[0]:.1f} s, {rate:.0f} an hour", flush=True)
    print(f"ratio {statistics.median(took[1]) / statistics.median(took[len(workers)]):.3f}")
    print(f"same bits: {all(one == hashes[0] for one in hashes)}")


if __name__ == "__main__":
    main()
