"""The watermark: read by the original's package and by us, after encoding, scaling and cropping; never without."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.watermark import encoded
from sgm import (
    EXPORTS,
    detect_watermark,
    embed_watermark,
    encode_video,
    read_frames,
    read_settings,
    read_watermark,
    write_video,
)
from sgm.cli.commands import cli
from sgm.media import watermark

BITS = np.array([bit == "1" for bit in f"{0xB3EC907BB19E:048b}"])
RECIPE = {"version": "svd_tiny", "seed": 3, "sgm": {"format": 1, "watermark": True}}


def photograph(count: int, height: int, width: int) -> np.ndarray:
    """Frames of a sample, panned over."""
    with Image.open(Path(__file__).parents[2] / "app/samples/giraffe.jpg") as picture:
        pixels = np.asarray(picture.convert("RGB").resize((width + 2 * count, height + count)))
    return np.stack([pixels[i : i + height, 2 * i : 2 * i + width] for i in range(count)])


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return photograph(6, 192, 320)


@pytest.fixture(scope="module")
def written(clip: np.ndarray) -> bytes:
    return encode_video(clip, 7, RECIPE)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def by_definition(frame: np.ndarray) -> np.ndarray:
    """Each bit's mean vote, (48,), by the words of the watermark's definition, block by block."""
    u = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV)[..., 1].astype(float)
    band = u[0::2, 0::2] + u[1::2, 0::2] + u[0::2, 1::2] + u[1::2, 1::2]
    votes = []
    for y in range(0, band.shape[0], 4):
        for x in range(0, band.shape[1], 4):
            block = band[y : y + 4, x : x + 4].ravel() / 2
            votes.append(abs(block[1:]).max() % 36 > 18)
    return np.array([np.mean(votes[bit::48]) for bit in range(48)])


@pytest.fixture(params=["by definition", "by the package"])
def read(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[np.ndarray], np.ndarray]:
    """What reads a frame's bits. Of invisible-watermark its dependency opencv-python would overwrite our OpenCV."""
    if request.param == "by definition":
        return by_definition
    if not importlib.util.find_spec("imwatermark"):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", "--timeout", "10"]
        alone = ["install", "--no-deps", "--only-binary", ":all:", "--target", str(tmp_path)]
        ran = subprocess.run([*pip, *alone, "invisible-watermark==0.2.0"], capture_output=True, text=True, timeout=60)
        if ran.returncode:
            pytest.skip(f"invisible-watermark cannot be had here: {' '.join(ran.stderr.split())[-200:]}")
        monkeypatch.syspath_prepend(tmp_path)
    decoder = importlib.import_module("imwatermark").WatermarkDecoder("bits", 48)
    return lambda frame: np.asarray(decoder.decode(frame[..., ::-1], "dwtDct"))


def test_others_read_it_after_encoding(read: Callable[[np.ndarray], np.ndarray]) -> None:
    frames = photograph(3, 256, 320)
    assert psnr(np.stack([embed_watermark(frame) for frame in frames]), frames) >= 38
    decoded, _ = read_frames(encode_video(frames, 7, RECIPE))
    votes = np.mean([read(frame) for frame in decoded], axis=0)
    assert np.sum((votes > 0.5) == BITS) >= 46


@pytest.mark.parametrize("change", ["none", "scaled", "cropped", "encoded"])
def test_clips_are_known_however_they_were_changed(change: str, written: bytes) -> None:
    frames, _ = read_frames(written)
    if change == "scaled":
        frames = np.stack([np.asarray(Image.fromarray(frame).resize((240, 144))) for frame in frames])
    if change == "cropped":
        frames = frames[:, 6:-4, 8:-8]
    if change == "encoded":
        frames = encoded(frames, 18)
    reading = read_watermark(frames)
    assert (reading.verdict, reading.altered) == ("marked", "" if change in ("none", "encoded") else change)
    assert reading.matched >= 46


@pytest.mark.parametrize("kind", ["video/mp4", "image/webp", "image/png"])
def test_of_large_frames_a_part_is_read(
    kind: str, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch, written: bytes
) -> None:
    content = {
        "video/mp4": written,
        "image/webp": EXPORTS["WebP"][2](clip, 7, RECIPE),
        "image/png": EXPORTS["Last frame (PNG)"][2](clip, 7, RECIPE),
    }[kind]
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(watermark, "_u", lambda frame, u=watermark._u: seen.append(frame.shape) or u(frame))
    height, width = clip.shape[1:3]
    for search, most in ((True, 2.5), (False, 0.7)):
        seen.clear()
        monkeypatch.setattr(watermark, "_MOST_PIXELS", int(most * height * width))
        assert detect_watermark(content, "clip", search).verdict == "marked"
        assert sum(rows * columns for rows, columns, _ in seen) <= most * height * width


def test_colours_without_room_stay_legal_and_nothing_is_read_where_nothing_is(clip: np.ndarray) -> None:
    for level in (0, 128, 255):
        plain = np.full((48, 64, 3), level, np.uint8)
        assert np.abs(embed_watermark(plain).astype(int) - level).max() <= 60
        assert read_watermark([plain]).verdict == "no"
    assert embed_watermark(clip[0, :7]).tobytes() == clip[0, :7].tobytes()  # no whole block
    assert read_watermark(clip).verdict == "no"


def test_every_form_for_people_carries_it_and_none_without_the_recipe_s_word(clip: np.ndarray) -> None:
    for title in EXPORTS:
        content = EXPORTS[title][2](clip[:3], 7, RECIPE)
        if title.startswith("PNG"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                content = archive.read("0001.png")
        assert detect_watermark(content, title, search=False).verdict == "marked", title
    unmarked = {**RECIPE, "sgm": {"format": 1, "watermark": False}}
    for settings in (None, unmarked):
        content = encode_video(clip, 7, settings)
        assert detect_watermark(content, "clip", search=False).verdict == "no"
        assert (read_settings(content), b"trainedAlgorithmicMedia" in content) == (settings, True)


def test_detect_tells_of_each_file(tmp_path: Path, clip: np.ndarray, written: bytes) -> None:
    (tmp_path / "clip.mp4").write_bytes(written)
    plain = write_video(tmp_path / "plain.mp4", clip[:1], 7)
    (tmp_path / "notes.txt").write_text("none")
    ran = CliRunner().invoke(
        cli, ["detect", *(str(tmp_path / name) for name in ("clip.mp4", "plain.mp4", "notes.txt"))]
    )
    first, second = ran.stdout.splitlines()
    assert first.endswith("clip.mp4: marked: 48 of 48 bits; recipe: version svd_tiny, seed 3, watermark yes")
    assert f"{plain}: no: " in second
    assert second.endswith("no recipe")
    assert "notes.txt is not a picture" in ran.stderr
    assert ran.exit_code == 2
    assert CliRunner().invoke(cli, ["detect", str(plain)]).exit_code == 1
