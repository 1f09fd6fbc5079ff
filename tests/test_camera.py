"""Camera moves: the motion asked for is the motion that results, and the network is told where each pixel looks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sgm.conditioning.camera import (
    CAMERA_MOVES,
    CameraRayEmbedder,
    camera_path,
    direction,
    identity_rays,
    motion_bucket,
    motion_of_bucket,
    rays,
    reflect,
    render,
)

NAMED = [move for move in CAMERA_MOVES if move != "auto"]
H, W, FRAMES = 48, 80, 8


def moved(path: Tensor, h: int = H, w: int = W) -> Tensor:
    """Mean displacement of each frame against the first, in percent of the width: (frames,)."""
    base = identity_rays(h, w)
    return (rays(path, base) - base).norm(dim=1).mean(dim=(1, 2)) * 100


@pytest.mark.parametrize("bucket", [20.0, 127.0, 255.0])
@pytest.mark.parametrize("move", NAMED)
def test_named_moves_move_as_much_as_asked_for(move: str, bucket: float) -> None:
    motion = float(motion_of_bucket(bucket))
    path = camera_path(direction(move), torch.tensor([motion]), FRAMES, H, W)[0]
    measured = float(moved(path)[-1]) / (FRAMES - 1)
    assert measured == pytest.approx(motion, rel=0.05)
    assert float(motion_bucket(measured)) == pytest.approx(bucket, rel=0.05)


def test_drawn_moves_move_as_much_as_asked_for() -> None:
    n = 64
    generator = torch.Generator().manual_seed(3)
    motion = torch.linspace(0.05, 1.6, n)
    ease = torch.rand(n, generator=generator)
    paths = camera_path(direction("auto", n, generator), motion, 14, H, W, ease)
    measured = torch.stack([moved(path)[-1] for path in paths]) / 13
    torch.testing.assert_close(measured, motion, rtol=0.05, atol=0)


def test_the_first_frame_is_the_picture_and_every_frame_goes_further() -> None:
    for move in NAMED:
        for ease in (0.0, 0.3, 1.0):
            path = camera_path(direction(move), torch.tensor([0.8]), FRAMES, H, W, torch.tensor([ease]))[0]
            assert torch.equal(path[0], torch.zeros(6))
            assert torch.equal(rays(path, identity_rays(H, W))[0], identity_rays(H, W))
            assert (moved(path).diff() > 0).all(), (move, ease)


def test_ease_starts_and_stops_gently() -> None:
    even, gentle = (
        moved(camera_path(direction("pan_left"), torch.tensor([0.8]), 9, H, W, torch.tensor([ease]))[0]).diff()
        for ease in (0.0, 1.0)
    )
    torch.testing.assert_close(even, even.mean().expand(8), rtol=1e-3, atol=0)
    assert gentle[0] < 0.5 * even[0]
    assert gentle[-1] < 0.5 * even[-1]
    assert gentle[4] > even[4]


def test_one_frame_and_no_motion_stay_where_they_are() -> None:
    assert torch.equal(camera_path(direction("zoom_in"), torch.tensor([0.8]), 1, H, W), torch.zeros(1, 1, 6))
    still = camera_path(direction("zoom_in"), torch.tensor([0.0]), 5, H, W)
    assert torch.equal(still, torch.zeros(1, 5, 6))


def test_bucket_and_motion_are_each_others_inverse() -> None:
    buckets = torch.arange(0.0, 512.0)
    torch.testing.assert_close(torch.as_tensor(motion_bucket(motion_of_bucket(buckets))), buckets)
    motion = torch.as_tensor(motion_of_bucket(buckets))
    assert motion[0] == 0
    assert (motion.diff() > 0).all()


def test_identity_rays_lie_at_pixel_centres_in_widths() -> None:
    base = identity_rays(2, 4)
    torch.testing.assert_close(base[0], torch.tensor([[-0.375, -0.125, 0.125, 0.375]]).expand(2, 4))
    torch.testing.assert_close(base[1], torch.tensor([[-0.125], [0.125]]).expand(2, 4))


SIDES = {"pan_left": (0, -1), "pan_right": (0, 1), "pan_up": (1, -1), "pan_down": (1, 1)}


@pytest.mark.parametrize("move", SIDES)
def test_pans_look_where_their_name_says(move: str) -> None:
    axis, sign = SIDES[move]
    path = camera_path(direction(move), torch.tensor([1.0]), 5, H, W)[0]
    shift = (rays(path, identity_rays(H, W)) - identity_rays(H, W))[-1]
    torch.testing.assert_close(shift[axis], torch.full((H, W), sign * 0.04), rtol=0.01, atol=0)
    assert shift[1 - axis].abs().max() < 1e-6


@pytest.mark.parametrize(("move", "closer"), [("zoom_in", True), ("zoom_out", False)])
def test_zooms_see_less_or_more(move: str, closer: bool) -> None:
    path = camera_path(direction(move), torch.tensor([1.0]), 5, H, W)[0]
    last = rays(path, identity_rays(H, W))[-1].abs().amax()
    assert (last < identity_rays(H, W).abs().amax()) == closer


def test_rolls_turn_opposite_ways() -> None:
    left, right = (
        rays(camera_path(direction(move), torch.tensor([1.0]), 5, H, W)[0], identity_rays(H, W))[-1]
        for move in ("roll_left", "roll_right")
    )
    torch.testing.assert_close(left, right.flip(1) * torch.tensor([1.0, -1.0]).view(2, 1, 1))
    torch.testing.assert_close(left.norm(dim=0), identity_rays(H, W).norm(dim=0))


def test_drawn_moves_depend_on_the_seed_alone() -> None:
    def draw(seed: int) -> Tensor:
        return direction("auto", generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def picture() -> Tensor:
    """A smooth picture, (1, 3, 2 H, 2 W)."""
    x, y = identity_rays(2 * H, 2 * W)
    return torch.stack([torch.sin(9 * x), torch.cos(7 * y), x * 2])[None]


def test_a_still_camera_sees_the_picture() -> None:
    seen = render(picture(), torch.zeros(3, 6))
    assert seen.shape == (3, 3, H, W)
    half = torch.nn.functional.interpolate(picture(), size=(H, W), mode="bicubic", antialias=True)
    torch.testing.assert_close(seen, half.expand_as(seen), rtol=0, atol=2e-3)


def test_a_camera_that_pans_right_sees_the_picture_move_left() -> None:
    path = torch.zeros(2, 6)
    path[1, 0] = 4 / W  # four pixels
    first, second = render(picture(), path)
    torch.testing.assert_close(second[..., 2:-6], first[..., 6:-2], rtol=0, atol=5e-3)


def test_beyond_the_edges_lies_the_mirror_image() -> None:
    limit = torch.tensor([0.5, 0.3])
    points = torch.tensor([[0.4, 0.5, 0.6, -0.7, 1.2], [0.0, 0.3, 0.4, -0.4, 0.0]]).view(2, 1, 5)
    wanted = torch.tensor([[0.4, 0.5, 0.4, -0.3, -0.2], [0.0, 0.3, 0.2, -0.2, 0.0]]).view(2, 1, 5)
    torch.testing.assert_close(reflect(points, limit), wanted)


def test_ray_features_of_an_unknown_camera_are_zero_and_of_that_frame_alone() -> None:
    embed = CameraRayEmbedder(frequencies=5)
    maps = identity_rays(6, 10).repeat(3, 1, 1, 1)
    maps[1] = math.nan
    features = embed(maps)
    assert features.shape == (3, embed.channels, 6, 10)
    assert embed.channels == 43
    assert torch.equal(features[1], torch.zeros_like(features[1]))
    assert torch.equal(features[0], features[2])
    assert features[0].abs().sum() > 0
    assert features.isfinite().all()


def test_ray_features_tell_place_displacement_and_whether_it_is_inside() -> None:
    embed = CameraRayEmbedder(frequencies=2)
    base = identity_rays(6, 10)
    shifted = base + torch.tensor([0.25, 0.0]).view(2, 1, 1)
    still, panned = embed(torch.stack([base, shifted]))
    assert torch.equal(still[-3:-1], torch.zeros(2, 6, 10))
    torch.testing.assert_close(panned[-3], torch.full((6, 10), 2.0))
    assert torch.equal(still[-1], torch.ones(6, 10))
    assert torch.equal(panned[-1], (shifted[0] <= 0.5).float())
    torch.testing.assert_close(still[0], torch.sin(2 * math.pi * base[0]))
    assert (panned != still)[: 2 * 2].any()  # where it looks
    own = [2 * 2 + i for i in range(2 * 2)]  # its own place stays
    torch.testing.assert_close(panned[own], still[own])
