"""What an open page costs a clip: its time with the page open in Chromium, over its time with the page closed.

The same clip in turns, after one to warm up: started on the page, which is then left open, or closed once the clip has
begun. Last line: `ratio R`, of the medians. Only figures of an idle machine mean anything. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.app.test_browser import BROWSER, FLAGS, Server, start


def record(server: Server, job_id: str) -> dict[str, Any]:
    return json.loads((server.outputs / job_id / "job.json").read_text(encoding="utf-8"))


def measure(playwright: Any, server: Server, seed: int, steps: int, is_open: bool) -> float:
    """Seconds of a clip."""
    browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
    page = browser.new_page(viewport={"width": 1280, "height": 980})
    job_id = start(page, f"{server.address}?seed={seed}&steps={steps}", "City")
    if not is_open:
        browser.close()
    while record(server, job_id)["state"] in ("queued", "running"):
        time.sleep(0.1)
    if is_open:
        page.locator("video").wait_for()
        browser.close()
    return record(server, job_id)["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=5, help="clips of each")
    arguments = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)  # the tests' one: a user's clip takes all cores
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(Path(folder) / "outputs")
        server.start(poll=1)
        try:
            measure(playwright, server, 0, arguments.steps, is_open=True)  # which loads the model
            for number in range(2 * arguments.repeat):
                is_open = number % 4 in (0, 3)  # open, closed, closed, open
                took = measure(playwright, server, number + 1, arguments.steps, is_open)
                seconds[is_open].append(took)
                print(f"{'open' if is_open else 'closed':<6} {took:6.2f} s", flush=True)
        finally:
            server.stop()
    medians = {is_open: statistics.median(values) for is_open, values in seconds.items()}
    print(f"medians: open {medians[True]:.2f} s, closed {medians[False]:.2f} s")
    print(f"ratio {medians[True] / medians[False]:.3f}")


if __name__ == "__main__":
    main()
