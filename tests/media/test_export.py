"""Clips in other forms: as many frames, as long, and in the same colours."""

from __future__ import annotations

import io
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image, ImageSequence
from skimage import color

from sgm import EXPORTS, encode_video, read_frames, read_settings, stitch


def moving(count: int = 7) -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    return np.stack([np.stack([x + 9 * t, 2 * y + 20, x + y], axis=-1) for t in range(count)]).astype(np.uint8)


@pytest.mark.parametrize(("title", "error"), [("GIF", 8), ("WebP", 5)])
@pytest.mark.parametrize("fps", [7, 24])
def test_animations_have_all_frames_and_the_clip_s_length(title: str, error: float, fps: int) -> None:
    frames = moving()
    with Image.open(io.BytesIO(EXPORTS[title][2](frames, fps))) as image:
        assert image.info["loop"] == 0
        drawn = []
        length = 0
        for frame in ImageSequence.Iterator(image):
            drawn.append(np.asarray(frame.convert("RGB"), dtype=float))
            length += frame.info["duration"]
    assert len(drawn) == len(frames)
    assert length == pytest.approx(1000 * len(frames) / fps, abs=10)
    assert np.abs(np.stack(drawn) - frames).mean() < error


@pytest.mark.parametrize("title", ["GIF", "WebP"])
def test_one_frame_is_a_picture(title: str) -> None:
    frames = moving(1)
    with Image.open(io.BytesIO(EXPORTS[title][2](frames, 7))) as image:
        assert np.abs(np.asarray(image.convert("RGB"), dtype=float) - frames[0]).mean() < 8


def test_png_frames_are_exact() -> None:
    frames = moving()
    with zipfile.ZipFile(io.BytesIO(EXPORTS["PNG frames (zip)"][2](frames, 7))) as archive:
        back = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in sorted(archive.namelist())]
    assert np.array_equal(np.stack(back), frames)
    last = Image.open(io.BytesIO(EXPORTS["Last frame (PNG)"][2](frames, 7)))
    assert np.array_equal(np.asarray(last), frames[-1])


def test_a_video_without_a_disk() -> None:
    frames = moving()
    content = encode_video(frames, 12, {"seed": 3})
    back, rate = read_frames(content)
    assert (back.shape, rate, read_settings(content)) == (frames.shape, 12, {"seed": 3})
    assert np.abs(back.astype(float) - frames).mean() < 2.5


def test_clips_are_joined_where_the_next_one_starts() -> None:
    one, two = moving(7), moving(9)[4:]
    assert np.array_equal(stitch([one, two]), np.concatenate([one[:4], two]))
    with pytest.raises(ValueError, match="one size"):
        stitch([one, two[:, :40]])


def test_clips_are_joined_in_the_first_one_s_colours() -> None:
    """A clip that is darker, paler and redder from its start on, and the next one by that again."""
    noise = np.random.default_rng(0).integers(0, 256, (7, 48, 64, 3)).astype(np.float32)
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in noise])

    def drifted(frames: np.ndarray) -> np.ndarray:
        return np.rint((frames - 128.0) * 0.93 + [126, 120, 119]).clip(0, 255).astype(np.uint8)

    def colours(frames: np.ndarray) -> np.ndarray:
        lab = color.rgb2lab(frames).reshape(-1, 3)
        return np.concatenate([lab.mean(axis=0), lab.std(axis=0)])

    one = np.clip((soft - 127) * 4 + 127, 20, 235).astype(np.uint8)
    two = drifted(np.roll(one, 3, axis=0))  # starts from one[JOIN]
    film = stitch([one, two])
    three = drifted(np.roll(film[4:], 3, axis=0))
    aimed, film = stitch([film, three], (False, True)), stitch([film, three])
    assert len(film) == 4 + 4 + 7
    for start, shown in ((4, one[4:7]), (8, one[1:4])):
        assert np.abs(colours(film[start : start + 3]) - colours(shown)).max() < 0.3
        assert np.abs(colours(drifted(film[start : start + 3])) - colours(shown)).max() > 2
    # One that ends at a picture comes away from the film's colours by and by, up to its own.
    assert np.array_equal(aimed[:9], film[:9])
    assert np.array_equal(aimed[-1], three[-1])
    away = [np.abs(colours(a) - colours(b)).max() for a, b in zip(aimed[-7:], film[-7:], strict=True)]
    assert away == pytest.approx(np.linspace(0, away[-1], 7), abs=0.2)
    assert away[-1] > 2
    flat = np.full((5, 16, 16, 3), 90, np.uint8)
    assert np.abs(stitch([flat, flat + 4]).astype(int) - 90).max() <= 1
