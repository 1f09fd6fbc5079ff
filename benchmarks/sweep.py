"""`sgm sweep` beside the same clips made one after the other by one engine, as whole processes, in turns.

Last line: `ratio R`, the sweep's median wall time over that of the clips alone. See README.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

from cpu import measure

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
    runs: dict[str, list[tuple[float, ...]]] = {"clips": [], "sweep": []}
    for number in range(arguments.repeat):
        for name, figures in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                clips = [sys.executable, str(Path(__file__).resolve()), *options, "--clips", folder]
                sweep = [sys.executable, "-m", "sgm.cli", "sweep", *options, "--out", folder]
                figures.append(measure(sweep if name == "sweep" else clips, gpu=True))
            wall, cpu, memory = figures[-1]
            print(f"run {number + 1}  {name:<6} {wall:7.1f} s  {cpu:7.1f} s of CPU  {memory:5.2f} GB", flush=True)
    median = {name: [statistics.median(values) for values in zip(*rows, strict=True)] for name, rows in runs.items()}
    for name, (wall, cpu, memory) in median.items():
        print(f"median {name:<6} {wall:7.1f} s  {cpu:7.1f} s of CPU  {memory:5.2f} GB")
    print(f"CPU ratio {median['sweep'][1] / median['clips'][1]:.3f}")
    print(f"ratio {median['sweep'][0] / median['clips'][0]:.3f}")


if __name__ == "__main__":
    main()
