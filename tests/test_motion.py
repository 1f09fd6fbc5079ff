"""`sgm motion` and what it measures: the bucket of a known pan, over time, and clips that cannot be measured."""

from __future__ import annotations

import csv
import io
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sgm import EXPORTS, UserError, measure_motion, motion_steps, write_video
from sgm.cli.commands import cli
from sgm.media import reading
from sgm.training.clips import open_clips


def sgm(*args: object):
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


def pan(*shifts: float) -> np.ndarray:
    """Soft noise of 320×192 pixels, moved on by so many pixels from each frame to the next."""
    noise = np.random.default_rng(0).integers(0, 256, (192, 400, 3)).astype(np.float32)
    wall = np.clip(cv2.GaussianBlur(noise, (0, 0), 4) * 8 - 900, 0, 255)
    moves = [np.array([[1, 0, -x], [0, 1, 0]], np.float32) for x in np.cumsum([0, *shifts])]
    return np.stack([cv2.warpAffine(wall, move, (320, 192)).round().astype(np.uint8) for move in moves])  # pyright: ignore[reportCallIssue, reportArgumentType]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 pixels, 0.625 % of the width, are bucket 99; twice that 198."""
    return write_video(tmp_path_factory.mktemp("pan") / "pan.mp4", pan(2, 2, 2, 4, 4, 4), 10)


def test_the_bucket_of_a_known_pan(clip: Path) -> None:
    expected = 127 / 0.8 * np.array([2, 2, 2, 4, 4, 4]) / 320 * 100
    seen: list[tuple[int, int]] = []
    for source in (clip, clip.read_bytes(), EXPORTS["WebP"][2](pan(2, 2, 2, 4, 4, 4), 10)):
        motion = measure_motion(source, on_frame=lambda done, of: seen.append((done, of)))
        np.testing.assert_allclose(motion.buckets, expected, rtol=0.1)
        assert motion.bucket == pytest.approx(expected.mean(), rel=0.1)
        assert motion.seconds.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert seen == 3 * [(number, 7) for number in range(1, 8)]


def test_a_clip_whose_frames_come_unevenly_has_its_own_seconds(tmp_path: Path) -> None:
    """As phones and screen recorders write them: the file's frame rate is that of the closest two."""
    times, clip = [0, 33, 66, 400, 433, 900], tmp_path / "uneven[1].mp4"
    with av.open(clip, "w") as container:
        stream = container.add_stream("libx264", 30, width=320, height=192, pix_fmt="yuv420p")
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, time in zip(pan(2, 2, 2, 2, 2), times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    motion = measure_motion(clip)
    np.testing.assert_allclose(motion.seconds, np.array(times[1:]) / 1000, atol=1e-3)
    assert motion.fps < 15
    assert "uneven[1].mp4" in sgm("motion", clip).stdout


def test_training_is_told_the_same(clip: Path) -> None:
    drawn = open_clips(clip.parent, (192, 320)).draw(1, 7, torch.device("cpu"))
    assert float(drawn.motion_bucket_id[0]) == pytest.approx(measure_motion(clip).bucket)


def test_table_csv_and_plot(clip: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:900])
    done = sgm("motion", clip, broken, "--csv", tmp_path / "motion.csv", "--plot", tmp_path / "motion.png")
    assert done.exit_code == 1
    assert "broken.mp4 cannot be read as a video" in done.stderr
    head, *_, row = done.stdout.splitlines()
    assert head.split()[:7] == ["clip", "frames", "fps", "motion", "bucket", "least", "most"]
    assert row.split()[1:3] == ["7", "10"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "motion.csv").read_text())))
    assert [entry["frame"] for entry in rows] == ["2", "3", "4", "5", "6", "7"]
    assert {entry["clip_bucket"] for entry in rows} == {f"{measure_motion(clip).bucket:.1f}"}
    with Image.open(tmp_path / "motion.png") as plot:
        assert plot.size == (960, 480)
    printed = sgm("motion", clip, "--csv", "-")
    assert (printed.exit_code, printed.stdout) == (0, sgm("motion", clip.parent, "--csv", "-").stdout)
    assert len(printed.stdout.splitlines()) == 7


@pytest.mark.parametrize(("frames", "said"), [(pan(), "a single frame"), (None, "does not exist: check the name")])
def test_what_does_not_move_is_said(frames: np.ndarray | None, said: str, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    if frames is not None:
        write_video(clip, frames, 10)
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace(")", r"\)")):
        measure_motion(clip)
    done = sgm("motion", clip)
    assert (done.exit_code, done.stdout) == (1, "")
    assert said in done.stderr


def test_a_clip_that_holds_more_than_it_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_FRAMES", 20)
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", 25, width=16, height=16, pix_fmt="yuv420p")
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
        for frame.pts in range(21):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    content = bytearray(file.getvalue())
    length = content.index(b"strh") + 40
    content[length : length + 4] = (10).to_bytes(4, "little")
    with pytest.raises(UserError, match="more frames than the 20"):
        measure_motion(bytes(content))


def test_what_is_asked_wrongly_is_said_before_the_work(clip: Path) -> None:
    for option, value, said in (("--plot", "plot.jpg", "ending in .png"), ("--csv", clip.parent, "is a folder")):
        done = sgm("motion", clip, option, value)
        assert done.exit_code == 2
        assert said in done.stderr


def test_small_and_long_frames_are_measured() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 400, 3), np.uint8)
    assert motion_steps(frames).shape == (2,)
