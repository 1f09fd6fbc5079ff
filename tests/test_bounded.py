"""Between two pictures: a clip that ends at a last one, or where it began, on the shipped model and a small SVD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from typer.testing import CliRunner

from sgm import (
    UserError,
    VideoRequest,
    generate,
    hash_of,
    load_engine,
    open_picture,
    prepare_picture,
    read_recipe,
    request_of,
    score_clip,
)
from sgm.cli.commands import cli
from sgm.conditioning.aim import aim
from sgm.conditioning.camera import seen_from
from sgm.engine import DiffusionEngine
from sgm.families.image import to_uint8
from sgm.media.quality import psnr
from sgm.recipe import as_command, as_python, made_by
from sgm.run import Run
from sgm.versions import bundle
from tests import small_model
from tests.test_parity import OWN

SMALL: dict[str, Any] = {"frames": 3, "steps": 1, "width": 160, "height": 96}


@pytest.fixture(scope="module")
def tiny() -> DiffusionEngine:
    return load_engine("svd_tiny", device="cpu")


@pytest.fixture(scope="module")
def ends() -> tuple[Image.Image, Image.Image]:
    """Two crops of one photograph, one 12 % of the width to the right of the other."""
    lake = open_picture(bundle() / "app" / "samples" / "lake.jpg").resize((672, 360))
    return lake.crop((0, 0, 600, 360)), lake.crop((72, 0, 672, 360))


def sgm(*args: object):
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


def test_the_request_knows_what_it_takes() -> None:
    open_end, last = VideoRequest("svd"), VideoRequest("svd", sampler="bounded", ends="last")
    assert (last.bounded, last.takes_last) == (True, True)
    assert VideoRequest("svd", sampler="bounded").options["ends"] == "loop"
    assert (last.guider, last.options["max_guidance"]) == ("cfg", 1)
    assert (last.evaluations, last.guided_evaluations) == (2 * open_end.evaluations, 2 * open_end.evaluations)
    assert last.replace(sampler="euler_edm") == open_end


@pytest.mark.parametrize(
    ("version", "choices", "sentence"),
    [
        ("sv3d_u", {}, "sv3d_u takes no last picture.*svd_tiny, svd"),
        ("svd", {"guider": "linear"}, "guider must be cfg or identity.*'linear'"),
        ("svd", {"guider": "apg"}, "guider must be cfg or identity.*'apg'"),
        ("svd_tiny", {"frames": 1}, "frames must be 2 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(version: str, choices: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        VideoRequest(version, sampler="bounded", **choices)


def test_a_last_picture_that_is_lacking_or_not_taken_is_told(
    tiny: DiffusionEngine, ends: tuple[Image.Image, Image.Image]
) -> None:
    first, last = ends
    with pytest.raises(UserError, match="ends at a last picture: give one"):
        generate(tiny, VideoRequest(sampler="bounded", ends="last"), first)
    for request in (VideoRequest(), VideoRequest(sampler="bounded", ends="loop")):
        with pytest.raises(UserError, match="There is a last picture, but this clip"):
            generate(tiny, request, first, last=last)


def test_a_pan_between_two_crops_of_a_photograph(tiny: DiffusionEngine, ends: tuple[Image.Image, Image.Image]) -> None:
    request = VideoRequest(sampler="bounded", ends="last", frames=3, steps=2, width=320, height=192)
    seen = []
    clip = generate(tiny, request, ends[0], lambda progress: seen.append(progress), last=ends[1])
    first, last = (np.asarray(prepare_picture(end, request)) for end in ends)
    assert min(psnr(clip.frames[0], first), psnr(clip.frames[-1], last)) > 27
    scores = score_clip(clip.frames)
    assert (scores["jerk"] or 0) < 0.35
    assert scores["motion"] == pytest.approx(100 * 0.12 / 2, rel=0.1)
    assert [(p.step, p.total) for p in seen if p.phase == "sample"] == [(1, 2), (2, 2)]
    drawn = next(p.preview for p in seen if p.phase == "sample" and p.preview)()
    assert drawn.shape == (3, 24, 40, 3)
    assert made_by(clip.settings)["last"] == hash_of(last)
    assert "--last LAST" in as_command(clip.settings)
    assert "last=open_picture('LAST')" in as_python(clip.settings)


def test_a_loop_closes(tiny: DiffusionEngine, ends: tuple[Image.Image, Image.Image]) -> None:
    """Also where one picture is given twice, which is that very loop."""
    request = VideoRequest("svd_tiny", sampler="bounded", ends="last", **SMALL | {"frames": 4, "steps": 2})
    twice = generate(tiny, request, ends[0], last=ends[0])
    assert request_of(twice.settings) == request.replace(ends="loop")
    assert "last" not in made_by(twice.settings)
    loop = generate(tiny, request.replace(ends="loop"), ends[0])
    assert np.array_equal(loop.frames, twice.frames)
    steps = np.abs(np.diff(loop.frames.astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert np.abs(loop.frames[-1].astype(float) - loop.frames[0]).mean() < 1.3 * steps.mean()


def test_the_ends_are_as_near_to_the_picture_as_the_autoencoder_draws_it(
    tiny: DiffusionEngine, ends: tuple[Image.Image, Image.Image]
) -> None:
    """Where that falls short of 27 dB, as of a picture full of grain, it is the autoencoder's limit and no other."""
    request = VideoRequest("svd_tiny", sampler="bounded", **SMALL | {"frames": 2, "steps": 2})
    grain = np.random.default_rng(0).normal(0, 20, (96, 160, 1))
    picture = (np.asarray(prepare_picture(ends[0], request)) / 2 + 64 + grain).clip(0, 255).astype(np.uint8)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        drawn = to_uint8(tiny.decode_clip(Run(tiny, request).latents(pixels).repeat(2, 1, 1, 1)))
    limit = psnr(drawn[0], picture)
    assert limit < 24
    clip = generate(tiny, request, Image.fromarray(picture))
    assert min(psnr(frame, picture) for frame in (clip.frames[0], clip.frames[-1])) > limit


def test_svd_ends_at_its_last_picture(ends: tuple[Image.Image, Image.Image]) -> None:
    """Weights that are made up make no picture; that of the other end is given all the same, whatever they estimate."""
    engine = small_model.made_up(OWN / "svd_small.yaml")
    engine.version = "svd"
    small: dict[str, Any] = {"frames": 2, "steps": 1, "width": 64, "height": 64}
    open_end, last = VideoRequest("svd", **small), VideoRequest("svd", sampler="bounded", ends="last", **small)
    goals = ends[1], ImageOps.invert(ends[1])
    clips = [generate(engine, last, ends[0], last=goal) for goal in goals]
    assert clips[0].frames.shape == generate(engine, open_end, ends[0]).frames.shape
    pictures = np.stack([np.asarray(prepare_picture(picture, last)) for picture in (ends[0], *goals)]).astype(float)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    seen = torch.cat([Run(engine, last).latents(picture) for picture in pixels.split(1)])
    for clip, goal in zip(clips, (1, 2), strict=True):
        with torch.inference_mode():
            wanted = to_uint8(engine.decode_clip(seen[[0, goal]]))
        assert np.abs(clip.frames.astype(int) - wanted).mean() < np.abs(clip.frames.astype(int) - wanted[::-1]).mean()
        assert made_by(clip.settings)["last"] == hash_of(pictures[goal].astype(np.uint8))


def test_the_camera_is_aimed_at_what_both_pictures_show(ends: tuple[Image.Image, Image.Image]) -> None:
    first, last = (end.resize((320, 192)) for end in ends)
    end = aim(first, last)
    assert end is not None
    assert end.tolist() == pytest.approx([0.12, 0, 0, 0, 0, 0], abs=0.003)
    turned = aim(last, first.rotate(10).crop((32, 19, 288, 173)).resize((320, 192)))
    assert turned is not None
    assert turned[2] == pytest.approx(np.log(1.25), abs=0.02)
    assert abs(float(turned[3])) == pytest.approx(np.radians(10), abs=0.01)
    back = seen_from(turned, turned[None] * 0)[0]  # where the camera began, as seen from its end
    assert seen_from(back, back[None] * 0)[0].tolist() == pytest.approx(turned.tolist(), abs=1e-5)
    assert aim(first, Image.radial_gradient("L").resize(first.size).convert("RGB")) is None


def test_pictures_that_show_nothing_in_common_are_told(
    tiny: DiffusionEngine, ends: tuple[Image.Image, Image.Image]
) -> None:
    request = VideoRequest("svd_tiny", sampler="bounded", ends="last", **SMALL | {"frames": 2})
    told = []
    generate(
        tiny,
        request,
        ends[0],
        lambda progress: told.append(progress.note),
        last=Image.radial_gradient("L").convert("RGB"),
    )
    assert "nothing in common" in told[-1]


def test_sample_and_repeat(tmp_path: Path, ends: tuple[Image.Image, Image.Image]) -> None:
    for name, end in zip(("a", "b"), ends, strict=True):
        end.save(tmp_path / f"{name}.png")
    a, b, out = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.mp4"
    small = [word for name, value in (SMALL | {"frames": 2}).items() for word in (f"--{name}", value)]
    ends[1].resize((300, 300)).save(b)
    made = sgm("sample", a, "--last", b, "--out", out, *small)
    assert made.exit_code == 0, made.stderr
    assert "b.png, the last picture: Cropped 300×300 to 300×180 (5:3), scaled to 160×96." in made.stderr
    assert "The two pictures show nothing in common" in made.stderr  # the one is squeezed
    assert request_of(read_recipe(out)).takes_last
    assert sgm("repeat", out, "--picture", a, "--last", b).stdout == "identical\n"
    assert "give it with --last" in sgm("repeat", out, "--picture", a).stderr

    again = sgm("sample", a, "--recipe", out, "--out", tmp_path / "again.mp4")
    assert "the last frame of c.mp4 stands in for it" in again.stderr
    loop = sgm("sample", a, "--last", a, "--out", tmp_path / "loop.mp4", *small)
    assert "a.png: the last picture is the same one, so the video is a loop." in loop.stderr
    assert request_of(read_recipe(tmp_path / "loop.mp4")).options["ends"] == "loop"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--last", "b.png", "--loop"], "give one of the two"),
        (["--last", "none.png"], "none.png"),
        (["--last", "broken.png"], "broken.png"),
        (["--last", "b.png", "--sampler", "heun_edm"], "ends does not belong to sampler 'heun_edm'"),
        (["--loop", "--guider", "triangle"], "guider must be cfg or identity"),
        (["--loop", "--version", "sv3d_u"], "sv3d_u takes no last picture"),
        (["--loop", "--version", "sv4d2"], "sv4d2 takes no last picture"),
        (["--ends", "last"], "give it with --last"),
    ],
)
def test_options_that_cannot_be_are_answered_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64)).save(name)
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = sgm("sample", "a.png", *options)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert not Path("outputs").exists()
