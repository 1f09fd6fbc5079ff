"""svd_tiny's depth: the object of a picture is found, and moves more than what is behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from sgm import UserError, VideoRequest, generate, load_engine, open_picture, prepare_picture, request_of, score_clip
from sgm.conditioning import saliency as module
from sgm.conditioning.camera import identity_rays, rays, render
from sgm.conditioning.saliency import saliency
from sgm.families.camera import CameraFamily
from sgm.families.image import ready, to_pixels
from sgm.versions import bundle
from tests.test_recipe import BEFORE_THE_MARK

SAMPLES = bundle() / "app" / "samples"
PAN = {"frames": 4, "steps": 2, "width": 320, "height": 192, "camera": "pan_left", "motion_bucket": 500}


@pytest.fixture(scope="module")
def kitten() -> Image.Image:
    return open_picture(SAMPLES / "kitten.jpg")


def conditions(picture: Image.Image, **choices) -> dict[str, torch.Tensor]:
    request = VideoRequest("svd_tiny", **{**PAN, **choices})
    family = request.family
    batch = family.batch(family.prepare(picture, request), 8, torch.Generator().manual_seed(request.seed))
    return {name: ready(value) for name, value in batch.items()}


def test_the_object_is_found_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))  # rembg's models have nothing to do with it
    picture = Image.new("RGB", (300, 200), (120, 160, 90))
    ImageDraw.Draw(picture).ellipse((180, 40, 280, 140), (200, 30, 30))
    found = saliency(picture)
    assert (found.dtype, found.shape) == (np.uint8, (200, 300))
    assert found[90, 230] > 230
    assert found[170, 60] < 25
    assert np.array_equal(found, saliency(picture))
    assert not any(tmp_path.iterdir())


def test_without_the_network_s_file_it_is_said_and_a_flat_clip_can_be_made(
    kitten: Image.Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module._session.cache_clear()
    module._predicted.cache_clear()
    monkeypatch.setattr(module, "bundle", lambda: tmp_path)
    with pytest.raises(UserError, match=r"u2netp\.onnx could not be opened .* Install again, or set depth to 0\."):
        conditions(kitten)
    assert conditions(kitten, depth=0)["cond_frames"].isfinite().all()


def test_depth_0_is_the_flat_camera_to_the_last_bit(kitten: Image.Image) -> None:
    request = VideoRequest("svd_tiny", **PAN, depth=0)
    batch, path = conditions(kitten, depth=0), CameraFamily.path(request)
    assert torch.equal(batch["camera"], rays(path, identity_rays(24, 40)))
    views = render(to_pixels(prepare_picture(kitten, request, 2)), path)
    noise = torch.Generator().manual_seed(request.seed)
    assert torch.equal(batch["cond_frames"], views + 0.02 * torch.randn(views.shape, generator=noise))


def test_near_things_move_more_than_far_ones_in_what_the_network_is_shown(kitten: Image.Image) -> None:
    def moved(depth: float) -> tuple[float, float]:
        """How far, in pixels, the last frame sees from the first: on the kitten's face, and on the trees behind it."""
        maps = conditions(kitten, depth=depth)["camera"]
        left = (maps[0] - maps[-1])[0] * 320
        assert maps.isfinite().all()
        return float(left[14, 22]), float(left[2, 30])

    (flat_near, flat_far), (near, far), (nearer, farther) = map(moved, (0, 1, 2))
    assert flat_near == pytest.approx(flat_far)
    assert farther < far < 0.9 * flat_far
    assert nearer > near > 1.05 * flat_near


def test_a_first_frame_is_the_picture_whatever_its_depth(kitten: Image.Image) -> None:
    flat, deep = (conditions(kitten, depth=depth, cond_aug=0)["cond_frames"][0] for depth in (0, 2))
    assert (flat - deep).abs().mean() < 0.01


@pytest.mark.parametrize("size", [(31, 400), (1, 1)])
def test_pictures_without_an_object_have_depth_too(size: tuple[int, int]) -> None:
    maps = conditions(Image.new("RGB", size, "teal"), height=64, width=64)["camera"]
    left = (maps[0] - maps[-1])[0].mean(dim=-1)
    assert (left.diff() > 0).all()  # nearer towards the bottom
    assert left[-1] / left[0] < 1.5


def test_clips_have_the_depth_that_is_asked_for(kitten: Image.Image) -> None:
    engine = load_engine("svd_tiny", device="cpu", dtype="float32")
    found = []
    for depth in (0, 1):
        request = VideoRequest("svd_tiny", **{**PAN, "frames": 2}, depth=depth)
        clip = generate(engine, request, kitten)
        scores = score_clip(clip.frames, kitten, request=request)
        found.append(scores["parallax"])
        assert (scores["layered_hold"] or 0) > 24
        other = score_clip(clip.frames, kitten, request=request.replace(camera="pan_right"))["parallax"]
        assert other == pytest.approx(-depth, abs=0.25)  # by another camera, that of the picture before notwithstanding
        assert score_clip(clip.frames, kitten, request=request) == scores
    assert found == [pytest.approx(0, abs=0.25), pytest.approx(1, abs=0.25)]


def test_other_clips_have_no_parallax_to_be_measured(kitten: Image.Image) -> None:
    pan = VideoRequest("svd_tiny", **PAN)
    requests = VideoRequest("svd", frames=4, width=320, height=192), pan.replace(frames=5), pan
    for request, picture in zip(requests, (kitten, kitten, Image.new("RGB", (320, 192), "teal")), strict=True):
        scores = score_clip(np.zeros((4, 192, 320, 3), np.uint8), picture, request=request)
        assert (scores["parallax"], scores["layered_hold"]) == (None, None)
        assert scores["frame0"] is not None


def test_recipes_of_before_there_was_depth_are_flat() -> None:
    whole = VideoRequest("svd_tiny", camera="zoom_in").settings()
    assert request_of({**whole, "sgm": {"format": 1, "program": "0.2.0"}}).depth == 1
    del whole["depth"]
    assert request_of({**whole, "sgm": {"format": 1, "program": "0.2.0"}}).depth == 0
    assert request_of({**whole, "sgm": {"format": 1}}).depth == 1  # by hand, with what differs from the defaults
    assert request_of(BEFORE_THE_MARK).depth == 0


def test_the_network_of_masks_ships_with_its_licence() -> None:
    folder = bundle() / "checkpoints"
    assert "Apache License" in (folder / "u2netp.LICENSE").read_text("utf-8")
    assert "Xuebin Qin" in (folder / "README.md").read_text("utf-8")
    total = sum(path.stat().st_size for path in (folder / "svd_tiny.safetensors", folder / "u2netp.onnx"))
    assert total < 40e6
