"""`sgm sample FOLDER --devices`: pictures spread over workers, with the videos of one worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from sgm import Clip, Cluster, DeviceFailed, UserError, VideoRequest, Worker
from sgm.cli.commands import cli

SMALL = ["--frames", "2", "--steps", "1", "--width", "64", "--height", "64", "--depth", "0"]


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(("a.png", "a.webp", "b.png", "c.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name, lossless=True)
    (folder / "broken.png").write_text("no picture")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield folder
    torch.set_num_threads(before)


def sample(pictures: Path, out: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["sample", str(pictures), *SMALL, "--out", str(out), *words])


def test_two_workers_make_the_videos_of_one(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, both = Worker.generate, threading.Barrier(2, timeout=60)

    def together(self: Worker, *args: Any) -> Any:
        both.wait()  # both are at work, or this breaks
        return generate(self, *args)

    monkeypatch.setattr(Worker, "generate", together)
    two = sample(pictures, tmp_path / "two", "--devices", "cpu,cpu")
    torch.set_num_threads(1)  # as each of the two has
    one = sample(pictures, tmp_path / "one")
    assert (one.exit_code, two.exit_code) == (1, 1)
    assert "1 of 5 pictures failed" in two.stderr
    names = [Path(line).name for line in one.stdout.split()]
    assert names == [f"{stem}.mp4" for stem in ("a-svd_tiny-23", "a-svd_tiny-23-2", "b-svd_tiny-23", "c-svd_tiny-23")]
    assert [Path(line).name for line in two.stdout.split()] == names
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.parametrize("left", [1, 0])
def test_a_device_that_fails_is_taken_out(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    failing = []

    def fails(self: Worker, request: VideoRequest, *_: Any) -> Clip:
        if self in failing or len(failing) < 2 - left:
            failing.append(self)
            raise DeviceFailed("cuda:0 does not compute any more.")
        return Clip(np.zeros((2, 64, 64, 3), np.uint8), 7, request.settings())

    monkeypatch.setattr(Worker, "load", lambda *_: None)
    monkeypatch.setattr(Worker, "generate", fails)
    done = sample(pictures, tmp_path / "out", "--devices", "cpu,cpu")
    assert len(failing) == 2 - left
    assert len(done.stdout.split()) == 4 * left
    said = "1 devices go on" if left else "No devices go on"
    assert f"cuda:0 does not compute any more. {said}" in done.stderr
    assert done.exit_code == 1


def test_what_cannot_be_spread_is_said_before_the_work(pictures: Path, tmp_path: Path) -> None:
    for words, message in (
        (["--devices", "cpu,cpu,cpu"], "cpu is named 3 times"),
        (["--devices", "cpu", "--device", "cpu"], "give one of them"),
        (["--ray", "--devices", "cpu"], "give one of them"),
    ):
        done = sample(pictures, tmp_path / "out", *words)
        assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()


def test_ray_that_is_not_installed_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('no Ray')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r'needs Ray .* python -m pip install "sgm-video\[ray\]"'):
        Cluster()
