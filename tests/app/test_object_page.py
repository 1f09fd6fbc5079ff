"""The page for SV3D: the object cut out and shown before the work, its orbit, what is made of them by a small model."""

from __future__ import annotations

import io
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from streamlit.testing.v1 import AppTest

from app import jobs
from app.create import cutout
from app.jobs import Job, Table, open_stored
from sgm import Clip, VideoRequest, fetched_share, orbit_of, place_object, prepare_picture, read_frames
from sgm import generate as generate_clip
from sgm.config import instantiate_from_config, load_config
from sgm.media import object as module
from tests.app.test_page import ROOT, ended, generate, job_of, labels, ok, pressed, said
from tests.media.test_object import DARK_OBJECT
from tests.small_model import official_layout, write_empty
from tests.test_parity import OWN, golden_weights

SMALL = {"version": "sv3d_p", "width": "64", "height": "64", "frames": "4", "steps": "1"}
LIMIT = 30.0  # seconds


@pytest.fixture(scope="module")
def engine() -> Any:
    engine = instantiate_from_config(load_config(OWN / "sv3d_p_small.yaml")["model"]).eval().requires_grad_(False)
    engine.version = "sv3d_p"
    return golden_weights(OWN).fill(engine).freeze()


@pytest.fixture
def home(tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for rembg's models, no way out, sv3d_p "installed", and a table that runs a small model."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        proxy = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    for name in ("HOME", "U2NET_HOME", "SGM_CHECKPOINTS"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("MODEL_CHECKSUM_DISABLED", "1")  # rembg's releases for Python 3.10 take their own models only
    module._session.cache_clear()
    write_empty(tmp_path / "sv3d_p.safetensors", official_layout("sv3d_p"))

    def run(job: Job, *told: Any) -> Clip:
        return generate_clip(engine, job.request, open_stored(job.picture), *told)

    table = Table(tmp_path / "outputs", run)
    monkeypatch.setattr(jobs, "_table", table)
    yield tmp_path
    table.close()
    module._session.cache_clear()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Image.Image]:
    """What the page has shown of objects."""
    pictures: list[Image.Image] = []

    def place(*args: Any) -> Image.Image:
        pictures.append(place_object(*args))
        return pictures[-1]

    monkeypatch.setattr(cutout, "place_object", place)
    return pictures


def opened(**settings: str) -> AppTest:
    page = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=LIMIT)
    page.query_params.update(SMALL | settings)
    return ok(page.run())


def uploaded(page: AppTest, image: Image.Image, name: str = "chair.png") -> AppTest:
    file = io.BytesIO()
    image.save(file, "PNG")
    return ok(page.file_uploader[0].set_value((name, file.getvalue(), "image/png")).run())


def until(page: AppTest, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 8 * LIMIT  # the first import of rembg in a new environment compiles for long
    while not condition():
        assert time.monotonic() < deadline, said(page)
        time.sleep(0.3)
        ok(page.run())


def chair() -> Image.Image:
    """Half see-through at its edge, off the centre, on green that nobody is to see."""
    picture = Image.new("RGBA", (200, 100), (0, 255, 0, 0))
    ImageDraw.Draw(picture).rectangle((140, 20, 179, 99), (200, 30, 30, 128))
    ImageDraw.Draw(picture).rectangle((145, 25, 179, 99), (200, 30, 30, 255))
    return picture


def test_what_is_shown_is_what_the_model_sees_and_the_clip_s_last_frame(home: Path, shown: list[Image.Image]) -> None:
    page = uploaded(opened(orbit="list", azimuths="90,180,270,360"), chair())
    assert "The model sees exactly this: the object on white, 64×64." in said(page)
    assert not {"Crop position", "Frame", "Motion"} & labels(page)
    ok(page.slider(key="image_frame_ratio").set_value(0.5).run())
    before = shown[-1]
    red = (np.asarray(before)[..., 1] < 200).nonzero()
    assert [np.ptp(axis) + 1 for axis in red] == pytest.approx([32, 16], abs=1)  # half of the frame, and whole
    ok(generate(page).click().run())
    job = ended(job_of(page))
    assert job.state == "done", job.message
    assert (job.request.fit, job.request.image_frame_ratio, job.request.orbit) == ("object", 0.5, "list")
    stored = open_stored(job.picture)
    assert stored.mode == "RGBA"
    assert np.array_equal(np.asarray(prepare_picture(stored, job.request)), np.asarray(before))
    last = read_frames(job.clip)[0][-1].astype(float)
    assert np.abs(last - np.asarray(before)).mean() < 3  # H.264 lies between
    ok(page.run())
    assert "Turntable (WebP)" in [button.proto.label for button in page.get("download_button")]
    assert next(button for button in page.button if button.label == "Extend").disabled
    assert "orbit own list · " in said(page)

    again = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=LIMIT)  # by its link
    again.query_params["job"] = job.id
    ok(again.run())
    assert np.array_equal(np.asarray(shown[-1]), np.asarray(before))
    ok(pressed(again, "New take"))
    take = ended(job_of(again))
    assert take.state == "done", take.message
    assert take.picture.read_bytes() == job.picture.read_bytes()

    fresh = opened()
    ok(fresh.file_uploader[0].set_value(("orbit.mp4", job.clip.read_bytes(), "video/mp4")).run())
    assert fresh.text_area(key="azimuths").value == "90, 180, 270, 360"
    assert "Its last frame stands in for the picture." in fresh.success[0].value


def test_the_page_s_clip_is_that_of_the_library_with_the_whole_picture(home: Path, engine: Any) -> None:
    page = opened(fit="crop", crop_x="0.3", steps="2")
    x, y = np.meshgrid(np.arange(300), np.arange(170))
    photo = Image.fromarray(np.stack([x % 256, y % 256, (3 * x + y) % 256], -1).astype(np.uint8))
    uploaded(page, photo)
    assert page.select_slider(key="crop_x").value == 0.3
    ok(generate(page).click().run())
    job = ended(job_of(page))
    assert job.state == "done", job.message
    assert job.request == VideoRequest("sv3d_p", fit="crop", crop_x=0.3, width=64, height=64, frames=4, steps=2)
    assert np.array_equal(read_frames(job.frames)[0], generate_clip(engine, job.request, photo).frames)


def test_rembg_cuts_out_what_has_no_transparency(home: Path, shown: list[Image.Image]) -> None:
    shutil.copy(DARK_OBJECT, home / "u2net.onnx")
    picture = Image.new("RGB", (150, 100), "white")
    ImageDraw.Draw(picture).ellipse((100, 10, 140, 50), "black")
    page = uploaded(opened(), picture)
    assert generate(page).disabled or shown
    until(page, lambda: bool(shown))
    dark = (np.asarray(shown[-1]).max(axis=-1) < 128).nonzero()
    assert [axis.mean() for axis in dark] == pytest.approx([32, 32], abs=1.5)
    ok(generate(page).click().run())
    job = ended(job_of(page))
    assert job.state == "done", job.message
    assert np.array_equal(np.asarray(prepare_picture(open_stored(job.picture), job.request)), np.asarray(shown[-1]))


def test_what_rembg_would_fetch_is_said_before_and_that_it_cannot_after(home: Path) -> None:
    page = uploaded(opened(), Image.new("RGB", (64, 64), "white"))
    said_before = page.info[0].value.replace("\\", "")
    assert f"rembg fetches its model u2net (176 MB) into {home}, once" in said_before
    assert generate(page).disabled
    ok(pressed(page, "Fetch it and cut the object out"))
    until(page, lambda: bool(page.error))
    told = page.error[0].value.replace("\\", "")
    assert "rembg could not get its model u2net" in told
    assert "Go online once, name a folder that holds u2net.onnx in U2NET_HOME, or give a picture" in told
    assert generate(page).disabled
    ok(pressed(page, "Try again"))
    assert page.info
    uploaded(page, chair())  # needs no model
    assert not page.info
    assert not generate(page).disabled


def test_how_much_of_rembg_s_model_has_come(home: Path) -> None:
    assert fetched_share() is None
    folder = home / "models" / "u2net"
    folder.mkdir(parents=True)
    with (folder / "tmpabc").open("wb") as part:  # as rembg's downloader names it
        part.truncate(44_000_000)
    assert fetched_share() == 0.25


def test_orbits_are_chosen_checked_and_shown_before_anything_runs(home: Path) -> None:
    page = opened()

    def plot() -> str:
        return next((image.proto.imgs[0].alt for image in page.get("image") if "orbit" in image.proto.imgs[0].alt), "")

    def tell(field: str, text: str) -> str:
        ok(page.text_area(key=field).set_value(text).run())
        return page.error[0].value.replace("\\", "") if page.error else ""

    ok(page.slider(key="elevation").set_value(-20.0).run())
    assert "at elevations of -20° to -20°" in plot()
    ok(page.button_group(key="orbit").set_value("dynamic").run())
    drawn = plot()
    ok(page.number_input(key="seed").set_value(5).run())
    assert plot() != drawn
    ok(page.toggle(key="new_seed").set_value(True).run())
    assert "Each new seed draws another orbit" in said(page)
    ok(page.toggle(key="new_seed").set_value(False).run())
    wanted = orbit_of(VideoRequest("sv3d_p", frames=4, orbit="dynamic", seed=5, elevation=-20))
    ok(page.button_group(key="orbit").set_value("list").run())  # starts as what was shown
    assert [float(word) for word in (page.text_area(key="azimuths").value or "").split(",")] == pytest.approx(
        wanted[1], abs=0.06
    )
    assert "Elevation" not in labels(page)
    assert "azimuths must be 4 numbers, one a frame; got 3" in tell("azimuths", "90 180 270")
    assert not plot()
    assert "azimuths must be numbers with commas between, as in 0, 12.5, 30; got 'b'" in tell("azimuths", "1, b")
    assert "Steps" in labels(page)
    assert "azimuths must rise strictly; number 3 is 90 after 180" in tell("azimuths", "80, 180, 90, 360")
    assert "number 4 is 361" in tell("azimuths", "90, 180, 270, 361")
    assert tell("azimuths", "90, 180, 270, 360") == ""
    assert "from -90 to 90 degrees; number 1 is 95" in tell("elevations", "95, 0, 0, 0")
    assert tell("elevations", "") == ""
    assert "Elevation" in labels(page)  # which holds all around
    assert page.query_params["azimuths"] in ("90, 180, 270, 360", ["90, 180, 270, 360"])
    ok(pressed(page, "Start from an even orbit"))
    assert page.text_area(key="elevations").value == "-20, -20, -20, -20"
    assert "at elevations of -20° to -20°" in plot()
    ok(page.selectbox(key="version").set_value("sv3d_u").run())
    assert not {"Elevation", "Motion"} & labels(page)
    assert not {"elevations", "azimuths"} & {area.key for area in page.text_area}
    assert "at elevations of 0° to 0°" in plot()
    assert jobs.table().jobs() == []


def test_motion_goes_with_the_version_until_it_is_set(home: Path) -> None:
    page = opened(version="svd_xt")

    def motion(version: str) -> object:
        ok(page.selectbox(key="version").set_value(version).run())
        return page.slider(key="motion_bucket").value

    assert [motion(name) for name in ("svd_xt_lcm", "svd_xt", "svd_xt_lcm")] == [80, 127, 80]
    assert page.button(key="preset_Balanced").proto.type == "primary"
    assert page.slider(key="steps:svd_xt_lcm").value == 4
    assert page.selectbox(key="sampler:svd_xt_lcm").value == "lcm"
    ok(page.slider(key="motion_bucket").set_value(60).run())
    assert [motion(name) for name in ("svd", "svd_xt_lcm")] == [60, 60]
