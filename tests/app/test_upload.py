"""What a visitor drops: a picture or a clip, by its content; a clip gives back all that it can, or nothing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.upload import LARGEST, read_upload
from sgm import PictureError, UserError, VideoRequest, embed_watermark, encode_video, write_video

ROOT = Path(__file__).resolve().parents[2]
REQUEST = VideoRequest("svd_tiny", frames=3, width=64, height=64, seed=9)
RECIPE = {**REQUEST.settings(), "sgm": {"format": 1}}
NOISE = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 1), np.uint8)
FRAMES = np.repeat(NOISE, 3, axis=-1)  # grey, since H.264 blurs colours


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES[:3], 7, RECIPE).read_bytes()


def shows(picture: Image.Image | None, frame: np.ndarray) -> bool:
    return picture is not None and bool(np.abs(np.asarray(picture).astype(int) - frame).mean() < 8)


def test_a_picture_of_any_name_is_one() -> None:
    file = io.BytesIO()
    Image.fromarray(FRAMES[0]).save(file, "PNG")
    for name in ("photo.png", "photo", "clip.mp4"):
        upload = read_upload(file.getvalue(), name)
        assert shows(upload.picture, FRAMES[0])
        assert (upload.request, upload.note) == (None, "")
    with pytest.raises(PictureError, match="page is not a picture"):
        read_upload(b"<nonsense", "page")
    with pytest.raises(UserError, match=f"large.png is larger than the {LARGEST} MB"):
        read_upload(file.getvalue() + bytes(LARGEST << 20), "large.png")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.png", "clip"])
def test_a_clip_of_any_name_gives_its_settings_and_its_picture(name: str, clip: bytes) -> None:
    for content in (clip, clip[: len(clip) * 2 // 3]):  # cut short behind its first frame
        upload = read_upload(content, name)
        assert upload.request == REQUEST
        assert shows(upload.picture, FRAMES[0])
        assert upload.note == f"Settings of {name} restored. Its first frame stands in for the picture."


def test_the_watermark_is_told_and_its_absence_of_our_clips_alone(clip: bytes) -> None:
    with Image.open(ROOT / "app/samples/giraffe.jpg") as picture:
        plain = np.asarray(picture.convert("RGB").resize((320, 192)))
    marked, mark = encode_video(plain[None], 7, {**RECIPE, "sgm": {"format": 1, "watermark": True}}), "48 of 48 bits."
    assert read_upload(marked, "clip.mp4").mark == f"Watermark: marked: {mark}"
    assert read_upload(clip, "clip.mp4").mark.startswith("Watermark: no: ")
    for pixels, told in ((embed_watermark(plain), f"A model made photo. Watermark: marked: {mark}"), (plain, "")):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        assert read_upload(file.getvalue(), "photo").mark == told
    with pytest.raises(UserError, match=f"holds no settings of ours.* Watermark: marked: {mark}"):
        read_upload(encode_video(embed_watermark(plain)[None], 7), "elsewhere.mp4")


def test_a_clip_without_its_picture_gives_its_settings_and_says_so(clip: bytes, tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mp4", FRAMES, 7, RECIPE).read_bytes()
    assert shows(read_upload(film, "film").picture, FRAMES[3])
    many = write_video(tmp_path / "many.mp4", np.zeros((801, 32, 32, 3), np.uint8), 7, RECIPE).read_bytes()
    for content, reason in (
        (clip[: clip.index(b"mdat") + 4], "no picture in it"),
        (film[: len(film) // 2], "cut short"),
        (many, "more frames than the 800"),
    ):
        upload = read_upload(content, "clip.mp4")
        assert (upload.picture, upload.request) == (None, REQUEST)
        assert upload.note.startswith("Settings of clip.mp4 restored. No picture could be read from it: clip.mp4 ")
        assert reason in upload.note


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (None, "holds no settings of ours"),
        ({}, "holds no settings of ours"),
        ({"version": "1.6", "seed": 3}, "holds no settings of ours"),
        ({**RECIPE, "steps": 0}, "steps must be a whole number"),
        ({**RECIPE, "sgm": {"format": 2}}, "newer program"),
    ],
)
def test_a_clip_whose_settings_cannot_be_taken_gives_nothing(settings, sentence: str, tmp_path: Path) -> None:
    content = write_video(tmp_path / "clip.mp4", FRAMES, 7, settings).read_bytes()
    with pytest.raises(UserError, match=sentence):
        read_upload(content, "clip.mp4")
