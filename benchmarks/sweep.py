"""`sgm sweep` beside the same clips made one after the other by one engine, as whole processes, in turns.

Last line: `ratio R`, the sweep's median wall time over that of the clips alone. See README.md.
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

ROOT = Path(__file__).resolve().parent.parent


def make_clips(picture: str, version: str, vary: list[str], out: Path) -> None:
    """Only the clips: one load, then each clip as `sgm sample` makes it, in the sweep's order."""
    from sgm import Axis, VideoRequest, cells, generate, load_engine, making_order, open_picture, write_video
    from sgm.process import importing_torch, reuse_freed_memory

    with importing_torch():
        engine = load_engine(version)
    image = open_picture(picture)
    for number, cell in enumerate(making_order(cells(VideoRequest(version), [Axis.parse(text) for text in vary]))):
        with reuse_freed_memory():
            clip = generate(engine, cell.request, image)
        write_video(out / f"{number}.mp4", clip.frames, clip.fps, clip.settings)


def measure(command: list[str]) -> float:
    """Wall seconds of a command that must succeed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path, default=ROOT / "app" / "samples" / "lake.jpg")
    parser.add_argument("--version", default="svd_tiny")
    parser.add_argument("--vary", action="append", help="as of sgm sweep; unless given, steps=4,8 and seed=1..6")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each")
    parser.add_argument("--clips", type=Path, help=argparse.SUPPRESS)  # this script's own process: where to put them
    arguments = parser.parse_args()
    vary, picture = arguments.vary or ["steps=4,8", "seed=1..6"], str(arguments.picture.resolve())
    if arguments.clips:
        make_clips(picture, arguments.version, vary, arguments.clips)
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs; {arguments.version}, {' '.join(vary)}")
    options = [picture, "--version", arguments.version, *(word for text in vary for word in ("--vary", text))]
    runs: dict[str, list[float]] = {"clips": [], "sweep": []}
    for number in range(arguments.repeat):
        for name, seconds in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                clips = [sys.executable, str(Path(__file__).resolve()), *options, "--clips", folder]
                sweep = [sys.executable, "-m", "sgm.cli", "sweep", *options, "--out", folder]
                seconds.append(measure(sweep if name == "sweep" else clips))
            print(f"run {number + 1}  {name:<6} {seconds[-1]:7.1f} s", flush=True)
    median = {name: statistics.median(seconds) for name, seconds in runs.items()}
    for name, seconds in median.items():
        print(f"median {name:<6} {seconds:7.1f} s")
    print(f"ratio {median['sweep'] / median['clips']:.3f}")


if __name__ == "__main__":
    main()
