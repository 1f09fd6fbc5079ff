"""One picture, seed and settings give one video, by the page, the command line, a batch and the library."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from app import jobs
from app.jobs import Table, open_stored
from app.link import address_of, request_from
from app.upload import read_upload
from sgm import Clip, UserError, VideoRequest, generate, load_engine, open_picture, prepare_picture, read_frames
from sgm.cli.commands import cli

ROOT = Path(__file__).parents[2]
SMALL = {"frames": 2, "steps": 1, "width": 64, "height": 64}
SIZES = [(97, 41), (41, 97), (64, 64), (63, 65), (200, 31), (31, 200), (1, 40), (129, 128), (40, 30), (5000, 37)]


def picture(number: int) -> tuple[str, bytes]:
    """A picture's file of the kind of that number: each has its own shape, turn, mode and format."""
    width, height = SIZES[number]
    noise = np.random.default_rng(number).integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(noise if number % 3 == 0 else noise[..., :3])
    exif = Image.Exif()
    exif[0x0112] = number % 8 + 1
    profile = {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()} if number % 2 else {}
    if number == 6:
        image = image.convert("P")
        profile = {"transparency": bytes(range(256))}
    kind = "JPEG" if number % 3 == 1 else "WEBP" if number == 8 else "PNG"
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **profile)
    return f"{number}.{kind.lower()}", file.getvalue()


FITS = [{"fit": "crop", "crop_x": 0.3, "crop_y": 0.85}, {"fit": "pad", "crop_x": 0.2}]


def refuse(*_) -> Clip:
    """A runner for tests that look at the stored picture alone."""
    raise UserError("No clip is wanted.")


@pytest.mark.parametrize("options", FITS)
def test_the_page_stores_what_the_command_line_reads(options, tmp_path: Path) -> None:
    """The model sees the same pixels: the page keeps the whole picture, as PNG, and fits it as late."""
    table = Table(tmp_path, refuse)
    request = VideoRequest("svd_tiny", **SMALL, **options)
    for name, content in map(picture, range(len(SIZES))):
        upload = read_upload(content, name)
        assert upload.picture
        job = table.submit(request, upload.picture, name)
        seen = prepare_picture(open_stored(job.picture), job.request)
        assert seen.tobytes() == prepare_picture(open_picture(content), request).tobytes(), name
    table.close()


def test_a_large_upload_is_stored_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(tmp_path, refuse)
    monkeypatch.setattr(jobs, "_table", table)
    name, content = picture(9)
    page = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60).run()
    page.file_uploader[0].set_value((name, content, "application/octet-stream")).run()
    next(button for button in page.button if button.label == "Generate").click().run()
    assert not page.exception
    assert open_stored(table.jobs()[0].picture).tobytes() == open_picture(content, keep_alpha=True).tobytes()
    table.close()


def test_page_batch_command_line_library_and_link_are_bit_identical(tmp_path: Path) -> None:
    request = VideoRequest("svd_tiny", seed=5, **SMALL, **FITS[0])
    assert request_from(address_of(request)) == request
    pictures, out, table = tmp_path / "pictures", tmp_path / "out", Table(tmp_path / "page")
    pictures.mkdir()
    files = dict(picture(number) for number in (0, 7))
    for name, content in files.items():
        (pictures / name).write_bytes(content)
    words = [text for name, value in request.choices().items() for text in (f"--{name.replace('_', '-')}", str(value))]

    def sample(source: Path, out: Path) -> None:
        done = CliRunner().invoke(cli, ["sample", str(source), *words, "--out", str(out)], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr

    sample(pictures, out)
    sample(pictures / "0.png", out / "alone.mp4")
    assert (out / "alone.mp4").read_bytes() == (out / "0-svd_tiny-5.mp4").read_bytes()
    engine = load_engine("svd_tiny")
    for name, content in files.items():
        upload = read_upload(content, name)
        assert upload.picture
        job = table.wait(table.submit(request, upload.picture, name).id, 60)
        assert job
        assert job.state == "done", job.message
        assert job.clip.read_bytes() == (out / f"{name[0]}-svd_tiny-5.mp4").read_bytes()
        clip = generate(engine, request, open_picture(pictures / name))
        np.testing.assert_array_equal(clip.frames, read_frames(job.frames)[0])
        assert clip.settings == job.settings
    table.close()
