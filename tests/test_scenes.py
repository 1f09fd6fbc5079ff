"""Scenes with depth: near things move more than far ones, and nothing is learnt of what nobody has seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sgm.conditioning.camera import camera_path, direction, halved, identity_rays, rays, render
from sgm.conditioning.layers import layers
from sgm.conditioning.scene import Scene
from sgm.parallax import layered_hold, parallax
from sgm.training.data import PictureClips, recoloured

H, W, FRAMES = 96, 160, 6
OBJECT = (slice(30, 70), slice(60, 100))
BASE = identity_rays(H, W)


def noise(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (H // 4, W // 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((W, H), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    pixels = noise(0) // 2
    pixels[OBJECT] = 128 + noise(1)[OBJECT] // 2
    return pixels


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    mask = np.zeros((H, W), np.uint8)
    mask[OBJECT] = 255
    return mask


def scene_of(picture: np.ndarray, mask: np.ndarray | None) -> Scene:
    found = layers(picture, mask)
    disparity = torch.from_numpy(found.disparity)[None].expand(1, 1, H, W)
    colour = torch.from_numpy(found.colour)[None].float() / 127.5 - 1
    matte = torch.from_numpy(found.matte)[None].float() / 255
    near = torch.tensor([found.near])
    return Scene(colour, matte, disparity, near, lambda p: torch.stack([p[:, 0] * 2, p[:, 1] * 2 * W / H], dim=-1))


def path(move: str, motion: float = 1.5) -> Tensor:
    return camera_path(direction(move), torch.tensor([motion]), FRAMES, H, W)


def seen(scene: Scene, moves: Tensor) -> np.ndarray:
    views = torch.cat([scene.view(move[None], BASE)[0] for move in moves[0]])
    return ((views.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_near_things_move_more_by_their_disparity(picture: np.ndarray, mask: np.ndarray, strength: float) -> None:
    moves = path("pan_left")
    scene = scene_of(picture, mask).deep(torch.tensor([strength]), moves, BASE)
    assert float(scene.first_disparity(BASE).mean()) == pytest.approx(1, abs=1e-4)
    frames = seen(scene, moves).astype(float).mean(axis=-1)
    columns = [np.flatnonzero(frame[40:60].mean(axis=0) > 110).mean() for frame in (frames[0], frames[-1])]
    flat = -float(moves[0, -1, 0]) * W  # pixels that the flat picture moves
    assert columns[1] - columns[0] == pytest.approx(flat * float(scene.near), abs=1)
    sky = np.correlate(*(frame[5] - frame[5].mean() for frame in (frames[-1], frames[0])), mode="full").argmax()
    assert sky - (W - 1) == pytest.approx(flat * float(scene.disparity[0, 0, 5, 0]), abs=1)
    assert float(scene.near) > 1 + 0.15 * strength > 1 - 0.2 * strength > float(scene.disparity.min())


def test_without_depth_it_is_the_flat_camera(picture: np.ndarray, mask: np.ndarray) -> None:
    moves = path("zoom_in")
    scene = scene_of(picture, mask).deep(torch.zeros(1), moves, BASE)
    found, wanted = scene.rays(moves[0, -1:], BASE), rays(moves[0, -1:], BASE)
    known = ~found.isnan()
    assert known.float().mean() > 0.99
    assert torch.allclose(found[known], wanted[known], atol=1e-5)
    views = torch.cat([scene.view(move[None], BASE)[0] for move in moves[0]])
    assert (views - scene.flat()).abs()[0].max() < 1e-3
    small = torch.nn.functional.interpolate(views, scale_factor=0.5, mode="bicubic", antialias=True)
    assert (small - render(scene.flat(), moves[0])).abs().mean() < 0.01


@pytest.mark.parametrize("alone", [False, True])
def test_a_film_is_the_views_at_half_their_size(picture: np.ndarray, mask: np.ndarray, alone: bool) -> None:
    moves = path("pan_left")
    scene = scene_of(picture, None if alone else mask).deep(torch.ones(1), moves, BASE)
    views = torch.cat([halved(scene.view(move[None], BASE)[0]) for move in moves[0]])
    assert torch.equal(scene.film(moves[0]), views)


def test_what_the_object_hides_is_not_known(picture: np.ndarray, mask: np.ndarray) -> None:
    moves = path("pan_left")
    scene = scene_of(picture, mask).deep(torch.ones(1), moves, BASE)
    _, first = scene.view(moves[0, :1], BASE)
    _, last = scene.view(moves[0, -1:], BASE)
    unknown = (last[0, 0] < 0.5).nonzero()
    width = float(-moves[0, -1, 0]) * W * float(scene.near - scene.disparity[0, 0, 50, 0])  # of the disocclusion
    assert (first > 0.95).all()
    assert 40 * (width - 6) < len(unknown) < 44 * width  # the hole's rim is guessed
    assert unknown[:, 1].float().mean() < W / 2  # the object goes right, and uncovers what is left of it
    assert scene.rays(moves[0, -1:], BASE).isnan()[0, 0][last[0, 0] < 0.4].float().mean() > 0.9


def test_a_camera_stops_before_the_object(picture: np.ndarray, mask: np.ndarray) -> None:
    moves = path("zoom_in", motion=4)
    scene = scene_of(picture, mask).deep(torch.ones(1), moves, BASE)
    assert float((1 - torch.exp(-moves[0, -1, 2])) * scene.near) <= 0.76
    assert float(scene.near) > 1


def masks_of_no_object(mask: np.ndarray) -> dict[str, np.ndarray]:
    speck = np.zeros_like(mask)
    speck[40:45, 60:66] = 255
    ramp = np.linspace(0, 255, W).astype(np.uint8)
    return {
        **{name: np.full_like(mask, value) for name, value in (("nothing", 0), ("unsure", 120), ("everything", 255))},
        "a speck": speck,
        "a shore": np.repeat(ramp[None], H, axis=0),
        "a blur": np.asarray(Image.fromarray(mask).resize((8, 5)).resize((W, H), Image.Resampling.BICUBIC)),
        "half of it": np.where((mask > 0) & (np.arange(W) > 75), 255, mask // 2).astype(np.uint8),
    }


@pytest.mark.parametrize("name", masks_of_no_object(np.zeros((H, W), np.uint8)))
def test_masks_that_show_no_object_are_not_used(picture: np.ndarray, mask: np.ndarray, name: str) -> None:
    found = layers(picture, masks_of_no_object(mask)[name])
    assert not found.matte[0].any()
    assert (found.matte[1] == 255).all()
    assert (found.colour[3:] == picture.transpose(2, 0, 1)).all()
    assert layers(picture, mask).matte[0].any()


def test_straight_lines_stay_straight(picture: np.ndarray) -> None:
    moves = path("pan_left")
    scene = scene_of(picture, None).deep(torch.ones(1), moves, BASE)
    column = scene.rays(moves[0, -1:], BASE)[0, 0, :, W // 2]  # where a straight line of the frame lies in the picture
    inside = column[2:-2] - torch.linspace(float(column[2]), float(column[-3]), H - 4)
    assert inside.abs().max() * W < 0.2  # pixels
    assert float(column[-3] - column[2]) * W < -2


def test_the_hole_is_filled_with_what_is_beside_it(mask: np.ndarray) -> None:
    stripes = np.where(np.arange(W)[None, :, None] // 2 % 2, 200, 50).astype(np.uint8).repeat(H, 0).repeat(3, 2)
    picture = np.where(mask[..., None] > 0, np.array([255, 0, 0], np.uint8), stripes)
    far = layers(picture, mask).colour[3:].transpose(1, 2, 0)
    assert (far[..., 0] == far[..., 1]).all()  # nothing of the object's red
    beside = far[45:55, 58:66]  # at its left edge: as lively as its surroundings
    assert beside.std() > 0.8 * stripes.std()


def test_parallax_is_measured_against_the_true_render(picture: np.ndarray, mask: np.ndarray) -> None:
    moves = path("pan_left")
    scene = scene_of(picture, mask)
    flat, half, truth = (seen(scene.deep(torch.tensor([strength]), moves, BASE), moves) for strength in (0.0, 0.5, 1.0))
    inside = mask > 0
    assert parallax(truth, truth, flat, inside) == pytest.approx(1)
    assert parallax(half, truth, flat, inside) == pytest.approx(0.5, abs=0.15)
    assert parallax(flat, truth, flat, inside) == pytest.approx(0, abs=0.05)
    assert parallax(flat, flat, flat, inside) is None
    assert layered_hold(truth, inside) > layered_hold(np.concatenate([truth[:1], half[::-1, ::-1]]), inside) + 3


def test_colours_of_a_share_of_the_pictures_are_changed() -> None:
    torch.manual_seed(0)
    grey, rest = 2 * torch.rand(200, 1, 4, 4) - 1, 2 * torch.rand(200, 3, 4, 4) - 1
    layers = torch.cat([grey.expand(-1, 3, -1, -1), rest], dim=1)
    assert torch.equal(recoloured(layers, 0.0), layers)
    found = recoloured(layers, 0.5)
    assert found.abs().max() <= 1
    changed = (found != layers).flatten(1).any(dim=1)
    assert 70 < changed.sum() < 130
    assert (found[:, :3] - found[:, :1]).abs().max() < 1e-5  # grey stays grey
    assert (found[changed, 3:] - layers[changed, 3:]).abs().mean() > 0.2


def test_training_clips_have_depth(picture: np.ndarray, mask: np.ndarray, tmp_path: Path) -> None:
    for folder, pixels in (("pictures", picture), ("masks", mask)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "object.png")
    Image.fromarray(noise(2)).save(tmp_path / "pictures" / "plain.png")
    torch.manual_seed(0)
    clips = PictureClips(tmp_path / "pictures", (64, 64), (96, 160), (), (400, 511), tmp_path / "masks", composed=0.5)
    assert (len(clips.objects), len(clips.plain)) == (1, 1)
    batch = clips.draw(12, 6, torch.device("cpu"))
    assert batch.video.shape == batch.warped.shape == (12, 6, 3, 64, 64)
    assert batch.known.shape == (12, 6, 1, 8, 8)
    assert batch.rays.shape == (12, 6, 2, 8, 8)
    unknown, unseen = batch.known == 0, batch.rays.isnan().any(dim=2, keepdim=True)
    assert unknown[:, -1].any()
    assert (unseen & ~unknown).any()  # an object before another picture shows what it hid
    assert (batch.video - batch.warped)[:, 0].abs().mean() < 0.05
