"""Nine clips of svd_tiny's quick size, in step on the page Compare, in Chromium: dropped frames, late ones, drift.

Every drawing of a frame is noted with its time. Last line: `dropped D, apart A, drift M ms`: frames of a clip that were
never drawn, the most by which clips were apart from each other, and how much later than by the wall clock the frames
came at the end of the time than at its start. See README.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.jobs import Job, Table
from sgm import Clip, VideoRequest, open_picture, prepare_picture
from tests.app.test_browser import BROWSER, DRAWN, FLAGS, ROOT, Server, opened_in


def clips(folder: Path, count: int) -> list[str]:
    """Make clips that a moving picture stands in for: their length and rate are svd_tiny's. Returns their ids."""

    def draw(job: Job, *_: Any) -> Clip:
        pixels = np.asarray(prepare_picture(open_picture(job.picture), job.request))
        moved = [np.roll(pixels, (1 + job.request.seed) * i, axis=1) for i in range(job.request.frames)]
        return Clip(np.stack(moved), job.request.fps, job.request.settings())

    table = Table(folder, draw)
    picture = open_picture(ROOT / "app" / "samples" / "lake.jpg")
    requests = [VideoRequest("svd_tiny", width=320, height=192, seed=seed) for seed in range(count)]
    ids = [table.submit(request, picture, "lake.jpg").id for request in requests]
    for job_id in ids:
        table.wait(job_id)
    table.close()
    return ids


def figures(drawn: list[tuple[float, int, int]], count: int, fps: float, length: int) -> tuple[int, int, list[float]]:
    """Dropped frames, the most by which clips were apart, and each frame's lateness against the earliest, milliseconds.

    drawn: time in milliseconds, clip, frame.
    """
    dropped, apart, late = 0, 0, []
    now, total = [0] * count, [0] * count  # each clip's frame, and how many went by since the start
    for clip in range(count):
        frames = [frame for _, other, frame in drawn if other == clip]
        dropped += sum((after - before - 1) % length for before, after in pairwise(frames))
    previous = drawn[0][0]
    for time, clip, frame in drawn:
        if time - previous > 4:  # the drawings of one moment are over
            apart = max(apart, max(total) - min(total))
        total[clip] += (frame - now[clip]) % length
        now[clip], previous = frame, time
        if clip == 0:
            late.append(time - 1000 * total[0] / fps)
    return dropped, apart, [time - min(late) for time in late]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(Path(folder) / "outputs")
        ids = clips(server.outputs, arguments.clips)
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        server.start()
        try:
            with opened_in(browser) as page:
                page.goto(f"{server.address}compare?clips={','.join(ids)}")
                page.locator(".figures").wait_for()
                page.get_by_role("button", name="Pause").click()
                page.keyboard.press("Home")
                page.evaluate(DRAWN)
                page.keyboard.press("Space")
                page.wait_for_timeout(1000 * arguments.seconds)
                drawn, ticks = page.evaluate("[drawn, ticks]")
        finally:
            server.stop()
            browser.close()
    request = VideoRequest("svd_tiny")
    drawn = [(time, clip, frame) for time, clip, frame in drawn]
    dropped, apart, late = figures(drawn, arguments.clips, request.fps, request.frames)
    gaps = [after - before for before, after in pairwise(ticks)]
    usual, tenth = statistics.median(gaps), max(1, len(late) // 10)
    drift = statistics.mean(late[-tenth:]) - statistics.mean(late[:tenth])
    print(f"{arguments.clips} clips for {arguments.seconds:g} s: {len(drawn)} frames drawn, {len(late)} of each clip")
    skipped = sum(gap > 1.5 * usual for gap in gaps)
    print(f"the browser draws every {usual:.1f} ms; {skipped} of {len(gaps)} times it was later")
    print(f"frames come {statistics.mean(late):.1f} ms after their time, at most {max(late):.1f} ms")
    print(f"dropped {dropped}, apart {apart}, drift {drift:.1f} ms")


if __name__ == "__main__":
    main()
