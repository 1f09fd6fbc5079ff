"""Scores: figures of clips whose motion, noise, blur and stops are known, and the command that prints them."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity
from typer.testing import CliRunner

from sgm import EXPORTS, SCORES, UserError, VideoRequest, fvd_missing, lpips_missing, score_clip, write_video
from sgm.cli.commands import cli
from sgm.media.quality import ssim, xpsnr

H, W = 96, 160


def sgm(*args: object):
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


def texture(height: int, width: int, shift: float = 0.0) -> np.ndarray:
    """A grey picture (height, width, 3) of waves of many lengths, moved to the left by any number of pixels."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(1)
    waves = (
        np.sin(fx * (x + shift) + fy * y + p) for fx, fy, p in rng.uniform((-0.6, -0.6, 0), (0.6, 0.6, 6), (24, 3))
    )
    return np.repeat(np.clip(128 + 14 * sum(waves), 0, 255)[..., None], 3, axis=2).astype(np.uint8)


def known(frames: np.ndarray) -> dict[str, Any]:
    return dict(score_clip(frames))


def pan(speeds: list[float]) -> np.ndarray:
    return np.stack([texture(H, W, shift) for shift in np.cumsum([0, *speeds])])


def noisy(sigma: float, count: int = 6) -> np.ndarray:
    """A still picture, each frame with noise of its own, the same in all colours."""
    noise = np.random.default_rng(2).normal(0, sigma, (count, H, W, 1))
    return np.clip(texture(H, W) / 2 + 64 + noise, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.5])
def test_a_steady_pan_has_its_speed_and_is_even_sharp_and_without_flicker(speed: float) -> None:
    scores = known(pan([speed] * 6))
    assert scores["motion"] == pytest.approx(100 * speed / W, rel=0.03)
    assert scores["motion_bucket"] == pytest.approx(100 * speed / W * 127 / 0.8, rel=0.03)
    assert scores["jerk"] < 0.08
    assert scores["hold"] > 30
    assert scores["flicker"] < 2
    assert scores["sharpness"] == pytest.approx(1, abs=0.05)  # what comes in has its own
    assert (scores["frozen"], scores["black"]) == (0, 0)


def test_a_pan_in_jerks_is_uneven_and_a_picture_that_dissolves_does_not_hold() -> None:
    # The change from 1 to 3 pixels and back, 2, is as large as the mean of both.
    scores = known(pan([1, 3] * 3))
    assert (scores["jerk"], scores["detail_jerk"]) == pytest.approx((1, 1), abs=0.1)
    mush = np.random.default_rng(0).integers(0, 256, (4, H, W, 3), np.uint8)
    assert known(mush)["hold"] < 12


def test_an_empty_sky_makes_no_pan_uneven_where_there_is_detail() -> None:
    """Flow follows the sky's smooth noise of one or two levels, which nobody sees."""
    noise = np.random.default_rng(3).normal(0, 1, (7, H, W)).astype(np.float32)
    sky = np.stack([150 + 10 * cv2.GaussianBlur(frame, (0, 0), 4)[..., None].repeat(3, axis=2) for frame in noise])
    for speeds, uneven in (([2.0] * 6, 0.0), ([1.0, 3.0] * 3, 1.0)):
        frames = pan(speeds)
        frames[:, : 2 * H // 3] = sky[:, : 2 * H // 3].round()
        scores = known(frames)
        assert scores["jerk"] > 1.2
        assert scores["detail_jerk"] == pytest.approx(uneven, abs=0.2)


@pytest.mark.parametrize("sigma", [2.0, 6.0])
def test_noise_of_a_known_strength(sigma: float) -> None:
    frames, clean = noisy(sigma), (texture(H, W) / 2 + 64).round().astype(np.uint8)
    scores = score_clip(frames, clean, np.stack([clean] * len(frames)))
    decibels = 10 * math.log10(255**2 / (sigma**2 + 2 / 12))  # 1/12: of rounding, of both
    assert scores["frame0"] == pytest.approx(decibels, abs=0.2)
    assert scores["psnr"] == pytest.approx(decibels, abs=0.1)
    # The difference of two normal numbers has √2 of their deviation; the mean of its absolute value is √(2/π) of that.
    assert scores["ti"] == pytest.approx(math.sqrt(2) * sigma, rel=0.05)
    assert scores["flicker"] == pytest.approx(2 / math.sqrt(math.pi) * sigma, rel=0.1)


@pytest.mark.parametrize("blur", [0.5, 1.0, 2.0])
def test_sharpness_is_the_energy_that_a_known_blur_leaves(blur: float) -> None:
    frequency = 0.1  # cycles a pixel; a Gaussian blur leaves exp(-2 π² σ² f²) of such a wave
    left = math.exp(-2 * (math.pi * blur * frequency) ** 2)
    wave = 100 * np.sin(2 * math.pi * frequency * np.arange(W))
    rows = np.stack([wave, left * wave, left * wave]) + 128
    frames = np.broadcast_to(rows.round().astype(np.uint8)[:, None, :, None], (3, H, W, 3))
    assert score_clip(np.ascontiguousarray(frames))["sharpness"] == pytest.approx(left**2, rel=0.02)


def test_spatial_and_temporal_information_of_an_edge_that_moves() -> None:
    frames = np.zeros((2, H, W, 3), np.uint8)
    frames[0, :, 80:] = frames[1, :, 40:] = 100
    scores = score_clip(frames)
    share = 2 / (W - 2)  # of the columns, in which Sobel's gradient is 4 × 100
    assert scores["si"] == pytest.approx(400 * math.sqrt(share * (1 - share)), rel=1e-4)
    assert scores["ti"] == pytest.approx(100 * math.sqrt(0.25 * 0.75), rel=1e-4)


def test_frames_that_stand_still_and_black_ones_are_counted() -> None:
    frames = pan([1] * 7)
    frames[3] = frames[4] = frames[2]
    frames[6] = 0
    frames[7, : H // 2] = 20
    scores = score_clip(frames)
    assert (scores["frozen"], scores["black"]) == (2, 1)
    frames[5:] = 25  # all of it darker than a tenth
    assert (score_clip(frames)["frozen"], score_clip(frames)["black"]) == (4, 3)


def test_likeness_agrees_with_another_library_and_is_of_the_same_frames() -> None:
    a = noisy(4)[..., 0]
    for b in (noisy(9)[..., 0], np.roll(a, 2, axis=2), a):
        for x, y in zip(a, b, strict=True):
            wanted = structural_similarity(x, y, gaussian_weights=True, use_sample_covariance=False)
            assert ssim(x, y) == pytest.approx(wanted, abs=2e-3)
    b = a.copy()
    b[3] ^= 8
    values = xpsnr(list(a), list(b))
    assert values is not None
    assert [value == math.inf for value in values] == [number != 3 for number in range(6)]
    assert 20 < values[3] < 40
    equal = score_clip(noisy(4), reference=noisy(4))
    assert (equal["psnr"], equal["xpsnr"], equal["ssim"]) == (99, 99, pytest.approx(1))


def test_what_cannot_be_known_is_none_and_what_does_not_fit_is_said() -> None:
    frames = pan([1, 1])
    scores = score_clip(frames)
    assert list(scores) == list(SCORES)
    unknown = ["frame0", "parallax", "layered_hold", "psnr", "ssim", "xpsnr", "lpips"]
    assert [name for name, value in scores.items() if value is None] == unknown
    assert [name for name, value in score_clip(frames[:1]).items() if value is not None] == ["si", "black"]
    assert (score_clip(frames, reference=frames)["lpips"] is None) == bool(lpips_missing())
    with pytest.raises(UserError, match="The clip has 3 frames of 160×96 pixels, the reference 1 frame of 160×96"):
        score_clip(frames, reference=frames[:1])
    with pytest.raises(UserError, match="give it as the model saw it"):
        score_clip(frames, Image.new("RGB", (160, 90)))
    with pytest.raises(ValueError, match="uint8"):
        score_clip(frames / 255)
    for side in (1, 4, 13, 40, 63):  # however small: where OpenCV and FFmpeg end the process, they are not asked
        small = frames[:, :side, :side]
        assert score_clip(small, small[0], small[::-1])["psnr"] is not None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    for number, speed in enumerate((1, 2)):
        write_video(f"clips/{number}.mp4", pan([speed] * 3), 7)
    return tmp_path


def test_a_table_fits_its_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video("映画 with a name that is longer than a column of a table ought to be.mp4", pan([1] * 3), 7)
    Path("[b] :smile:.mp4").write_bytes(Path("clips/0.mp4").read_bytes())  # what rich would take for its own signs
    for width in (40, 80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        done = sgm("score", "clips", *folder.glob("*.mp4"), "--reference", "clips/0.mp4")
        assert done.exit_code == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) < width  # less, for wide characters
        words = done.stdout.split()
        known = [
            score.title for name, score in SCORES.items() if name not in ("frame0", "parallax", "layered_hold", "lpips")
        ]
        assert [word for word in words if word in known] == known
        names = "mean", "clips/0.mp4", "[b] :smile:.mp4"
        assert [done.stdout.count(name) for name in names] == 3 * [done.stdout.count("\n\n") / 2 + 0.5]
    assert ("lpips" in done.stderr) == bool(lpips_missing())


def test_the_page_s_folder_is_its_clips(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / "outputs" / name).mkdir(parents=True)
        (folder / "outputs" / name / "job.json").write_text("{}")
        for file in ("clip.mp4", "film.mp4"):
            (folder / "outputs" / name / file).write_bytes(Path("clips/0.mp4").read_bytes())
    (folder / "outputs" / "beside.mp4").write_bytes(Path("clips/1.mp4").read_bytes())
    made = [str(Path("outputs") / name) for name in ("beside.mp4", "a/clip.mp4", "b/clip.mp4")]
    for place, clips in (("outputs", made), ("outputs/a", made[1:2])):
        assert [row["clip"] for row in json.loads(sgm("score", place, "--json").stdout)["clips"]] == clips


def test_json_and_csv_say_the_same_and_a_bad_clip_costs_its_own_row(folder: Path) -> None:
    Path("bad.mp4").write_bytes(b"no video")
    Path("clips/still.mp4").write_bytes(Path("clips/0.mp4").read_bytes()[:300])
    arguments = ["score", "bad.mp4", "clips/0.mp4", "missing.mp4", "clips/1.mp4"]
    done = sgm(*arguments, "--json", "--csv", "scores.csv")
    assert done.exit_code == 1
    rows = json.loads(done.stdout)["clips"]
    assert [row["clip"] for row in rows] == arguments[1:]
    assert all(list(row) == ["clip", *SCORES, "error"] for row in rows)
    assert [row["error"] is None for row in rows] == [False, True, False, True]
    assert rows[1]["motion"] == pytest.approx(100 / W, rel=0.05)
    assert [line.split()[1] for line in done.stderr.splitlines() if "Error" in line] == ["bad.mp4", "missing.mp4"]
    printed = sgm(*arguments, "--csv", "-").stdout
    assert printed == Path("scores.csv").read_text("utf-8")
    for row, wanted in zip(csv.DictReader(io.StringIO(printed)), rows, strict=True):
        assert row == {name: "" if value is None else str(value) for name, value in wanted.items()}
    sgm(*arguments, "--csv", "scores.csv")
    assert Path("scores-2.csv").read_text("utf-8") == printed
    assert sgm("score", "clips/0.mp4", "clips/0.mp4", "--csv", "-").exit_code == 0  # as of a folder, and a clip in it


def test_frame0_is_against_what_the_model_saw(folder: Path) -> None:
    photo = np.concatenate([texture(H, W), 255 - texture(H, 3 * W)], axis=1)
    Image.fromarray(photo).save("photo.png")
    frames = np.stack([photo[:, :W]] * 2)
    settings = VideoRequest(frames=2, width=W, height=H, crop_x=0).settings() | {"sgm": {"format": 1}}
    job = folder / "20260101-000000-00000000"
    write_video(job / "clip.mp4", frames, 7, settings)

    def frame0(*arguments: object) -> list[float | None]:
        done = sgm("score", *arguments, "--json")
        assert done.exit_code == 0, done.stderr
        return [row["frame0"] for row in json.loads(done.stdout)["clips"]]

    (by_recipe,) = frame0(job / "clip.mp4", "--picture", "photo.png")
    assert by_recipe is not None
    assert by_recipe > 40
    # Without a recipe, the middle is taken.
    Path("loop.webp").write_bytes(EXPORTS["WebP"][2](pan([1, 1]), 7))
    (middle,) = frame0("loop.webp", "--picture", "photo.png")
    assert middle is not None
    assert middle < 15
    # The page's copy, where the clip lies in a job's folder; not in a film, which begins with another clip.
    assert frame0(job / "clip.mp4") == [None]
    (job / "job.json").write_text("{}")
    (job / "input.png").write_bytes(Path("photo.png").read_bytes())
    write_video(job / "film.mp4", np.concatenate([frames, frames]), 7, settings)
    assert frame0(job / "clip.mp4", job / "film.mp4") == [by_recipe, None]
    # SV3D's first frame shows another side.
    orbit = VideoRequest("sv3d_u", frames=2, width=64, height=64).settings() | {"sgm": {"format": 1}}
    write_video("orbit.mp4", frames[:, :64, :64], 7, orbit)
    assert frame0("orbit.mp4", "--picture", "photo.png") == [None]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument"),
        (["clips", "--json", "--csv", "-"], "give one of them"),
        (["clips", "--csv", "clips"], "is a folder"),
        (["clips", "--picture", "none.png"], "none.png does not exist"),
        (["clips", "--reference", "none.mp4"], "none.mp4 does not exist"),
        (["."], "holds no clips"),
        (["clips", "--fvd", "."], "holds no clips"),
        *([(["clips", "--fvd", "clips"], "python -m pip install cd-fvd")] if fvd_missing() else []),
    ],
)
def test_what_is_asked_wrongly_is_said_before_the_work(arguments: list[str], said: str, folder: Path) -> None:
    done = sgm("score", *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_help_tells_what_each_figure_is() -> None:
    shown = " ".join(sgm("score", "--help").stdout.split())
    for name, score in SCORES.items():
        assert name in shown
        assert score.meaning in shown
