"""Orbits: what the network is told, what is refused, the loop without a seam, the plot."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgm import UserError, VideoRequest, draw_orbit, orbit_of, write_turntable
from sgm.conditioning.orbit import radians
from sgm.media.turntable import loop_order

EVEN = tuple(float(a) for a in range(30, 361, 30))


def test_the_same_elevation_evenly_around_ends_at_the_input_view() -> None:
    elevations, azimuths = orbit_of(VideoRequest("sv3d_p", elevation=-12.5))
    assert elevations == (-12.5,) * 21
    assert azimuths[-1] == 360
    assert np.diff(azimuths) == pytest.approx(360 / 21)
    polars, turned = radians((elevations, azimuths))
    assert polars.tolist() == pytest.approx([math.radians(102.5)] * 21)
    assert float(turned[-1]) == 0
    assert turned[:-1].tolist() == pytest.approx([2 * math.pi * i / 21 for i in range(1, 21)], rel=1e-5)


@pytest.mark.parametrize("elevation", [0.0, 10.0, 80.0, -90.0])
def test_a_dynamic_orbit_is_drawn_from_the_seed_and_closes(elevation: float) -> None:
    orbits = {
        seed: orbit_of(VideoRequest("sv3d_p", orbit="dynamic", elevation=elevation, seed=seed)) for seed in range(9)
    }
    assert len(set(orbits.values())) == 9
    for seed, (elevations, azimuths) in orbits.items():
        assert orbit_of(VideoRequest("sv3d_p", orbit="dynamic", elevation=elevation, seed=seed)) == (
            elevations,
            azimuths,
        )
        assert all(-90 <= e <= 90 for e in elevations)
        assert (elevations[-1], azimuths[-1]) == (elevation, 360)
        assert azimuths[0] > 0
        assert min(np.diff(azimuths)) > 0
        assert loop_order(elevations, azimuths) == list(range(21))


def test_lists_are_taken_as_they_are_and_come_back_through_settings() -> None:
    asked = {"frames": 12, "orbit": "list", "azimuths": list(EVEN), "elevations": [float(i) for i in range(12)]}
    request = VideoRequest("sv3d_p", **asked)
    assert orbit_of(request) == (tuple(range(12)), EVEN)
    assert VideoRequest(**request.settings()) == request
    only = VideoRequest("sv3d_p", frames=12, orbit="list", azimuths=EVEN, elevation=5)
    assert orbit_of(only) == ((5.0,) * 12, EVEN)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"orbit": "spiral"}, "orbit must be one of same, dynamic, list; got 'spiral'"),
        ({"orbit": "list"}, "neither elevations nor azimuths are given"),
        ({"azimuths": EVEN}, "azimuths does not belong to orbit 'same', but to list"),
        ({"orbit": "list", "azimuths": EVEN[:-1]}, "azimuths must be 12 numbers, one a frame; got 11"),
        ({"orbit": "list", "elevations": EVEN[:3]}, "elevations must be 12 numbers, one a frame; got 3"),
        (
            {"orbit": "list", "elevations": [91] * 12},
            "elevations must be numbers from -90 to 90 degrees; number 1 is 91",
        ),
        ({"orbit": "list", "azimuths": [*EVEN[:-1], 361]}, "from 0 to 360 degrees; number 12 is 361"),
        ({"orbit": "list", "azimuths": [*EVEN[:-1], math.nan]}, "number 12 is nan"),
        ({"orbit": "list", "azimuths": ["a"] * 12}, "number 1 is 'a'"),
        ({"orbit": "list", "azimuths": [*EVEN[:3], 90.0, *EVEN[4:]]}, "number 4 is 90 after 90"),
        ({"orbit": "list", "azimuths": EVEN[::-1]}, "azimuths must rise strictly; number 2 is 330 after 360"),
        ({"orbit": "list", "elevations": 10}, "elevations must be a list of degrees"),
        ({"image_frame_ratio": 0}, "image_frame_ratio must be a number from 0.1 to 1; got 0"),
    ],
)
def test_what_is_no_orbit_is_refused(choices: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        VideoRequest("sv3d_p", frames=12, **choices)
    assert said in str(caught.value)


def test_other_versions_have_no_choice_of_orbits() -> None:
    for version in ("sv3d_u", "svd"):
        with pytest.raises(UserError, match=f"orbit does not belong to version '{version}', but to sv3d_p"):
            VideoRequest(version, orbit="dynamic")


def test_an_orbit_that_does_not_close_goes_there_and_back() -> None:
    half = [float(a) for a in range(15, 181, 15)]
    flat = [0.0] * 12
    assert loop_order(flat, half) == [*range(12), *range(10, 0, -1)]
    assert loop_order(flat, EVEN) == list(range(12))
    assert loop_order(np.linspace(0, 60, 12).tolist(), EVEN) == [*range(12), *range(10, 0, -1)]  # ends far above
    assert loop_order([0.0], [360.0]) == [0]


def turning(frames: int = 12) -> np.ndarray:
    """A bright column that goes once around."""
    video = np.full((frames, 32, 120, 3), 30, np.uint8)
    for i in range(frames):
        start = (i + 1) % frames * 10
        video[i, :, start : start + 10] = 220
    return video


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_a_turntable_loops_for_ever_and_its_last_frame_is_a_step_before_its_first(tmp_path: Path, suffix: str) -> None:
    path = write_turntable(tmp_path / f"orbit{suffix}", turning(), 10, (0.0,) * 12, EVEN)
    with Image.open(path) as animation:
        assert animation.n_frames == 12  # pyright: ignore[reportAttributeAccessIssue]
        assert animation.info["loop"] == 0
        columns = []
        for i in range(12):
            animation.seek(i)
            animation.load()
            assert animation.info["duration"] == 100
            columns.append(int(np.asarray(animation.convert("L")).mean(axis=0).reshape(12, 10).mean(axis=1).argmax()))
    steps = [(after - before) % 12 for before, after in zip(columns, [*columns[1:], columns[0]], strict=True)]
    assert steps == [1] * 12  # the seam's among them
    assert list(tmp_path.iterdir()) == [path]


def test_a_turntable_as_mp4_goes_round_several_times(tmp_path: Path) -> None:
    import av

    path = write_turntable(tmp_path / "orbit.mp4", turning(), 10, (0.0,) * 12, EVEN, turns=2)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 24
    with pytest.raises(UserError, match=r"'orbit\.avi', but must end in \.webp, \.gif or \.mp4"):
        write_turntable(tmp_path / "orbit.avi", turning(), 10, (0.0,) * 12, EVEN)


def test_the_plot_shows_the_orbit() -> None:
    flat = draw_orbit((0.0,) * 12, EVEN)
    assert flat.size == (960, 432)
    assert np.asarray(flat).mean() > 200 > 60 > np.asarray(draw_orbit((0.0,) * 12, EVEN, dark=True)).mean()
    tilted = draw_orbit(tuple(20 * math.sin(math.radians(a)) for a in EVEN), EVEN)
    assert not np.array_equal(np.asarray(flat), np.asarray(tilted))
    orange = np.asarray(tilted.convert("RGB")).astype(int)
    assert ((orange[..., 0] > 190) & (orange[..., 2] < 80)).any()  # the input view stands out
    assert torch.is_tensor(radians((EVEN, EVEN))[0])


@pytest.mark.parametrize("width", [64, 701, 702, 1280])
def test_the_plot_has_the_size_that_is_asked_for(width: int) -> None:
    assert draw_orbit((90.0,), (360.0,), width).size == (width, round(0.45 * width))


def test_several_threads_may_plot_at_once() -> None:
    alone = [draw_orbit((float(10 * i),) * 12, EVEN, 320).tobytes() for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda i: draw_orbit((float(10 * i),) * 12, EVEN, 320).tobytes(), range(8)))
    assert together == alone
