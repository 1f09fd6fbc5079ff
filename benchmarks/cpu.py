"""`sgm sample` of one picture with svd_tiny in one size, beside diffusers with its weights, on the CPU.

Both are measured as whole processes, from their start to the written file, in turns. Last line: `ratio R`, our median
wall time over theirs. See README.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def measure(command: list[str], gpu: bool = False) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak memory in GB of a command that must succeed. gpu: whether it may see one."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment |= {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{log.read().decode(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes there, kilobytes here
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e9


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        sys.exit(f"The videos differ in shape: {a.shape} and {b.shape}.")
    wrong = np.square(a.astype(np.float64) - b).mean()
    return float("inf") if wrong == 0 else 10 * np.log10(255**2 / wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path, default=ROOT / "app" / "samples" / "lake.jpg")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each")
    parser.add_argument("--channels-last", action="store_true", help="lay diffusers' modules out channels-last")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of both; unless given, each one's own default"
    )
    parser.add_argument("--size", type=int, nargs=2, default=(320, 192), metavar=("WIDTH", "HEIGHT"))
    arguments = parser.parse_args()
    width, height = map(str, arguments.size)
    picture = str(arguments.picture.resolve())
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs; {arguments.repeat} runs each, in turns"
    )
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.mp4" for name in ("sgm", "diffusers")}
        theirs = [sys.executable, str(ROOT / "benchmarks" / "_diffusers_svd_tiny.py"), picture, str(files["diffusers"])]
        theirs += [width, height]
        ours = [sys.executable, "-m", "sgm.cli", "sample", picture, "--device", "cpu", "--out", str(files["sgm"])]
        ours += ["--width", width, "--height", height, "--no-watermark"]  # theirs has none
        commands = {
            "sgm": [*ours, "--dtype", arguments.dtype] if arguments.dtype else ours,
            "diffusers": [*theirs, arguments.dtype or "float32"] + ["--channels-last"] * arguments.channels_last,
        }
        runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        for i in range(arguments.repeat):
            for name, command in commands.items():
                files[name].unlink(missing_ok=True)
                runs[name].append(measure(command))
                wall, cpu, memory = runs[name][-1]
                print(f"run {i + 1}  {name:<10} {wall:6.1f} s  {cpu:6.1f} s of CPU  {memory:5.2f} GB", flush=True)
        same = psnr(frames(files["sgm"]), frames(files["diffusers"]))
    median = {name: [statistics.median(values) for values in zip(*rows, strict=True)] for name, rows in runs.items()}
    for name, (wall, cpu, memory) in median.items():
        print(f"median {name:<10} {wall:6.1f} s  {cpu:6.1f} s of CPU  {memory:5.2f} GB")
    print(f"PSNR of one video against the other {same:.1f} dB")
    print(f"CPU ratio {median['sgm'][1] / median['diffusers'][1]:.2f}")
    print(f"ratio {median['sgm'][0] / median['diffusers'][0]:.2f}")


if __name__ == "__main__":
    main()
