"""Smoother clips: frames in between, where the motion would have had them, and the clip's own as they were."""

from __future__ import annotations

import gc
import io

import av.filter
import cv2
import numpy as np
import pytest
from PIL import Image, ImageSequence

from sgm import EXPORTS, Smoothing, UserError
from sgm.media.quality import psnr, xpsnr


def pan(count: int, step: int) -> np.ndarray:
    """A pan over soft noise, by `step` pixels a frame."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 300, 3)).astype(np.float32)
    wall = np.clip(cv2.GaussianBlur(noise, (0, 0), 2) * 4 - 380, 0, 255).astype(np.uint8)
    return np.stack([wall[:, step * i : step * i + 128] for i in range(count)])


@pytest.mark.parametrize("times", [2, 4])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_frames_go_in_between_along_the_motion_and_the_clip_s_own_stay(times: int, count: int) -> None:
    truth, done = pan(times * (count - 1) + 1, 4 // times), []
    own = truth[::times]
    smoother, fps, recipe = Smoothing(times).apply(own, 7, {"seed": 1}, lambda *step: done.append(step))
    assert (smoother.shape, fps, recipe) == (truth.shape, 7 * times, {"seed": 1, "smooth": times, "slow_motion": False})
    assert np.array_equal(smoother[::times], own)
    assert done == [(number, len(truth)) for number in range(1, len(truth) + 1)]
    for number in set(range(len(truth))) - set(range(0, len(truth), times)):
        blended = (1 - number % times / times) * own[number // times] + number % times / times * own[
            number // times + 1
        ]
        assert psnr(smoother[number], truth[number]) > psnr(blended.astype(np.uint8), truth[number]) + 4


def test_slow_motion_keeps_the_frame_rate_and_one_times_the_clip() -> None:
    frames = pan(3, 4)
    slow, fps, recipe = Smoothing(2, slow=True).apply(frames, 7, {})
    assert (len(slow), fps, recipe) == (5, 7, {"smooth": 2, "slow_motion": True})
    assert Smoothing.of(recipe) == Smoothing(2, slow=True)
    same = Smoothing().apply(frames, 7, {"seed": 1})
    assert same[0] is frames
    assert same[1:] == (7, {"seed": 1})


def test_filters_are_freed_at_once_without_garbage_collection() -> None:
    gc.disable()
    try:
        Smoothing(2).apply(pan(3, 4), 7, {})
        xpsnr([*pan(3, 4)[..., 0]], [*pan(3, 1)[..., 0]])
        assert not any(isinstance(thing, av.filter.Graph) for thing in gc.get_objects())
    finally:
        gc.enable()


def test_a_cut_is_not_blended() -> None:
    frames = np.concatenate([pan(4, 1) // 2, 255 - pan(4, 1) // 2])
    between = Smoothing(2).apply(frames, 7, {})[0][7]
    assert min(np.abs(between.astype(int) - frame).mean() for frame in frames[3:5]) < 3


@pytest.mark.parametrize(
    ("shape", "times", "message"),
    [
        ((1, 64, 64), 2, "1 frame cannot be made smoother"),
        ((4, 16, 64), 2, "64×16 pixels are too small"),
        ((400, 64, 64), 4, "1597 of 64×64 pixels, more than the 800"),
        ((90, 4096, 4096), 2, "or the 2 GB"),
    ],
)
def test_what_cannot_be_made_smoother_is_said(shape: tuple[int, ...], times: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Smoothing(times).check(shape[0], shape[2], shape[1])


@pytest.mark.parametrize(
    "settings", [{"smooth": 3}, {"smooth": True}, {"smooth": "2"}, {"smooth": 2, "slow_motion": 1}]
)
def test_a_recipe_that_says_otherwise_is_refused(settings: dict) -> None:
    with pytest.raises(UserError, match="must be"):
        Smoothing.of(settings)


@pytest.mark.parametrize(("fps", "kept"), [(50, 8), (56, 4), (120, 3)])
def test_a_gif_of_more_frames_than_it_can_show_is_as_long(fps: int, kept: int) -> None:
    with Image.open(io.BytesIO(EXPORTS["GIF"][2](pan(8, 4), fps))) as image:
        lengths = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
    assert len(lengths) == kept
    assert sum(lengths) == pytest.approx(1000 * 8 / fps, abs=1000 * 2 / fps)
