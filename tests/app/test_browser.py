"""The page in a real browser, with svd_tiny on photographs: from an upload to a clip that plays, and what goes wrong.

One server and one browser serve all tests, in their order; small settings come in by the address.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pytest
from PIL import Image
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from app.jobs import Job, Table
from sgm import Clip, VideoRequest, open_picture, read_frames, read_settings
from sgm.outputs import owner_of

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
JOB = re.compile(r"[?&]job=\d{8}-\d{6}-[0-9a-f]{8}")
SMALL = "width=160&height=96&frames=5&depth=0"  # settings that take a moment
SOON, LATER = 20_000, 240_000  # milliseconds: for the page, for a clip

sync_api.expect.set_options(timeout=SOON)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed (Debian: chromium)")


class Server:
    """The app on a free port of this machine; its clips go to `outputs`."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"

    def start(self, poll: float = 0.5, bare: bool = False) -> None:
        """Start it as a user does; bare: by `streamlit run`, so that it has no route for the progress."""
        run = ["streamlit", "run", str(Path("app") / "main.py"), f"--server.port={self.port}", "--server.headless=true"]
        own = ["sgm.cli", "app", f"--port={self.port}", "--no-browser"]
        command = [sys.executable, "-m", *(run if bare else own)]
        log = self.outputs.parent.with_suffix(".log")
        with log.open("ab") as output:
            environment = os.environ | {"SGM_OUTPUTS": str(self.outputs), "SGM_POLL": str(poll)}
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 2 * SOON / 1000
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.address}_stcore/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"the app did not start:\n{log.read_text(encoding='utf-8', errors='replace')}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def memory(self) -> float:
        """Resident, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small file system of its own, where this machine lets us mount one; else a folder."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)]
    mounted = sys.platform == "linux" and not subprocess.run(mount, capture_output=True).returncode
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def past(disk: Path) -> tuple[Path, str]:
    """An outputs folder with one finished clip, and its id."""
    outputs = disk / "outputs"

    def draw(job: Job, *_: Any) -> Clip:
        pixels = np.asarray(open_picture(job.picture).resize(job.request.size))
        frames = [np.roll(pixels, 4 * i, axis=1) for i in range(job.request.frames or 1)]
        return Clip(np.stack(frames), 7, job.request.settings())

    table = Table(outputs, draw)
    request = VideoRequest(seed=4711, motion_bucket=61, frames=6, steps=2, width=320, height=192)
    job = table.wait(
        table.submit(request, open_picture(ROOT / "app/samples/lake.jpg").resize((640, 384)), "lake.jpg").id
    )
    assert job is not None
    table.wait(table.again(job.id).id)
    spare = next(other for other in table.jobs() if other.id != job.id)
    content = json.loads((spare.folder / "job.json").read_text("utf-8")) | {"name": "spare.jpg"}
    (spare.folder / "job.json").write_text(json.dumps(content), encoding="utf-8")
    table.close()
    assert job.state == "done"
    return outputs, job.id


@pytest.fixture(scope="module")
def site(past: tuple[Path, str], browser: Any) -> Iterator[Server]:
    server = Server(past[0])
    server.start()
    try:
        with opened_in(browser) as page:
            page.goto(server.address)  # the first page imports torch
            button(page, "Generate").wait_for(timeout=LATER)
            yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def session(browser: Any) -> Iterator[Any]:
    """A browser session that keeps the page's scripts as they are compiled: another one takes three times as long."""
    with opened_in(browser) as page:
        yield page.context


@pytest.fixture
def page(session: Any) -> Iterator[Any]:
    """A page of a user's own, as cookies tell users apart."""
    page = session.new_page()
    yield page
    page.close()
    session.clear_cookies()


@contextlib.contextmanager
def opened_in(browser: Any, **options: Any) -> Iterator[Any]:
    """A page of a browser session of its own."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 980}} | options))
    context.set_default_timeout(SOON)
    yield context.new_page()
    context.close()


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=False).first


def start(page: Any, address: str, sample: str = "Giraffe") -> str:
    """Make a clip of a sample; the job's id."""
    page.goto(address)
    page.get_by_role("button", name=sample, exact=True).click()
    sync_api.expect(button(page, "Generate")).to_be_enabled()
    button(page, "Generate").click()
    page.wait_for_url(JOB)
    return job_of(page)


def job_of(page: Any) -> str:
    return re.findall(r"job=([\w-]+)", page.url)[0]


def next_job(page: Any, after: str) -> str:
    page.wait_for_url(lambda url: JOB.search(url) is not None and after not in url)
    return job_of(page)


def test_from_a_photograph_to_a_playing_clip(page: Any, site: Server, tmp_path: Path) -> None:
    expect = sync_api.expect
    # As phones store it: the pixels lie on their side, and EXIF says so.
    photograph = tmp_path / "holiday.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    sample = Image.open(ROOT / "app" / "samples" / "kitten.jpg")
    sample.rotate(90, expand=True).save(photograph, quality=92, exif=exif)

    owner = owner_of(site.outputs)
    assert owner is not None
    assert (owner.pid, f"{owner.address}/") == (site.process.pid, site.address)
    before = set(site.outputs.iterdir())
    page.goto(f"{site.address}?{SMALL}")
    expect(page.get_by_role("button", name="Generate")).to_be_disabled()
    page.locator("input[type=file]").set_input_files(photograph)
    expect(page.get_by_text("Cropped 1024×576 to 960×576 (5:3), scaled to 160×96.")).to_be_visible()
    steps = page.get_by_role("slider", name="Steps")
    steps.press("Home")
    steps.press("ArrowRight")
    expect(steps).to_have_value("2")
    page.wait_for_url(re.compile("steps=2"))  # the server knows
    page.get_by_role("button", name="Generate").dblclick()
    page.wait_for_url(re.compile(r"\?job=\d{8}-\d{6}-[0-9a-f]{8}$"))  # its settings are the job's: no need to say them
    job = job_of(page)

    # Neither a widget nor a reload disturbs the job.
    expect(page.get_by_role("progressbar")).to_be_visible()
    page.get_by_role("slider", name="Motion").press("ArrowRight")
    expect(page.get_by_role("slider", name="Motion")).to_have_value("128")
    page.wait_for_url(re.compile("motion_bucket=128"))
    page.reload()
    expect(page.get_by_text("Cropped 1024×576 to 960×576 (5:3), scaled to 160×96.")).to_be_visible()  # its own copy
    expect(page.get_by_role("slider", name="Motion")).to_have_value("128")  # and what was touched since
    page.locator("video").wait_for(timeout=LATER)
    assert job in page.url

    page.wait_for_function("() => document.querySelector('video').readyState >= 2")
    video = page.locator("video").evaluate(
        "v => ({duration: v.duration, size: [v.videoWidth, v.videoHeight], muted: v.muted, error: v.error})"
    )
    assert video == {"duration": pytest.approx(5 / 7, abs=1e-3), "size": [160, 96], "muted": True, "error": None}
    assert page.locator("video[autoplay]").count() == 0  # the page's own: one rendered twice would lose Streamlit's
    page.wait_for_function(PLAYS)
    expect(page.get_by_text(re.compile(r"What ran: SVD tiny · seed 23 · motion 127 .* 2 steps"))).to_be_visible()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()

    # A widget does not stop the clip that plays.
    page.locator("video").evaluate("v => { v.dataset.mark = 'the same' }")
    page.get_by_role("slider", name="Motion").press("ArrowRight")
    expect(page.get_by_role("slider", name="Motion")).to_have_value("129")
    page.wait_for_url(re.compile("motion_bucket=129"))
    assert page.locator("video").evaluate("v => [v.dataset.mark, v.paused]") == ["the same", False]

    with page.expect_download() as download:
        page.get_by_role("button", name="Download MP4").click()
    assert download.value.suggested_filename == f"holiday-{job}.mp4"
    (folder,) = set(site.outputs.iterdir()) - before  # the double click made one job
    assert folder.name == job
    assert Path(download.value.path()).read_bytes() == (folder / "clip.mp4").read_bytes()
    settings = read_settings(folder / "clip.mp4")
    assert settings is not None
    assert (settings["version"], settings["steps"], settings["motion_bucket"]) == ("svd_tiny", 2, 127)
    seen = np.asarray(open_picture(folder / "input.png"))
    assert np.array_equal(seen, np.asarray(open_picture(photograph)))  # whole: the request says what is used of it

    button(page, "New take").click()
    take = next_job(page, job)
    expect(page.get_by_text(re.compile("What ran: SVD tiny · seed 24 "))).to_be_visible(timeout=LATER)
    button(page, "Extend").click()
    film = next_job(page, take)
    expect(page.get_by_text(re.compile("What ran: 2 clips joined"))).to_be_visible(timeout=LATER)
    start_from, _ = read_frames(site.outputs / take / "frames.mkv")
    assert np.array_equal(np.asarray(Image.open(site.outputs / film / "input.png")), start_from[-3])
    joined, rate = read_frames(site.outputs / film / "film.mp4")
    assert (len(joined), rate) == (2 + 5, 7)
    settings = read_settings(site.outputs / film / "film.mp4")
    assert settings is not None
    assert [link["seed"] for link in settings["links"]] == [24, 24]
    expect(page.locator(".stException")).to_have_count(0)


PLAYS = "() => { const v = document.querySelector('video'); return v && !v.paused && v.currentTime > 0.2 }"

SHIFTS = """window.shifted = 0; new PerformanceObserver(list => {
    for (const { hadRecentInput, value } of list.getEntries()) if (!hadRecentInput) shifted += value;
}).observe({type: "layout-shift", buffered: true});"""

TOPS = """window.tops = new Set(); (function look() {
    const box = document.querySelector('.st-key-actions')?.getBoundingClientRect();
    if (box?.height) tops.add(Math.round(box.top));
    requestAnimationFrame(look);
})()"""


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_load_is_light_and_little_moves(browser: Any, site: Server, width: int, height: int) -> None:
    expect = sync_api.expect
    with opened_in(browser, viewport={"width": width, "height": height}) as page:
        network, loaded = page.context.new_cdp_session(page), []
        network.send("Network.enable")
        network.on("Network.loadingFinished", lambda told: loaded.append(told["encodedDataLength"]))
        page.add_init_script(SHIFTS)
        page.goto(site.address)
        expect(page.locator(".voice")).to_have_count(1)
        expect(button(page, "Generate")).to_be_visible()
        page.wait_for_function(_SETTLED, arg="rgb(255, 255, 255)")
        page.wait_for_load_state("networkidle")
        assert sum(loaded) < 3.8e6  # bytes as sent; 3.3 are Streamlit's own, charts would be 0.8 more
        assert page.evaluate("shifted") < 0.1  # "good", by Web Vitals
        page.set_viewport_size({"width": 2560, "height": 1440})  # lines stay short enough to be read, in the middle
        for name in ("Main", "Bottom"):
            box = page.get_by_test_id(f"st{name}BlockContainer").bounding_box()
            assert (box["x"], box["width"]) == (320, 1920)


def test_a_link_shows_the_clip_and_its_file_brings_the_settings(
    page: Any, site: Server, past: tuple[Path, str]
) -> None:
    """The page that made the clip is closed; so this is how a link of it, or its file, finds things."""
    expect = sync_api.expect
    clip = site.outputs / past[1] / "clip.mp4"
    page.add_init_script(TOPS)
    page.goto(f"{site.address}?job={past[1]}")
    page.wait_for_function("document.querySelector('video')?.readyState")  # its size is known
    expect(page.get_by_text(re.compile("What ran: SVD tiny · seed 4711 · motion 61"))).to_be_visible()
    tops = page.evaluate("[...tops]")
    assert max(tops) - min(tops) < 3, "a button that moves while it is pressed is not pressed"
    button(page, "Link").click()
    expect(page.get_by_text(f"?job={past[1]}")).to_be_visible()
    expect(page.get_by_text("motion_bucket: 61")).to_be_visible()
    for name, text in (("Command line", "--motion-bucket 61"), ("Python", "motion_bucket=61")):
        page.get_by_role("tab", name=name).click()
        expect(page.get_by_text(text)).to_be_visible()
    page.keyboard.press("Escape")
    button(page, "More formats").click()
    drawn, _ = read_frames(clip.with_name("frames.mkv"))
    for name, magic in (("GIF", b"GIF89a"), ("WebP", b"RIFF"), ("PNG frames", b"PK"), ("Last frame", b"\x89PNG")):
        with page.expect_download() as download:
            button(page, name).click()
        content = Path(download.value.path()).read_bytes()
        assert content.startswith(magic)
        if name in ("GIF", "WebP"):
            with Image.open(io.BytesIO(content)) as animation:
                assert getattr(animation, "n_frames", 1) == 6
        elif name == "PNG frames":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                frames = [np.asarray(Image.open(archive.open(member))) for member in archive.namelist()]
            assert np.array_equal(frames, drawn)
    page.get_by_role("combobox", name="Smoothness").click()
    page.get_by_role("option", name="Smoother").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="MP4", exact=True).click()
    smoother = Path(download.value.path()).read_bytes()
    assert len(read_frames(smoother)[0]) == 2 * len(drawn) - 1
    assert (read_settings(smoother) or {})["smooth"] == 2
    page.goto(site.address)
    page.locator("input[type=file]").set_input_files(clip)
    expect(page.get_by_text("Settings of clip.mp4 restored.")).to_contain_text("Watermark: no: ")
    expect(page.get_by_role("slider", name="Motion")).to_have_value("61")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("4711")
    page.wait_for_url(re.compile("seed=4711"))


def test_numbers_of_a_link_are_kept_to_the_last_digit(page: Any, site: Server) -> None:
    expect = sync_api.expect
    given = "rho=7.123456789&cond_aug=0.0123456789012&elevation=12.345678&image_frame_ratio=0.8765432101&fps=60"
    page.goto(f"{site.address}?{given}&version=sv3d_p&decode_chunk=5&research=on")
    chunk = page.get_by_role("spinbutton", name="Decoded at once")
    expect(chunk).to_have_value("5")
    chunk.fill("")  # before anything else is drawn
    page.keyboard.press("Tab")
    page.wait_for_url(lambda url: "decode_chunk" not in url)
    expect(chunk).to_have_value("")
    button(page, "Lake").click()
    expect(page.get_by_role("slider", name="Object's share")).to_be_visible()
    expect(page.get_by_role("slider", name="Elevation")).to_have_attribute("aria-valuetext", "12.345678°")
    expect(page.get_by_role("spinbutton", name="Rho")).to_have_value("7.123456789")
    expect(page.get_by_role("spinbutton", name="Conditioning noise")).to_have_value("0.0123456789012")
    page.get_by_role("spinbutton", name="Rho").click()  # to look into a field changes nothing
    page.get_by_role("slider", name="Steps").press("ArrowRight")
    page.wait_for_url(re.compile("steps=51"))
    expect(page.get_by_role("slider", name="Frames a second")).to_have_value("60")
    address = dict(parse_qsl(page.url.partition("?")[2]))
    others = {"sample": "lake", "research": "on"}  # so that a reload brings them, too
    assert address == dict(parse_qsl(given)) | {"version": "sv3d_p", "steps": "51"} | others
    page.get_by_role("slider", name="Elevation").press("ArrowRight")
    page.wait_for_url(re.compile(r"elevation=13(&|$)"))


def fill(path: Path) -> None:
    """Write until nothing more goes onto the disk."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(2**16)):
            pass


def test_a_full_disk_is_told_and_the_clip_can_be_downloaded(page: Any, site: Server, disk: Path) -> None:
    if not disk.is_mount():
        pytest.skip("mounting a small file system takes root")
    expect = sync_api.expect
    job = start(page, f"{site.address}?{SMALL}&steps=20", "Rocket")
    filler = disk / "filler"
    try:
        fill(filler)
        expect(page.get_by_text("there was no room to save it: download it now")).to_be_visible(timeout=LATER)
        page.locator("video").wait_for()
        page.wait_for_function("() => document.querySelector('video').readyState >= 2")
        with page.expect_download() as download:
            button(page, "Download MP4").click()
        assert len(read_frames(Path(download.value.path()))[0]) == 5
        assert sorted(path.name for path in (site.outputs / job).iterdir()) == ["input.png", "job.json"]
        button(page, "Generate").click()
        expect(page.get_by_text(re.compile("cannot be stored in .*Free some space there"))).to_be_visible()
    finally:
        filler.unlink(missing_ok=True)
    button(page, "Save again").click()
    expect(page.get_by_text("there was no room to save it")).to_have_count(0)
    assert len(read_frames(site.outputs / job / "clip.mp4")[0]) == 5
    button(page, "Generate").click()
    next_job(page, job)
    button(page, "Cancel").click()
    expect(page.get_by_text(re.compile("Stopped|Taken out"))).to_be_visible()


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def huge_png() -> bytes:
    """20,000 x 20,000 white pixels in 50 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = (20_000).to_bytes(4, "big")
    rows = zlib.compress((b"\0" + b"\xff" * 2500) * 20_000, 9)
    head = chunk(b"IHDR", side + side + b"\x01\0\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def unfolded(page: Any, box: str, title: str) -> Any:
    """A choice of a list that is unfolded; while the page is drawn anew, a list folds up again."""
    option = page.get_by_role("option", name=title)
    for _ in range(10):
        page.get_by_role("combobox", name=box, exact=True).press("ArrowDown")
        with contextlib.suppress(sync_api.TimeoutError):
            option.wait_for(timeout=1000)
            break
    return option


PASTE = """async () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [400, 300];
    const blob = await new Promise(resolve => canvas.toBlob(resolve));
    const data = new DataTransfer();
    data.items.add(new File([blob], "image.png", {type: "image/png"}));
    document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}));
}"""


def test_files_of_all_kinds(page: Any, site: Server, tmp_path: Path) -> None:
    expect = sync_api.expect
    unreadable = "We can't read that file as a picture. Use a JPG, PNG, WebP or HEIC under 20 MB."
    photo = noise((640, 384))
    frames = [noise((320, 192)).rotate(turn) for turn in (0, 180)]
    page.goto(f"{site.address}?width=320&height=192")
    page.locator(".voice").wait_for(state="attached")  # from then on the page's own script looks at files
    for name, content, said in (
        ("big.png", b"\x89PNG" + bytes(30 * 2**20), "big.png is too large: give a file of 20 MB or smaller."),
        ("text.png", b"Not a picture, but a letter.", unreadable),
        ("cut.jpg", encoded(photo, "JPEG")[:20_000], unreadable),
        ("huge.png", huge_png(), re.compile("more than the 100 megapixels")),
        ("press.jpg", encoded(photo.convert("CMYK"), "JPEG"), "Scaled 640×384 to 320×192."),
        ("photo.jfif", encoded(photo, "JPEG"), "Scaled 640×384 to 320×192."),
        ("wave.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "Used 320×192 as it is."),
        ("foreign.mp4", b"\0\0\0\x18ftypisom" + bytes(100), "We can't restore settings from that clip."),
    ):
        (tmp_path / name).write_bytes(content)
        page.locator("input[type=file]").set_input_files(tmp_path / name)
        expect(page.get_by_text(said).first).to_be_visible()
        works = name in ("press.jpg", "photo.jfif", "wave.gif")
        expect(button(page, "Generate")).to_be_enabled() if works else expect(button(page, "Generate")).to_be_disabled()
        if name == "big.png":  # it has not been sent, and leaves no card
            expect(page.get_by_test_id("stFileUploaderFile")).to_have_count(0)
            continue
        button(page, f"Remove {name}").click()
        expect(page.get_by_text(said)).to_have_count(0)
    page.evaluate(PASTE)  # onto the page, not the uploader
    cropped = page.get_by_text("Cropped 400×300 to 400×240 (5:3), scaled to 320×192.")
    expect(cropped).to_be_visible()
    page.locator("input[type=file]").set_input_files(tmp_path / "text.png")
    expect(page.get_by_text("image.png stays chosen.")).to_be_visible()
    expect(cropped).to_be_visible()
    page.reload()  # the browser has no upload then
    expect(cropped).to_be_visible()
    expect(button(page, "Generate")).to_be_enabled()
    expect(page.locator(".stException")).to_have_count(0)


QUICKLY = """async ([first, then]) => {  // a click, and another while the first one's run is drawing
    const app = document.querySelector(".stApp"), at = async () => new Promise(done => setTimeout(done, 1));
    document.querySelector(first).click();
    while (app.dataset.testScriptState !== "running") await at();
    document.querySelector(then).click();
}"""


def test_clicks_in_quick_succession_are_all_done(page: Any, site: Server) -> None:
    """The second one, which says of all widgets what they showed before the first one's run, undoes nothing of it."""
    expect = sync_api.expect
    page.goto(site.address)
    switch, settled = page.get_by_role("switch", name="New seed each time"), page.locator("[data-test-script-state]")
    for preset, motion, on in (("Calm", "60", True), ("Lively", "200", False), ("Calm", "60", True)):
        expect(page.get_by_role("spinbutton", name="Seed", exact=True)).to_have_count(1)
        expect(settled).to_have_attribute("data-test-script-state", "notRunning")
        page.evaluate(QUICKLY, [f".st-key-preset_{preset} button", ".st-key-new_seed input"])
        expect(switch).to_be_checked(checked=on)
        page.wait_for_timeout(500)
        expect(settled).to_have_attribute("data-test-script-state", "notRunning")
        assert page.get_by_role("button", name=preset, exact=True).get_attribute("aria-pressed") == "true"
        assert page.get_by_role("slider", name="Motion").input_value() == motion


# Leaves for History as soon as the address says so: while the run that writes it is still drawing, which breaks it off.
LEAVE = """words => {
    const { pushState } = history;
    history.pushState = (...state) => {
        pushState.apply(history, state);
        if (!location.search.includes(words)) return;
        history.pushState = pushState;
        [...document.querySelectorAll("a")].find(link => link.innerText.includes("History")).click();
    };
}"""


def test_from_one_picture_to_another(page: Any, site: Server, tmp_path: Path) -> None:
    """The last picture has a place of its own, and is there after a reload."""
    expect, left = sync_api.expect, Image.linear_gradient("L").resize((200, 120)).convert("RGB")
    left.save(tmp_path / "left.png")
    left.rotate(180).save(tmp_path / "right.png")
    page.goto(f"{site.address}?{SMALL}&steps=1")
    page.locator('.st-key-upload input[type="file"]').set_input_files(tmp_path / "left.png")
    expect(page.get_by_alt_text("What the model sees of left.png")).to_be_visible()
    page.get_by_role("button", name="At a last picture").click()
    expect(button(page, "Generate")).to_be_disabled()
    page.locator('.st-key-upload_last input[type="file"]').set_input_files(tmp_path / "right.png")
    expect(page.get_by_alt_text("What the model sees of right.png")).to_be_visible()
    expect(page.get_by_alt_text("What the model sees of left.png")).to_be_visible()
    button(page, "Generate").click()
    page.wait_for_url(JOB)
    expect(page.locator(".st-key-result video")).to_have_count(1, timeout=LATER)
    expect(page.get_by_text(re.compile("What ran: .*ends at a last picture"))).to_be_visible()
    page.reload()
    expect(page.get_by_alt_text("What the model sees of right.png")).to_be_visible()
    expect(page.get_by_role("button", name="At a last picture")).to_have_attribute("aria-pressed", "true")


def test_what_was_set_by_hand_stays(page: Any, site: Server) -> None:
    """Over History, another model and a reload; and the focus where it was. All charts leave the console empty."""
    expect = sync_api.expect
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.goto(f"{site.address}?guider=interval&max_guidance=2.5")
    expect(page.locator(".voice")).to_have_count(1)  # the page's script has come
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(0)
    for key in ("sample_kitten", "preset_Calm"):
        choice = page.locator(f".st-key-{key} button")
        choice.press("Enter")
        expect(choice).to_have_attribute("aria-pressed", "true")
        expect(choice).to_be_focused()
    page.get_by_text("Research settings").click()
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(3)
    numbers = {"Seed": "77", "Churn": "1.5", "Sigma max": "60", "Decoded at once": "3"}
    for label, value in numbers.items():
        page.get_by_role("spinbutton", name=label, exact=True).fill(value)
        page.keyboard.press("Tab")
    page.wait_for_url(re.compile("decode_chunk=3"))
    sliders = {"Motion": "61", "Position, left to right": "1"}
    for label, value in sliders.items():
        page.get_by_role("slider", name=label).press("ArrowRight" if value == "61" else "ArrowLeft")
        expect(page.get_by_role("slider", name=label)).to_have_value(value)
    switches = ("New seed each time", "Sliders over the whole range")
    page.wait_for_url(re.compile("crop_x=0.25"))
    page.evaluate(LEAVE, "new_seed=on&whole_ranges=on")
    for label in switches:
        page.get_by_text(label).click()

    def drawn() -> None:
        expect(page.get_by_role("spinbutton", name="Seed", exact=True)).to_have_count(1)  # once all is drawn anew
        page.wait_for_function("document.querySelector('.stApp').dataset.testScriptState === 'notRunning'")

    def all_is_there() -> None:
        drawn()
        for label, value in numbers.items():
            expect(page.get_by_role("spinbutton", name=label, exact=True)).to_have_value(value)
        for label, value in sliders.items():
            expect(page.get_by_role("slider", name=label)).to_have_value(value)
        for label in switches:
            expect(page.get_by_role("switch", name=label)).to_be_checked()
        expect(page.get_by_role("button", name="Kitten", exact=True)).to_have_attribute("aria-pressed", "true")

    page.get_by_role("heading", name="History").wait_for()
    page.get_by_role("link", name="Create").click()
    all_is_there()
    for title in ("SVD-XT 1.1 · ", "SVD tiny · "):
        option = unfolded(page, "Model", title)
        if title.startswith("SVD-XT"):
            expect(option).to_have_attribute("data-note", "missing")
        option.click()
        expect(page.get_by_text("has no weights")).to_have_count(int(title.startswith("SVD-XT")))
        drawn()
    all_is_there()
    page.reload()
    all_is_there()

    chunk, frames = (page.get_by_role("spinbutton", name=name, exact=True) for name in ("Decoded at once", "Frames"))
    for value in ("4", ""):
        chunk.fill(value)
        page.keyboard.press("Tab")
        page.wait_for_url(lambda url, value=value: ("decode_chunk=4" in url) == bool(value))
    expect(chunk).to_have_value("")
    frames.fill("500")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Frames: 500 is not between 1 and 200, so 14 will run.")).to_be_visible()
    expect(page.get_by_text(re.compile(r"made in about .* churn 1\.5"))).to_be_visible()
    expect(page.locator(".stException")).to_have_count(0)
    assert not told


LABELS = """() => [...document.querySelectorAll('[data-testid=stWidgetLabel]')].filter(label => label.checkVisibility())
    .map(label => [label.getBoundingClientRect(), label.innerText.trim()])
    .sort(([one], [other]) => one.bottom - other.bottom || one.left - other.left).map(([, text]) => text)"""


# A choice's own fields come below it, and before the next choice.
FROM_THE_TOP = [
    *(
        "Model",
        "Camera",
        "Motion",
        "Depth",
        "Frames a second",
        "Steps",
        "Seed",
        "New seed each time",
        "Speed",
        "Frames",
    ),
    *("Width", "Height", "Sampler", "Churn", "Noise scale", "Guidance", "Lowest scale", "Highest scale"),
    *("Noise schedule", "Sigma min", "Sigma max", "Rho", "Decoded at once"),
]


def test_on_a_phone_the_clip_comes_to_the_bar(browser: Any, site: Server) -> None:
    expect = sync_api.expect
    with opened_in(browser, viewport={"width": 390, "height": 844}, has_touch=True) as page:
        job = start(page, f"{site.address}?{SMALL}&steps=20", "Lake")
        button(page, "Road").click()  # another one while the first is made
        page.get_by_label("Seed", exact=True).scroll_into_view_if_needed()
        expect(page.get_by_role("button", name="Go to the preview of lake.jpg")).to_be_in_viewport()
        expect(page.get_by_role("button", name="Cancel")).to_be_in_viewport()
        button(page, "Generate").click()
        expect(page.get_by_text("1 more to come")).to_be_visible()
        assert page.locator(".st-key-progress p").first.bounding_box()["height"] < 60  # of at most two lines
        assert job_of(page) == job
        expect(page.locator("kbd")).to_be_hidden()
        expect(page.get_by_text("The clip of lake.jpg is finished.")).to_have_count(1, timeout=LATER)  # it is announced
        button(page, "Done: road.jpg").click(timeout=LATER)
        done = page.get_by_role("button", name="Done: go to the clip of road.jpg")
        expect(done).to_be_in_viewport()
        page.get_by_label("Seed", exact=True).scroll_into_view_if_needed()
        expect(page.locator("video")).not_to_be_in_viewport()
        done.click()
        expect(page.locator("video")).to_be_in_viewport()
        assert next_job(page, job) != job
        page.get_by_text("Research settings").click()
        page.get_by_text("Guidance scale of each frame").wait_for()
        assert [label for label in page.evaluate(LABELS) if label in FROM_THE_TOP] == FROM_THE_TOP


def only(page: Any, action: str) -> Any:
    """The button of the only card that is left; cards of before stay until the page is drawn."""
    found = page.locator(f"[class*=st-key-{action}_] button >> visible=true")
    sync_api.expect(found).to_have_count(1)
    return found


def test_history_filters_opens_and_deletes(page: Any, site: Server, past: tuple[Path, str]) -> None:
    expect = sync_api.expect
    page.goto(f"{site.address}history")
    page.get_by_label("Search").fill("lake 4711")
    page.get_by_label("Search").press("Enter")
    expect(page.get_by_text("Page 1 of 1 · 1 clip")).to_be_visible()
    only(page, "open").click()
    page.locator("video").wait_for()
    expect(page.get_by_role("slider", name="Motion")).to_have_value("61")
    page.get_by_role("link", name="History").click()
    page.get_by_label("Search").fill("lake 4711")
    page.get_by_label("Search").press("Enter")
    expect(page.get_by_text("Page 1 of 1 · 1 clip")).to_be_visible()
    only(page, "delete").click()
    button(page, "Keep it").click()
    expect(page.get_by_text("Delete this clip?")).to_have_count(0)
    assert (site.outputs / past[1]).is_dir()
    page.get_by_label("Search").fill("spare")
    page.get_by_label("Search").press("Enter")
    expect(page.get_by_text("lake.jpg")).to_have_count(0)
    only(page, "delete").click()
    button(page, "Delete for good").click()
    expect(page.get_by_text("No clip fits.")).to_be_visible()
    assert not [path for path in site.outputs.glob("*/job.json") if "spare.jpg" in path.read_text("utf-8")]
    page.get_by_role("link", name="Create").click()  # the page that was left is as it was
    expect(page.get_by_role("slider", name="Motion")).to_have_value("61")
    page.wait_for_function(PLAYS)
    page.locator("video").evaluate("v => v.pause()")
    page.get_by_role("link", name="History").click()
    page.get_by_label("Search").wait_for()
    page.get_by_role("link", name="Create").click()
    page.wait_for_function("document.querySelector('video')?.readyState >= 2")
    page.wait_for_timeout(300)
    assert page.locator("video").evaluate("v => v.paused")  # as the user left it
    page.locator("video").evaluate("v => v.play()")


def test_strangers_are_kept_out(page: Any, site: Server, past: tuple[Path, str]) -> None:
    def handshake(origin: str) -> str:
        key = base64.b64encode(bytes(16)).decode()
        with socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
            connection.sendall(
                f"GET /_stcore/stream HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
                f"Origin: {origin}\r\n\r\n".encode()
            )
            return connection.recv(100).decode().split()[1]

    assert handshake(site.address.rstrip("/")) == "101"
    assert handshake("http://evil.example") == "403"
    # The loopback network has more addresses than one: a server on all interfaces would answer here.
    with pytest.raises(OSError, match=r"(?i)refused|timed out|unreachable|assign"):
        socket.create_connection(("127.0.0.2", site.port), timeout=2).close()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for wrong in (f"../outputs/{past[1]}", "%2e%2e%2f%2e%2e%2fetc"):
        page.goto(f"{site.address}?job={wrong}")
        sync_api.expect(page.get_by_text("This clip is no longer on the server.")).to_be_visible()
        assert page.locator("video").count() == 0
    assert asked
    assert not [url for url in asked if not url.startswith((site.address, "data:", "blob:"))]


# Notes, for each canvas, when which frame of a sheet was drawn, and when the browser drew at all.
DRAWN = """() => {
    const { drawImage } = CanvasRenderingContext2D.prototype, canvases = [];
    Object.assign(window, { drawn: [], ticks: [] });
    CanvasRenderingContext2D.prototype.drawImage = function (image, ...where) {
        if (image instanceof ImageBitmap) {
            if (!canvases.includes(this.canvas)) canvases.push(this.canvas);
            const [x, y, width, height] = where;
            const frame = Math.round((y / height) * (image.width / width) + x / width);
            drawn.push([performance.now(), canvases.indexOf(this.canvas), frame]);
        }
        return drawImage.call(this, image, ...where);
    };
    const tick = (now) => (ticks.push(now), requestAnimationFrame(tick));
    requestAnimationFrame(tick);
}"""
PIXELS = """canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"""


def pixels(page: Any) -> np.ndarray:
    """RGB of the only canvas, int (h, w, 3)."""
    canvas = page.locator("figure canvas")
    width, height = (int(canvas.get_attribute(side)) for side in ("width", "height"))
    return np.array(canvas.evaluate(PIXELS)).reshape(height, width, 4)[..., :3]


def finished(site: Server) -> list[str]:
    """Ids of two small clips of earlier tests."""
    records = {path.parent.name: json.loads(path.read_text("utf-8")) for path in site.outputs.glob("*/job.json")}
    small = [job for job, record in sorted(records.items()) if record["request"]["frames"] == 5]
    return [job for job in small if records[job]["state"] == "done" and not records[job]["parent"]][:2]


def test_clips_are_compared_in_step(page: Any, site: Server) -> None:
    expect = sync_api.expect
    ids = finished(site)
    page.goto(f"{site.address}compare?clips={','.join(ids)}")
    expect(page.locator("figure canvas")).to_have_count(2)
    clock = page.locator(".clock")
    expect(clock).to_have_text(re.compile("Frame . of 5"))
    page.evaluate(DRAWN)
    page.wait_for_function("() => drawn.length > 20")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
    drawn = page.evaluate("drawn")
    for (at, clip, frame), (later, other, same) in zip(drawn[::2], drawn[1::2], strict=False):
        assert (clip, frame) == (1 - other, same)  # both at once, the same frame
        assert later - at < 50
    for key, frame in (("Home", 1), ("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", 5)):
        page.keyboard.press(key)
        expect(clock).to_have_text(re.compile(f"Frame {frame} of 5"))
    expect(page.get_by_role("slider", name="Moment of all clips")).to_have_attribute(
        "aria-valuetext", "Frame 5 of 5 · 0.57 s"
    )

    one, two = (read_frames(site.outputs / job / "frames.mkv")[0][4].astype(int) for job in ids)
    page.get_by_text("Wipe", exact=True).click()
    expect(page.locator("figure canvas")).to_have_count(1)
    expect(clock).to_have_text(re.compile("Frame 5 of 5"))  # as it was
    assert np.array_equal(pixels(page), np.concatenate([one[:, :80], two[:, 80:]], axis=1))
    page.get_by_role("slider", name="Border between A").press("Home")
    assert np.array_equal(pixels(page), two)
    page.get_by_text("Difference", exact=True).click()
    page.wait_for_url(re.compile("view=difference"))
    page.wait_for_function("() => document.querySelector('.difference canvas')")
    assert np.array_equal(pixels(page), np.minimum(8 * abs(one - two), 255))
    page.reload()
    expect(page.locator(".difference canvas")).to_have_count(1)
    expect(page.get_by_text("What the scores mean")).to_be_visible(timeout=LATER)
    button(page, "Remove: B").click()
    expect(page.get_by_text("Choose another clip, to nine in all")).to_be_visible()
    expect(page.locator(".stException")).to_have_count(0)


def test_a_sweep_fills_its_grid(page: Any, site: Server) -> None:
    expect = sync_api.expect
    page.goto(f"{site.address}?{SMALL}&steps=1&sample=city")
    page.get_by_text("Cropped 1024×576").wait_for()
    page.get_by_role("link", name="Sweep").click()
    page.get_by_role("textbox", name="Values of Seed").fill("1..3")
    page.keyboard.press("Tab")
    expect(page.get_by_text("3 clips")).to_be_visible()
    button(page, "Start").click()
    page.wait_for_url(re.compile("group="))
    expect(page.get_by_text("Waiting").first).to_be_visible()
    page.reload()  # neither that nor another page disturbs it
    expect(page.get_by_role("textbox", name="Values of Seed")).to_have_value("1..3")
    expect(page.locator("figure canvas")).to_have_count(3, timeout=LATER)
    tops = page.locator("figure canvas").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)")
    assert len({*tops}) == 1  # a column each
    with page.expect_download() as download:
        button(page, "Grid as MP4").click()
    assert len(read_frames(Path(download.value.path()))[0]) == 5
    button(page, "Open on Create: 2, seed 2").click()
    expect(page.get_by_text(re.compile("What ran: SVD tiny · seed 2 "))).to_be_visible()
    button(page, "Add to compare").click()
    expect(button(page, "Compare 1")).to_be_visible()
    expect(page.locator(".stException")).to_have_count(0)


DROP = """files => {
    const data = new DataTransfer();
    for (const [name, content] of files)
        data.items.add(new File([Uint8Array.from(atob(content), letter => letter.charCodeAt(0))], name));
    for (const type of ["dragover", "drop"])
        document.body.dispatchEvent(new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


# Each dropped file as if in a folder of its own, beside a link to nowhere.
FOLDERS = """() => { DataTransferItem.prototype.webkitGetAsEntry = function () {
    const file = this.getAsFile(), given = [
        { name: "link.png", isFile: true, file: (done, failed) => failed(new DOMException("gone", "NotFoundError")) },
        { name: file.name, isFile: true, file: (done) => done(file) }];
    return { name: "in", isDirectory: true, createReader: () => ({ readEntries: (done) => done(given.splice(0)) }) };
} }"""


def drop(page: Any, *files: tuple[str, bytes]) -> None:
    """Drop files onto the page, not its uploader, once it has one."""
    page.locator("input[type=file]").first.wait_for(state="attached")
    page.evaluate(DROP, [(name, base64.b64encode(content).decode()) for name, content in files])


def test_several_pictures_that_are_dropped_become_a_batch(page: Any, site: Server) -> None:
    expect = sync_api.expect
    page.goto(f"{site.address}?{SMALL}&steps=1")
    button(page, "Generate").wait_for()
    page.locator(".voice").wait_for(state="attached")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("holiday/sea.jpg", encoded(noise((320, 192)), "JPEG"))
        packed.writestr("holiday/torn.jpg", b"Torn")
    page.evaluate(FOLDERS)
    drop(page, ("hill.png", encoded(noise((160, 96)), "PNG")), ("holiday.zip", archive.getvalue()))
    expect(page.get_by_text("2 pictures")).to_be_visible()
    expect(page.get_by_text("torn.jpg is not a picture")).to_be_visible()
    expect(page.get_by_text("link.png is empty")).to_have_count(2)
    drop(page, *((f"{number}.png", b"") for number in range(201)))
    expect(page.get_by_text("These are 201 files, more than the 200 of a batch")).to_be_visible()
    expect(page.get_by_text("2 clips")).to_be_visible()
    button(page, "Start").click()
    page.wait_for_url(re.compile("group="))
    with page.expect_download(timeout=LATER) as download:
        button(page, "All as ZIP").click(timeout=LATER)
    with zipfile.ZipFile(download.value.path()) as made:
        assert made.namelist() == ["hill-seed 23.mp4", "sea-seed 23.mp4", "contact-sheet.png"]
        assert len(read_frames(made.read("sea-seed 23.mp4"))[0]) == 5
        assert Image.open(io.BytesIO(made.read("contact-sheet.png"))).width > 320
    expect(page.locator(".stException")).to_have_count(0)


SERIOUS = ("serious", "critical")
FAULTS = {"resultTypes": ["violations"]}  # all that passes would take longer to be told than to be found
_SETTLED = """background => document.querySelector('.stApp').dataset.testScriptState === 'notRunning'
    && getComputedStyle(document.querySelector('.stApp')).backgroundColor === background
    && !document.querySelector('[data-testid=stSkeleton]')
    && !document.getAnimations().some(animation => animation.playState === 'running')"""
_CLIPPED = """() => [...document.querySelectorAll('.stApp *')].filter(e => {
    const s = getComputedStyle(e), own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    return (own && s.overflowX === 'hidden' || e.value && e.tagName === 'INPUT' || e.role === 'radiogroup')
        && e.checkVisibility() && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 1;
}).map(e => (e.value || e.textContent).trim().slice(0, 80))"""


def test_all_can_read_it(page: Any, site: Server, past: tuple[Path, str]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for path, there in (
        (f"?job={past[1]}", "What ran"),
        ("history", "lake.jpg"),
        ("?version=svd_xt", "All models"),  # whose weights are missing, as a rule
        (f"compare?clips={','.join(finished(site))}&view=wipe", "What the scores mean"),
        ("sweep?vary=steps=1..3", "3 clips"),
        ("drafts", "Choose a picture first."),
        ("batch", "Choose pictures first."),
        ("?version=sv3d_p&frames=4&orbit=list&azimuths=90,180,270,360", "Start from an even orbit"),
    ):
        page.emulate_media(color_scheme="light")
        page.goto(site.address + path)
        page.get_by_text(there).first.wait_for(timeout=LATER)  # scores are computed first
        if path.startswith("?job"):
            page.get_by_text("Research settings").click()
            page.get_by_text("Guidance scale of each frame").wait_for()
        for scheme, background, rules in (
            ("light", "rgb(255, 255, 255)", {}),
            ("dark", "rgb(22, 23, 22)", {"runOnly": ["color-contrast"]}),  # the others see no colours
        ):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(_SETTLED, arg=background)  # fades would be read as faint
            faults = axe.run(page, options=FAULTS | rules).response["violations"]
            told = [(f["id"], node["html"][:160]) for f in faults if f["impact"] in SERIOUS for node in f["nodes"]]
            assert not told
        for width in (390, 768, 1280, 1920):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_function(_SETTLED, arg=background)
            assert page.evaluate(_CLIPPED) == []
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_the_keyboard_reaches_everything(page: Any, site: Server, past: tuple[Path, str]) -> None:
    page.goto(f"{site.address}?job={past[1]}")
    page.get_by_text("What ran").wait_for()
    page.get_by_text("Upload", exact=True).wait_for()
    for name in ("Giraffe", "Extend", "Generate"):  # the browser draws them as their scripts arrive
        button(page, name).wait_for()
    page.get_by_role("slider", name="Steps").wait_for()
    page.get_by_role("combobox", name="Camera").wait_for()
    wanted = {"upload", "giraffe", "model", "camera", "motion", "steps", "seed", "download mp4", "new take", "extend"}
    seen = []
    for _ in range(100):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "() => { const e = document.activeElement; return e.getAttribute('aria-label') || e.innerText || "
            "(e.labels && e.labels[0] && e.labels[0].innerText) || (e.closest('label') || {}).innerText || e.tagName }"
        )
        seen.append(name)
        wanted -= {part for part in wanted if part in name.lower()}
        if not wanted:
            break
    assert not wanted, seen
    page.keyboard.press("Control+Enter")
    next_job(page, past[1])
    button(page, "Cancel").press("Enter")
    sync_api.expect(page.get_by_text(re.compile("Stopped|Taken out"))).to_be_visible(timeout=LATER)
    sync_api.expect(button(page, "Generate")).to_be_focused()  # Cancel is gone, and the focus is near it


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_sessions_take_turns_and_outlive_a_kill(page: Any, browser: Any, site: Server) -> None:
    """The last test here: afterwards the server is another, which is asked more often."""
    expect = sync_api.expect
    polls = 0

    def count(frame: Any) -> None:
        nonlocal polls
        polls += ForwardMsg.FromString(frame).WhichOneof("type") == "script_finished"

    def count_polls_of(tab: Any) -> None:
        tab.on("websocket", lambda socket: socket.on("framereceived", count))

    count_polls_of(page)
    running = start(page, f"{site.address}?steps=120&width=160&height=96")
    with opened_in(browser) as other:
        cancelled = start(other, f"{site.address}?{SMALL}&steps=1&seed=5", "Lake")
        expect(other.get_by_text("Number 1 in line")).to_be_visible()
        expect(other.get_by_text("1 waiting")).to_be_visible()
        button(other, "Cancel").click()
        expect(other.get_by_text("Taken out of the queue. Your settings are kept.")).to_be_visible()
        button(other, "Run again").click()
        waiting = next_job(other, cancelled)
        expect(other.get_by_text("Number 1 in line")).to_be_visible()
        expect(page.get_by_text(re.compile(r"Step \d+ of 120"))).to_be_visible(timeout=LATER)
        expect(page.get_by_alt_text("A preview of the clip of giraffe.jpg")).to_be_visible()
        page.locator("img[data-job][src^='data:image/webp']").first.wait_for(timeout=LATER)  # the whole clip, moving
        drawn, progress = polls, page.locator(".told p").first
        for _ in range(2):
            text = progress.inner_text()
            expect(progress).not_to_have_text(text)
        assert polls == drawn  # by the browser alone

        site.process.kill()
        site.process.wait()
        states = {
            job: json.loads((site.outputs / job / "job.json").read_text("utf-8"))["state"]
            for job in (running, waiting, cancelled)
        }
        assert states == {running: "running", waiting: "queued", cancelled: "cancelled"}
        assert not [path for job in states for path in (site.outputs / job).glob("*.m*")]
        site.start(poll=0.05, bare=True)
        # The tabs that stayed open find the new server by themselves.
        expect(page.get_by_text("The server was stopped before the clip was finished.")).to_be_visible(timeout=LATER)
        other.locator("video").wait_for(timeout=LATER)  # it was resumed
        expect(other.locator(".stException")).to_have_count(0)
    left = [path.name for path in site.outputs.rglob("*") if path.suffix == ".tmp" or path.name.startswith(".")]
    assert not left

    button(page, "Run again").click()
    next_job(page, running)
    expect(page.get_by_text(re.compile(r"Step \d+ of 120"))).to_be_visible(timeout=LATER)
    expect(page.get_by_alt_text("A preview of the clip of giraffe.jpg")).to_be_visible()
    with opened_in(browser) as other:
        count_polls_of(other)
        other.goto(page.url)
        expect(other.get_by_alt_text("A preview of the clip of giraffe.jpg")).to_be_visible()
        polls, grown = 0, []
        while not grown or (min(grown) >= 3 and len(grown) < 6):  # what polls leave behind grows with all of them
            before, polls = site.memory, 0
            while polls < 40:
                assert button(page, "Cancel").is_visible(), "the clip is made, so nobody polls"
                page.wait_for_timeout(50)
            grown.append(site.memory - before)
        assert min(grown) < 3, f"MB more after 40 polls each: {grown}"
    button(page, "Cancel").click()
    expect(page.get_by_text(re.compile(r"Stopped at step \d+ of 120\. Your settings are kept\."))).to_be_visible()
    expect(page.get_by_role("slider", name="Steps")).to_have_value("120")
    expect(page.locator(".stException")).to_have_count(0)
