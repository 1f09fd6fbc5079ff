"""Takes the README's pictures of the page anew, with clips that svd_tiny makes: `python docs/screenshots.py`.

Needs what the browser tests need, and fonts for Chinese and Japanese. Takes a few minutes on two cores.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from playwright.sync_api import sync_playwright
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.app.test_browser import (  # noqa: E402
    BROWSER,
    FLAGS,
    JOB,
    LATER,
    Server,
    button,
    job_of,
    next_job,
    opened_in,
    start,
)
from tests.app.test_stand import Site  # noqa: E402

DESKTOP, PHONE = {"width": 1280, "height": 980}, {"width": 390, "height": 844}
STAND = {"width": 1080, "height": 1920}


def save(page: Any, name: str, settled: bool = True) -> None:
    """One picture, 1000 pixels wide at most; `settled`: once all is drawn."""
    if settled:
        page.wait_for_function("document.querySelector('.stApp').dataset.testScriptState === 'notRunning'")
        page.wait_for_timeout(4500)  # pictures and fades, last those of the player's controls
    image = Image.open(io.BytesIO(page.screenshot()))
    image.thumbnail((1000, 1000))
    image.save(HERE / f"{name}.webp", quality=82, method=6)
    print(f"{name}.webp", flush=True)


def compare(page: Any, server: Server) -> None:
    """Clips of one picture with other settings, in step."""
    clips = []
    for settings in ("", "&steps=3", "&camera=pan_left", "&camera=zoom_in&motion_bucket=200"):
        page.goto(f"{server.address}?sample=city{settings}")
        page.get_by_text("Cropped").wait_for()
        button(page, "Generate").click()
        page.wait_for_url(JOB)
        clips.append(job_of(page))
        page.locator("video").wait_for()
    page.goto(f"{server.address}compare?clips={','.join(clips)}")
    page.get_by_text("What the scores mean").wait_for()
    save(page, "compare")


def sweep(page: Any, server: Server) -> None:
    """A grid that fills."""
    page.goto(f"{server.address}?sample=giraffe")
    page.get_by_text("Cropped").wait_for()
    page.get_by_role("link", name="Sweep").click()
    for name, values in (("Steps", "1,2,4"), ("Seed", "1..4")):
        page.get_by_role("textbox", name=f"Values of {name}").fill(values)
        page.keyboard.press("Tab")
    page.get_by_text("12 clips").wait_for()
    button(page, "Start").click()
    page.locator("figure canvas").nth(5).wait_for()
    page.locator(".controls").scroll_into_view_if_needed()
    save(page, "sweep", settled=False)
    button(page, "Cancel").click()
    button(page, "Grid as MP4").wait_for()


def batch(page: Any, server: Server) -> None:
    """Pictures that were dropped, and the grid of those before."""
    samples = HERE.parent / "app" / "samples"

    def choose(*names: str) -> None:
        page.locator("input[type=file][multiple]").first.set_input_files([samples / f"{name}.jpg" for name in names])
        page.get_by_text(f"{len(names)} pictures").wait_for()

    page.goto(f"{server.address}batch")
    choose("lake", "giraffe", "road", "city")
    button(page, "Start").click()
    button(page, "All as ZIP").wait_for()
    choose("kitten", "rocket", "lake")
    save(page, "batch")


def views(page: Any, server: Server) -> None:
    """The sample clip as SV4D sees it, and its views around the object, side by side."""
    page.goto(f"{server.address}?version=sv4d2&sample=penguin")
    page.get_by_text("The model sees exactly this").wait_for()
    both = page.locator(".st-key-clip_seen_place"), page.locator('img[alt^="The views"]')
    row = Image.new("RGB", (800, 400), "white")
    for i, part in enumerate(both):
        part.scroll_into_view_if_needed()
        page.mouse.move(0, 0)
        page.wait_for_timeout(4500)
        image = Image.open(io.BytesIO(part.screenshot()))
        image.thumbnail((390, 390))
        row.paste(image, (5 + 400 * i, (400 - image.height) // 2))
    row.save(HERE / "views.webp", quality=82, method=6)
    print("views.webp", flush=True)


def between(page: Any, server: Server) -> None:
    """A clip from the left of a picture to its right, and what can be done with it."""
    road = Image.open(HERE.parent / "app" / "samples" / "road.jpg")
    step = round(0.12 * road.width)
    for name, left in (("left", 0), ("right", step)):
        road.crop((left, 0, left + road.width - step, road.height)).save(server.outputs.parent / f"{name}.png")
    page.goto(server.address)
    page.locator('.st-key-upload input[type="file"]').set_input_files(server.outputs.parent / "left.png")
    page.get_by_alt_text("What the model sees of left.png").wait_for()
    button(page, "At a last picture").click()
    page.locator('.st-key-upload_last input[type="file"]').set_input_files(server.outputs.parent / "right.png")
    page.get_by_alt_text("What the model sees of right.png").wait_for()
    button(page, "Generate").click()
    page.locator("video").wait_for()
    page.get_by_text("Frame", exact=True).first.evaluate("it => it.scrollIntoView()")
    save(page, "between")


def settings(browser: Any, server: Server) -> None:
    """The settings of a clip, with a made-up LoRA, and the research settings below them."""
    with opened_in(browser, viewport={"width": 1280, "height": 1500}, color_scheme="light") as page:
        page.set_default_timeout(LATER)
        page.goto(f"{server.address}?sample=giraffe&lora=slow-pans:0.8&depth=1.5&research=on")
        page.get_by_text("Noise (sigma) at each step").wait_for()
        page.get_by_text("2 · Movement").evaluate("it => it.scrollIntoView()")
        save(page, "settings")


def stand(browser: Any, folder: Path) -> None:
    """Four stages of the stand, side by side."""
    site, shots = Site(folder / "stand"), []
    site.start("--stand-rest", "3600", before="")
    try:
        with (
            opened_in(browser, viewport=STAND, color_scheme="light", locale="en") as page,
            opened_in(browser) as second,
            opened_in(browser) as third,  # not a tab beside the second one's: a browser's tabs share its film
        ):
            for visitor in (page, second, third):
                visitor.set_default_timeout(LATER)
            page.add_init_script("HTMLInputElement.prototype.capture ??= ''")  # as on a tablet

            def shoot(there: str) -> None:
                page.locator(there).last.wait_for(timeout=3 * LATER)  # three films, at the end
                page.wait_for_timeout(1500)
                shots.append(Image.open(io.BytesIO(page.screenshot())).resize((250, 444), Image.Resampling.LANCZOS))

            page.goto(site.address)
            shoot(".st-key-pictures")
            page.locator(".st-key-picture_3 button").click()
            shoot(".st-key-moods")
            for visitor in (second, third):  # two before it, so that its number is seen
                visitor.goto(site.address)
                visitor.locator(".st-key-picture_1 button").click()
                visitor.locator(".st-key-make button").click()
                visitor.locator(".st-key-stage_making").wait_for()
            page.locator(".st-key-make button").click()
            shoot(".number")
            shoot("video")
    finally:
        site.kill()
    row = Image.new("RGB", (250 * len(shots), 444))
    for i, shot in enumerate(shots):
        row.paste(shot, (250 * i, 0))
    row.save(HERE / "stand.webp", quality=82, method=6)
    print("stand.webp", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        loras = Path(folder) / "loras"
        loras.mkdir()
        about = {"modelspec.title": "Slow pans", "sgm.base": "svd_tiny", "sgm.steps": "200"}
        layer = "diffusion_model.middle_block.1.time_stack.0.attn1.to_q.lora_down.weight"
        save_file({layer: torch.zeros(2, 8)}, loras / "slow-pans.safetensors", about)
        os.environ["SGM_CHECKPOINTS"] = str(Path(folder) / "checkpoints")  # beside which LoRAs lie
        server = Server(Path(folder) / "outputs")
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        server.start()
        try:
            jobs = {}
            with opened_in(browser, viewport=DESKTOP) as page:
                page.set_default_timeout(LATER)
                page.goto(server.address)
                page.get_by_text("Your clip will play here").wait_for()
                save(page, "empty")
                for sample in ("Road", "City", "Giraffe", "Kitten"):
                    jobs[sample] = start(page, server.address, sample)
                    page.locator("video").wait_for()
                button(page, "Lake").click()
                button(page, "Generate").click()
                jobs["Lake"] = next_job(page, jobs["Kitten"])
                page.get_by_alt_text("A preview of the clip of lake.jpg").wait_for()
                save(page, "running", settled=False)
                page.locator("video").wait_for()
                save(page, "create")
                page.goto(f"{server.address}history")
                page.get_by_text("Page 1 of 1").wait_for()
                save(page, "history")
                between(page, server)
                compare(page, server)
                sweep(page, server)
                batch(page, server)
                views(page, server)
            settings(browser, server)
            for name, viewport, scheme in (("dark", DESKTOP, "dark"), ("phone", PHONE, "light")):
                with opened_in(browser, viewport=viewport, color_scheme=scheme) as page:
                    page.goto(f"{server.address}?job={jobs['Lake' if name == 'dark' else 'Kitten']}")
                    page.locator("video").wait_for()
                    save(page, name)
            stand(browser, Path(folder))
        finally:
            server.stop()
            browser.close()


if __name__ == "__main__":
    main()
