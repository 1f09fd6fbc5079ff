"""The whole way in a real browser: upload a photograph, make a clip with svd_tiny, see it play, download it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sgm import fit_picture, open_picture, read_settings

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")

ROOT = Path(__file__).resolve().parents[2]
BROWSER = next(filter(None, map(shutil.which, ("/usr/bin/chromium", "chromium", "google-chrome", "chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SOON, LATER = 20_000, 120_000  # milliseconds: for the page, for a clip

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed (Debian: chromium)")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The app as a user starts it, on a free port of this machine; its clips go to `tmp_path / "outputs"`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [f"--server.port={port}", "--server.headless=true"]
    command = [sys.executable, "-m", "streamlit", "run", str(Path("app") / "main.py"), *flags]
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        environment = os.environ | {"SGM_OUTPUTS": str(tmp_path / "outputs")}
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/_stcore/health", server, log)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SOON / 1000
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the app did not start:\n{log.read_text(encoding='utf-8', errors='replace')}")


@pytest.fixture
def page() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1280, "height": 980})
        opened.set_default_timeout(SOON)
        yield opened
        browser.close()


def test_from_a_photograph_to_a_playing_clip(page: Any, address: str, tmp_path: Path) -> None:
    expect = sync_api.expect
    # As phones store it: the pixels lie on their side, and EXIF says so.
    photograph = tmp_path / "holiday.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    sample = Image.open(ROOT / "app" / "samples" / "kitten.jpg")
    sample.rotate(90, expand=True).save(photograph, quality=92, exif=exif)

    page.goto(address)
    expect(page.get_by_role("button", name="Generate")).to_be_disabled(timeout=LATER)  # the first page imports torch
    page.locator("input[type=file]").set_input_files(photograph)
    expect(page.get_by_text("Cropped 1024×576 to 960×576 (5:3), scaled to 320×192.")).to_be_visible()
    steps = page.get_by_role("slider", name="Steps")
    steps.press("Home")
    steps.press("ArrowRight")
    expect(steps).to_have_value("2")
    page.get_by_role("button", name="Generate").dblclick()
    page.wait_for_url(re.compile(r"\?job=\d{8}-\d{6}-[0-9a-f]{8}$"))
    job = page.url.partition("?job=")[2]

    # Neither a widget nor a reload disturbs the job.
    expect(page.get_by_role("progressbar")).to_be_visible()
    page.get_by_role("slider", name="Motion").press("ArrowRight")
    expect(page.get_by_role("slider", name="Motion")).to_have_value("128")
    page.reload()
    expect(page.get_by_text("Used 320×192 as it is.")).to_be_visible()  # the job's own copy of the picture
    expect(page.get_by_role("slider", name="Motion")).to_have_value("127")  # and its settings
    page.locator("video").wait_for(timeout=LATER)
    assert page.url.endswith(job)

    page.wait_for_function("() => document.querySelector('video').readyState >= 2")
    video = page.locator("video").evaluate(
        "v => ({duration: v.duration, size: [v.videoWidth, v.videoHeight], muted: v.muted, error: v.error})"
    )
    assert video == {"duration": 2, "size": [320, 192], "muted": True, "error": None}
    page.wait_for_function(
        "() => { const v = document.querySelector('video'); return !v.paused && v.currentTime > 0.2 }"
    )
    expect(page.get_by_text(re.compile(r"What ran: SVD tiny · seed 23 · motion 127 .* 2 steps"))).to_be_visible()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()

    # A widget does not stop the clip that plays.
    page.locator("video").evaluate("v => { v.dataset.mark = 'the same' }")
    page.get_by_role("slider", name="Motion").press("ArrowRight")
    expect(page.get_by_role("slider", name="Motion")).to_have_value("128")
    page.wait_for_timeout(500)
    assert page.locator("video").evaluate("v => [v.dataset.mark, v.paused]") == ["the same", False]

    with page.expect_download() as download:
        page.get_by_role("button", name="Download MP4").click()
    assert download.value.suggested_filename == f"holiday-{job}.mp4"
    (folder,) = (tmp_path / "outputs").iterdir()  # the double click made one job
    assert folder.name == job
    assert Path(download.value.path()).read_bytes() == (folder / "clip.mp4").read_bytes()
    settings = read_settings(folder / "clip.mp4")
    assert settings is not None
    assert (settings["version"], settings["steps"], settings["motion_bucket"]) == ("svd_tiny", 2, 127)
    seen = np.asarray(open_picture(folder / "input.png"))
    assert np.array_equal(seen, np.asarray(fit_picture(open_picture(photograph), 320, 192)))

    expect(page.locator(".stException")).to_have_count(0)
    page.screenshot(path=tmp_path / "page.png")
    assert Image.open(tmp_path / "page.png").size == (1280, 980)
