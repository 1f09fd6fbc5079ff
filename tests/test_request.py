"""VideoRequest: every choice has a default, and each wrong one is refused with what was given and what was expected."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, cast

import pytest

from sgm import CAMERA_MOVES, FITS, GUIDERS, SAMPLERS, VERSIONS, Progress, UserError, VideoRequest


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_what_is_left_out_is_the_versions_default(version: Any) -> None:
    request = VideoRequest(version.name)
    names = "frames height width steps fps motion_bucket cond_aug sampler guider min_guidance max_guidance fit"
    for name in names.split():
        assert getattr(request, name) == getattr(version, name), name
    assert None not in dataclasses.asdict(request).values()
    assert request.decode_chunk == request.frames


def test_official_defaults() -> None:
    svd, xt, orbit = VideoRequest("svd"), VideoRequest("svd_xt_1_1"), VideoRequest("sv3d_u")
    few = VideoRequest("svd_xt_lcm")
    assert (few.frames, few.steps, few.sampler, few.min_guidance, few.max_guidance) == (25, 4, "lcm", 1.0, 1.2)
    assert (svd.sampler, svd.motion_bucket, svd.fit, orbit.fit) == ("euler_edm", 127, "crop", "object")
    assert (svd.frames, svd.height, svd.width, svd.steps) == (14, 576, 1024, 25)
    assert (svd.guider, svd.min_guidance, svd.max_guidance, svd.cond_aug) == ("linear", 1.0, 2.5, 0.02)
    assert (xt.frames, xt.steps, xt.min_guidance, xt.max_guidance) == (25, 30, 1.5, 3.0)
    assert (orbit.frames, orbit.height, orbit.width, orbit.steps) == (21, 576, 576, 50)
    assert (orbit.guider, orbit.min_guidance, orbit.max_guidance, orbit.cond_aug) == ("triangle", 1.0, 2.5, 1e-5)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        VideoRequest().seed = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "request_",
    [
        VideoRequest(),
        VideoRequest("svd", frames=3, height=64, width=128, steps=2, seed=2**31 - 1, decode_chunk=1, fit="pad"),
        VideoRequest("sv3d_p", elevation=-12.5, sampler="dpmpp_2m", guider="cfg", max_guidance=4, cond_aug=0),
        VideoRequest("svd_tiny", camera="pan_left", motion_bucket=511),
    ],
)
def test_settings_come_back_the_same_through_json(request_: VideoRequest) -> None:
    settings = json.loads(json.dumps(request_.settings()))
    assert set(settings) == {field.name for field in dataclasses.fields(VideoRequest)}
    assert VideoRequest(**settings) == request_


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("version", VERSIONS),
        ("sampler", SAMPLERS),
        ("guider", GUIDERS),
        ("camera", CAMERA_MOVES),
        ("fit", FITS),
    ],
)
@pytest.mark.parametrize("given", ["nonsense", "", 3, ["crop"]])
def test_names_are_checked(name: str, known: Any, given: Any) -> None:
    with pytest.raises(UserError) as caught:
        VideoRequest(**{name: given})
    message = str(caught.value)
    assert message.startswith(f"{name} must be one of ")
    assert all(word in message for word in known)
    assert repr(given) in message
    for right in known:
        assert getattr(VideoRequest(**{name: right}), name) == right


WHOLE: dict[str, tuple[int, int]] = {
    "frames": (1, 200),
    "steps": (1, 1000),
    "fps": (1, 120),
    "motion_bucket": (0, 511),
    "seed": (0, 2**31 - 1),
    "decode_chunk": (1, 200),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_are_checked(name: str) -> None:
    low, high = WHOLE[name]
    wrong: list[Any] = [low - 1, high + 1, low + 0.5, str(low), True, math.nan, [low]]
    for given in wrong:
        with pytest.raises(UserError) as caught:
            VideoRequest(**{name: given})
        assert str(caught.value) == f"{name} must be a whole number from {low} to {high}; got {given!r}."
    right: list[Any] = [low, high]
    for given in right:
        assert getattr(VideoRequest(**{name: given}), name) == given


NUMBERS: dict[str, tuple[float, float]] = {
    "image_frame_ratio": (0.1, 1),
    "cond_aug": (0, 1),
    "min_guidance": (0, 100),
    "max_guidance": (0, 100),
    "elevation": (-90, 90),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_checked(name: str) -> None:
    low, high = NUMBERS[name]
    wrong: list[Any] = [low - 0.01, high + 0.01, math.nan, math.inf, "1", True, [1]]
    for given in wrong:
        with pytest.raises(UserError) as caught:
            VideoRequest(**{name: given})
        assert str(caught.value) == f"{name} must be a number from {low} to {high}; got {given!r}."
    both: dict[str, Any] = {"min_guidance": 0, "max_guidance": 100}
    for given in (low, high, (low + high) / 3):
        assert getattr(VideoRequest(**{**both, name: given}), name) == given


def test_guidance_does_not_fall() -> None:
    with pytest.raises(UserError, match=r"min_guidance must not exceed max_guidance; got 3(\.0)? and 2\.5"):
        VideoRequest("svd", min_guidance=3)
    assert VideoRequest("svd", min_guidance=2.5).max_guidance == 2.5


@pytest.mark.parametrize("name", ["height", "width"])
@pytest.mark.parametrize(
    ("version", "given", "said"),
    [
        ("svd", 100, "a multiple of 64 (nearest: 64 or 128); got 100"),
        ("svd", 575, "a multiple of 64 (nearest: 512 or 576); got 575"),
        ("svd", 32, "a multiple of 64 (nearest: 64 or 128); got 32"),
        ("svd", 0, "a multiple of 64 (nearest: 64 to 4096); got 0"),
        ("svd", -64, "a multiple of 64 (nearest: 64 to 4096); got -64"),
        ("svd", 4160, "a multiple of 64 (nearest: 64 to 4096); got 4160"),
        ("svd", 64.0, "a multiple of 64 (nearest: 64 to 4096); got 64.0"),
        ("svd", "64", "a multiple of 64 (nearest: 64 to 4096); got '64'"),
        ("svd_tiny", 100, "a multiple of 32 (nearest: 96 or 128); got 100"),
        ("svd_tiny", 4090, "a multiple of 32 (nearest: 4064 or 4096); got 4090"),
    ],
)
def test_sizes_that_the_network_cannot_take(name: str, version: str, given: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        VideoRequest(version, **{name: given})
    assert str(caught.value) == f"{name} must be {said}."


def test_sizes_that_it_can() -> None:
    assert VideoRequest("svd", height=4096, width=64).height == 4096
    assert VideoRequest("svd_tiny", height=32, width=96).width == 96


def test_the_nearest_size_is_one_that_can_be_taken() -> None:
    for given in range(1, 4096, 7):
        try:
            VideoRequest("svd", width=given)
        except UserError as error:
            for near in str(error).split("nearest: ")[1].split(")")[0].split(" or "):
                assert VideoRequest("svd", width=int(near)).width == int(near)
        else:
            assert given % 64 == 0


def test_a_user_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="frames must be a whole number"):
        VideoRequest(frames=0)


@pytest.mark.parametrize("name", ["seed", "camera", "elevation", "orbit", "azimuths", "image_frame_ratio", "version"])
def test_none_is_refused_where_no_version_has_a_default_of_its_own(name: str) -> None:
    with pytest.raises(UserError, match=f"^{name} must be .*; got None"):
        VideoRequest(**{name: cast(Any, None)})


def test_progress_grows_from_nothing_to_all() -> None:
    course = [Progress("encode", i, 1) for i in range(2)]
    course += [Progress("sample", i, 5) for i in range(1, 6)]
    course += [Progress("decode", i, 3) for i in range(1, 4)]
    fractions = [progress.fraction for progress in course]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == pytest.approx(1)
