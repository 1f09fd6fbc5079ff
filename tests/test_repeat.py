"""`sgm repeat`: a clip again, and whether it is the same, from what its file and its folder tell."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sgm import (
    Clip,
    Smoothing,
    VideoRequest,
    generate,
    load_engine,
    read_frames,
    read_recipe,
    write_frames,
    write_video,
)
from sgm.cli.commands import cli
from sgm.recipe import hash_of


def sgm(*args: object):
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Clip]:
    """A folder as the page leaves it, with a clip of input.png, and the clip."""
    folder = tmp_path_factory.mktemp("made")
    y, x = np.mgrid[0:90, 0:200]
    picture = Image.fromarray(np.stack([x, 2 * y, 255 - y], axis=-1).astype(np.uint8))
    request = VideoRequest(frames=2, steps=1, height=64, width=96)
    clip = generate(load_engine(device="cpu", dtype="float32"), request, picture)
    picture.save(folder / "input.png")
    (folder / "job.json").write_text("{}")
    write_video(folder / "clip.mp4", clip.frames, clip.fps, clip.settings)
    return folder, clip


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def marked(settings: dict[str, Any], **entries: object) -> dict[str, Any]:
    """A recipe whose mark says something else; None takes an entry away."""
    mark = {name: value for name, value in (settings["sgm"] | entries).items() if value is not None}
    return settings | {"sgm": mark}


def test_a_clip_is_identical_by_the_hash_of_its_frames_and_nothing_is_written(made: tuple[Path, Clip]) -> None:
    folder, clip = made
    assert hash_of(read_frames(folder / "clip.mp4")[0]) != hash_of(clip.frames)  # which the MP4 holds with a loss
    done = sgm("repeat", folder / "clip.mp4")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "identical\n", "")
    assert list(Path().iterdir()) == []
    each = b"".join(sha256(frame.tobytes()).digest() for frame in clip.frames)
    assert clip.settings["sgm"]["frames"] == sha256(each).hexdigest()
    earlier = sha256(clip.frames.tobytes()).hexdigest()
    for name in ("input.png", "job.json"):
        Path(name).write_bytes((folder / name).read_bytes())
    for smoothing in (Smoothing(), Smoothing(2)):
        frames, fps, settings = smoothing.apply(clip.frames, clip.fps, marked(clip.settings, frames=earlier))
        write_video("clip.mp4", frames, fps, settings)
        assert sgm("repeat", "clip.mp4").stdout.startswith("identical\n")


def test_one_value_that_differs_is_found_and_what_is_not_as_it_was_is_said(made: tuple[Path, Clip]) -> None:
    folder, clip = made
    frames = clip.frames.copy()
    frames[1, 5, 7, 2] ^= 4
    for name in ("input.png", "job.json"):
        Path(name).write_bytes((folder / name).read_bytes())
    write_frames("frames.mkv", frames, 7)
    write_video("clip.mp4", frames, 7, marked(clip.settings, frames=hash_of(frames), torch="1.0"))
    done = sgm("repeat", "clip.mp4")
    assert done.exit_code == 1
    verdict, cause = done.stdout.splitlines()
    assert verdict == (
        "different: a pixel by up to 4 of 255 levels (frame 2 of 2), 0.0027% of the values, by 0.00011 in the mean"
    )
    assert cause.startswith("torch: 1.0 then, ")


def test_without_a_hash_the_new_clip_is_compared_after_the_same_encoding(made: tuple[Path, Clip]) -> None:
    folder, clip = made
    old = marked(clip.settings, frames=None)
    for frames, code, said in (
        (clip.frames, 0, "identical, as far as the MP4 shows\n"),
        (clip.frames[::-1], 1, "The recipe tells of no difference"),
    ):
        write_video("old.mp4", frames, 7, old)
        done = sgm("repeat", "old.mp4", "--picture", folder / "input.png", "--out", "new.mp4")
        assert done.exit_code == code
        assert said in done.stdout
    assert done.stderr == "The new clip: new-2.mp4\n"
    np.testing.assert_array_equal(read_frames("new.mp4")[0], read_frames(folder / "clip.mp4")[0])


def test_another_picture_is_said_before_the_work_and_after_it(made: tuple[Path, Clip]) -> None:
    Image.new("RGB", (200, 90), "teal").save("teal.png")
    done = sgm("repeat", made[0] / "clip.mp4", "--picture", "teal.png")
    assert done.exit_code == 1
    assert "teal.png is not the recipe's picture" in done.stderr
    assert "The picture is another one" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument"),
        (["CLIP"], "does not hold the picture that it was made of: give it with --picture."),
        (["CLIP", "--picture", "none.png"], "none.png does not exist"),
        (["CLIP", "--picture", "PICTURE", "--out", "new.avi"], "must be a name ending in .mp4"),
        (["CLIP", "--picture", "PICTURE", "--device", "banana"], "Device 'banana'"),
        (["CLIP", "--picture", "PICTURE", "--checkpoint", "none.ckpt"], "none.ckpt"),
        (["CUT", "--picture", "PICTURE"], "holds 1 × 96×64 pixels, its recipe makes 2 × 96×64"),
        (["recipe.yaml", "--picture", "PICTURE"], "holds settings, but no frames"),
        (["PICTURE", "--picture", "PICTURE"], "is a PNG picture and holds no settings of ours"),
    ],
)
def test_what_is_asked_wrongly_is_said_before_the_work(
    arguments: list[str], said: str, made: tuple[Path, Clip]
) -> None:
    Path("clip.mp4").write_bytes((made[0] / "clip.mp4").read_bytes())
    write_video("cut.mp4", read_frames("clip.mp4")[0][:1], 7, read_recipe("clip.mp4"))
    Path("recipe.yaml").write_text(json.dumps(read_recipe("clip.mp4")), "utf-8")
    names = {"CLIP": "clip.mp4", "PICTURE": str(made[0] / "input.png"), "CUT": "cut.mp4"}
    done = sgm("repeat", *(names.get(word, word) for word in arguments))
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""
