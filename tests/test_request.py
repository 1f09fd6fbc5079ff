"""VideoRequest: every choice has a default, and each wrong one is refused with what was given and what was expected."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import sys
from typing import Any, ClassVar

import numpy as np
import pytest

from sgm import (
    CAMERA_MOVES,
    FITS,
    GUIDERS,
    SAMPLERS,
    SCHEDULES,
    SPEEDS,
    VERSIONS,
    Field,
    Progress,
    UserError,
    VideoRequest,
    all_fields,
    curves,
    schedule_curves,
)
from sgm.diffusion.guidance import LinearPredictionGuider
from sgm.diffusion.sampling import EulerEDMSampler


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_what_is_left_out_is_the_versions_default(version: Any) -> None:
    request = VideoRequest(version.name)
    names = "frames height width steps fps cond_aug sampler guider min_guidance max_guidance fit"
    for name in f"{names}{'' if request.family.orbits else ' motion_bucket'}".split():
        assert getattr(request, name) == getattr(version, name), name
    assert None not in request.settings().values()
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
        VideoRequest("svd", frames=3, height=64, width=128, steps=2, seed=2**32 - 2, decode_chunk=1, fit="pad"),
        VideoRequest("sv3d_p", elevation=-12.5, sampler="dpmpp_2m", guider="cfg", max_guidance=4, cond_aug=0),
        VideoRequest("sv3d_p", orbit="list", azimuths=[17 * i for i in range(1, 22)], crop_x=1, fit="pad"),
        VideoRequest("svd", guider="triangle", period=[1, 0.25], period_fusing="mean", sampler="lcm", s_noise=0.7),
        VideoRequest("svd_tiny", camera="pan_left", motion_bucket=511),
    ],
)
def test_settings_come_back_the_same_through_json(request_: VideoRequest) -> None:
    settings = json.loads(json.dumps(request_.settings()))
    assert set(settings) == {"version", *request_.fields()}
    assert VideoRequest(**settings) == request_


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("version", VERSIONS),
        ("sampler", SAMPLERS),
        ("guider", GUIDERS),
        ("schedule", SCHEDULES),
        ("camera", CAMERA_MOVES),
        ("fit", FITS),
        ("speed", SPEEDS),
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


def test_a_speed_says_what_is_not_said() -> None:
    fast = VideoRequest("svd_xt", speed="ays_cached")
    assert (fast.steps, fast.schedule, fast.speed_of.cache_interval) == (10, "ays", 2)
    assert VideoRequest("svd_xt", speed="ays", steps=20, schedule="edm").choices().keys() == {
        "speed",
        "steps",
        "schedule",
    }
    exact = fast.replace(speed="exact")
    assert (exact.steps, exact.schedule, exact.speed_of.cache_interval) == (30, "edm", 1)
    assert exact == VideoRequest("svd_xt")


WHOLE = {
    "frames": (1, 200),
    "steps": (1, 1000),
    "fps": (1, 120),
    "motion_bucket": (0, 511),
    "seed": (0, 2**32 - 2),
    "decode_chunk": (1, 200),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_are_checked(name: str) -> None:
    low, high = WHOLE[name]
    for given in (low - 1, high + 1, low + 0.5, str(low), True, math.nan, [low]):
        with pytest.raises(UserError) as caught:
            VideoRequest("svd_tiny", **{name: given})
        assert str(caught.value) == f"{name} must be a whole number from {low} to {high}; got {given!r}."
    for given in (low, high):
        assert getattr(VideoRequest("svd_tiny", **{name: given}), name) == given


NUMBERS = {
    "image_frame_ratio": (0.1, 1),
    "cond_aug": (0, 1),
    "min_guidance": (0, 100),
    "max_guidance": (0, 100),
    "elevation": (-90, 90),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_checked(name: str) -> None:
    low, high = NUMBERS[name]
    version = "sv3d_p" if name in ("image_frame_ratio", "elevation") else "svd_tiny"
    for given in (low - 0.01, high + 0.01, math.nan, math.inf, "1", True, [1]):
        with pytest.raises(UserError) as caught:
            VideoRequest(version, **{name: given})
        assert str(caught.value) == f"{name} must be a number from {low} to {high}; got {given!r}."
    both = {"min_guidance": 0, "max_guidance": 100}
    for given in (low, high, (low + high) / 3):
        assert getattr(VideoRequest(version, **{**both, name: given}), name) == given


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


@pytest.mark.parametrize("version", ["svd_tiny", "sv3d_p"])
def test_none_is_no_value(version: str) -> None:
    for name in ("version", *VideoRequest(version).fields()):
        with pytest.raises(UserError, match=f"^{name} must be .*; got None"):
            VideoRequest(**{"version": version, name: None})


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"elevation": 60}, "elevation does not belong to version 'svd_tiny', but to sv3d_p."),
        ({"version": "svd", "camera": "pan_left"}, "camera does not belong to version 'svd', but to svd_tiny."),
        ({"azimuths": [1]}, "azimuths does not belong to version 'svd_tiny', but to sv3d_p with orbit list."),
        ({"eta": 1}, "eta does not belong to sampler 'euler_edm', but to euler_ancestral, dpm_2_ancestral, dpmpp_"),
        ({"guider": "linear", "edge_perc": 0.2}, "edge_perc does not belong to guider 'linear', but to trapezoid."),
        ({"image_frame_ratio": 0.5}, "image_frame_ratio does not belong to fit 'crop', but to object."),
        ({"version": "sv3d_u", "motion_bucket": 1}, "motion_bucket does not belong to version 'sv3d_u', but to svd_"),
        ({"stepps": 3}, "stepps is not a setting of a video. Near it: steps"),
        ({"guider": "spatiotemporal", "num_views": 3}, "num_views must divide the number of frames, 14; got 3"),
        ({"guider": "triangle", "period": []}, "period must be one number or more; got none"),
        (
            {"version": "svd_xt_lcm", "steps": 41},
            "This schedule is of a model distilled on 40 sigmas; 41 ",
        ),
        ({"sigma_min": 3, "sigma_max": 3}, "sigma_max must exceed sigma_min; got 3.0 and 3.0."),
        ({"schedule": "ays", "sigma_max": 3}, "sigma_max does not belong to schedule 'ays', but to edm and consis"),
        ({"sampler": "restart", "restart_min": 2}, "restart_max must exceed restart_min; got 2.0 and 2.0."),
        (
            {"guider": "interval", "guidance_sigma_min": 9},
            "guidance_sigma_max must exceed guidance_sigma_min; got",
        ),
        ({"sigmas": [3, 2]}, "sigmas does not belong to schedule 'edm', but to custom."),
        ({"schedule": "custom", "sigmas": []}, "sigmas must be 1 to 1000 numbers, as in 80, 12.5, 0.3; got 0."),
        (
            {"schedule": "custom", "sigmas": [3, 3, 1]},
            "sigmas must fall from one to the next and stay above 0; number 2,",
        ),
        (
            {"schedule": "custom", "sigmas": [3, 0, 0]},
            "sigmas must fall from one to the next and stay above 0; number 2 ",
        ),
        ({"schedule": "custom", "sigmas": [3, -1]}, "sigmas must be numbers from 0 to 10000; number 2 is -1."),
        (
            {"schedule": "custom", "sigmas": [3, 1], "steps": 6},
            "steps must be 2, since sigmas has as many numbers; got 6.",
        ),
    ],
)
def test_what_is_not_taken_is_refused_and_who_takes_it_is_said(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        VideoRequest(**choices)
    assert str(caught.value).startswith(said)


def test_every_option_of_every_sampler_guider_and_fit_can_be_set() -> None:
    others = {
        "num_views": 7,
        "restart_min": 1.5,
        "sigma_min": 1.5,
        "guidance_sigma_min": 1.5,
    }  # as high as the other options allow
    for chooser, registry in {"sampler": SAMPLERS, "guider": GUIDERS, "schedule": SCHEDULES, "fit": FITS}.items():
        for name, choice in registry.items():
            for field in choice.options.values():
                high = (0.5,) if field.kind is tuple else others.get(field.name, field.high)
                high = list(field.choices())[-1] if field.choices else field.kind(high)
                chosen = {"max_guidance": 100, field.name: high} if field.name == "min_guidance" else {field.name: high}
                request = VideoRequest("svd", **{chooser: name}, **chosen)
                assert getattr(request, field.name) == high
                assert VideoRequest(**request.settings()) == request


def test_numbers_of_numpy_are_numbers() -> None:
    request = VideoRequest("svd", frames=np.int64(5), cond_aug=np.float32(0.5), width=np.uint8(64), seed=np.int32(7))
    assert request == VideoRequest("svd", frames=5, cond_aug=0.5, width=64, seed=7)
    assert json.dumps(request.settings())
    orbit = VideoRequest("sv3d_p", orbit="list", azimuths=np.linspace(20, 360, 21))
    assert orbit.azimuths[-1] == 360.0
    for wrong in (np.bool_(True), np.float64(5), np.array(5), np.uint8(0)):
        with pytest.raises(UserError, match="frames must be a whole number"):
            VideoRequest(frames=wrong)


def test_a_request_shows_how_to_make_it_and_can_be_copied() -> None:
    request = VideoRequest("svd", guider="triangle", period=[0.5, 0.1 + 0.2], cond_aug=1 / 3)
    for again in (eval(repr(request)), pickle.loads(pickle.dumps(request)), copy.deepcopy(request)):
        assert again == request
        assert hash(again) == hash(request)
    if sys.version_info >= (3, 13):
        assert copy.replace(request, seed=1) == request.replace(seed=1)
    named: dict[str, Any] = {"self": 1}
    for make in (VideoRequest, request.replace):
        with pytest.raises(UserError, match="self is not a setting of a video"):
            make(**named)


@pytest.mark.parametrize("name", all_fields())
def test_whatever_is_given_the_message_is_short(name: str) -> None:
    version = "sv3d_p" if name in ("orbit", "elevation", "elevations", "azimuths") else "svd_tiny"
    chosen = {
        field.name: taker
        for field in VideoRequest(version).fields().values()
        for taker, choice in (field.choices() if field.choices else {}).items()
        if name in {option.name for option in choice.options.values()}
    }
    for given in ("x" * 10**6, 10**5000, [[["y"] * 1000] * 1000] * 1000, {"z": "x" * 10**6}, [math.nan] * 10**5):
        with pytest.raises(UserError, match=f"^{name} must be ") as caught:
            VideoRequest(version, **{**chosen, name: given})
        assert len(str(caught.value)) < 600
    with pytest.raises(UserError) as caught:
        all_fields()[name].check(all_fields()[name].parse("9" * 5000))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "choices",
    [
        {"steps": 2, "sigma_min": 1e-4, "sigma_max": 1e4, "rho": 1},
        {"steps": 1000, "sigma_min": 9999, "sigma_max": 10000},
    ],
)
def test_sigmas_that_do_not_fall_are_refused_for_no_sampler_can_step_along_them(choices: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"sigmas of which some are the same in float32\. Take fewer steps"):
        VideoRequest("svd", **choices)
    for version in VERSIONS:
        for steps in (1, 2, 40 if version == "svd_xt_lcm" else 1000):
            assert VideoRequest(version, steps=steps).steps == steps


def test_a_list_of_sigmas_says_how_many_steps_there_are() -> None:
    own = VideoRequest("svd", steps=30).replace(schedule="custom", sigmas=[700, 54.5, 0.002, 0])
    assert (own.steps, own.sigmas, own.evaluations) == (3, (700.0, 54.5, 0.002), 3)
    assert own.choices() == {"schedule": "custom", "sigmas": own.sigmas}
    assert own.replace(sigmas=[9, 3]).steps == 2
    assert own.replace(schedule="ays") == VideoRequest("svd", schedule="ays")
    assert own == VideoRequest(**own.settings()) == eval(repr(own))
    for version in VERSIONS:  # starts as the version's own
        request = VideoRequest(version, schedule="custom")
        assert request.steps == VideoRequest(version).steps
        assert request.sigmas == pytest.approx(curves(VideoRequest(version))[0], rel=5e-4)


def test_a_recipe_of_before_schedules_means_what_it_did() -> None:
    for version in ("svd", "svd_xt_lcm"):
        settings = VideoRequest(version, sigma_max=300, rho=3, steps=5).settings()
        schedule = settings.pop("schedule")
        assert VideoRequest(**settings) == VideoRequest(version, schedule=schedule, sigma_max=300, rho=3, steps=5)
        assert schedule == ("consistency" if version == "svd_xt_lcm" else "edm")


def test_schedules_are_laid_beside_each_other() -> None:
    for own in ("edm", "custom", "ays"):
        drawn = schedule_curves(VideoRequest("svd", schedule=own))
        assert next(iter(drawn)) == own
        assert drawn.keys() == {own, "edm", "ays", "legacy_ddpm", "consistency"}
        assert {len(sigmas) for sigmas in drawn.values()} == {25}
    assert "consistency" not in schedule_curves(VideoRequest("svd", steps=41))


def test_a_choice_that_follows_a_default_follows_the_new_one() -> None:
    request = VideoRequest("svd", sampler="euler_ancestral", eta=0.5, s_noise=0.9, seed=3)
    other = request.replace(sampler="euler_edm", frames=10)
    assert (other.s_noise, other.decode_chunk, other.seed) == (0.9, 10, 3)
    assert "eta" not in other.options
    assert request.replace(version="svd_xt").frames == 25
    assert request.replace(version="svd_xt").replace(version="svd") == request
    assert request.replace() == request
    with pytest.raises(UserError, match="eta does not belong"):
        request.replace(sampler="euler_edm", eta=1)


def test_of_settings_from_elsewhere_what_fits_is_taken() -> None:
    request = VideoRequest.fitting("svd_tiny", {"elevation": 60, "steps": 4, "eta": 0.3})
    assert request == VideoRequest("svd_tiny", steps=4)
    with pytest.raises(UserError, match="steps must be a whole number"):
        VideoRequest.fitting("svd_tiny", {"steps": 0})


def test_texts_of_values_are_read_back_to_the_last_digit() -> None:
    values = {"cond_aug": 0.1 + 0.2, "rho": 7.123456789012345, "seed": 2**32 - 2, "sigma_max": 80.0, "fit": "pad"}
    values |= {"elevation": -12.3, "azimuths": (1.5, 1 / 3, 360.0)}
    for name, value in values.items():
        field = all_fields()[name]
        assert field.parse(field.text(value)) == value
    with pytest.raises(UserError, match=r"azimuths must be numbers with commas between.*got 'b'"):
        all_fields()["azimuths"].parse("1, b")
    with pytest.raises(UserError, match="frames must be a whole number; got 'many'"):
        all_fields()["frames"].parse("many")


class Halving(EulerEDMSampler):
    """A sampler with an option of its own."""

    title = "Halving"
    options: ClassVar = {"strength": Field("strength", float, "Strength", "How much.", 0, 2, default=0.5)}

    def __init__(self, strength: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.strength = strength


class Falling(LinearPredictionGuider):
    """A guider with an option of its own."""

    options: ClassVar = {
        **LinearPredictionGuider.options,
        "drop": Field("drop", int, "Drop", "How far.", 0, 9, default=3),
    }

    def __init__(self, drop: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop = drop


def test_a_sampler_and_a_guider_that_are_added_bring_their_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "halving", Halving)
    monkeypatch.setitem(GUIDERS, "falling", Falling)
    assert {"strength", "drop"} <= all_fields().keys()
    request = VideoRequest("svd", sampler="halving", guider="falling", strength=1.5, drop=4)
    sampler, guider = request.build_sampler(), request.build_guider()
    assert isinstance(sampler, Halving)
    assert isinstance(guider, Falling)
    assert (sampler.strength, guider.drop, guider.max_scale) == (1.5, 4, 2.5)
    assert VideoRequest(**json.loads(json.dumps(request.settings()))) == request
    assert VideoRequest("svd", sampler="halving").strength == 0.5
    with pytest.raises(UserError, match="strength does not belong to sampler 'euler_edm', but to halving"):
        VideoRequest("svd", strength=1)
    with pytest.raises(UserError, match="strength must be a number from 0 to 2; got 3"):
        VideoRequest("svd", sampler="halving", strength=3)


class Thirding(Halving):
    """Another's option has the same name, and other values."""

    options: ClassVar = {"strength": Field("strength", float, "Strength", "How much.", 0, 9, default=3.0)}


def test_two_that_are_added_may_call_their_options_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "halving", Halving)
    monkeypatch.setitem(SAMPLERS, "thirding", Thirding)
    for strength in (0.5, 3.0, 7.0):
        request = VideoRequest("svd", sampler="thirding", strength=strength)
        assert request.fields()["strength"] is Thirding.options["strength"]
        assert request.replace(seed=1).strength == strength
        assert request.choices().get("strength", 3.0) == strength


def test_progress_grows_from_nothing_to_all() -> None:
    course = [Progress("encode", i, 1) for i in range(2)]
    course += [Progress("sample", i, 5) for i in range(1, 6)]
    course += [Progress("decode", i, 3) for i in range(1, 4)]
    fractions = [progress.fraction for progress in course]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == pytest.approx(1)


def test_a_size_at_which_clips_fall_apart_is_noted() -> None:
    (note,) = VideoRequest("svd_tiny", width=64, height=160).notes
    assert note.startswith("At 64×160 SVD tiny's clips lose form and colour: give each side 96 pixels or more")
    for version, width, height in (("svd_tiny", 96, 320), ("svd_tiny", 448, 256), ("svd", 64, 64)):
        assert not VideoRequest(version, width=width, height=height).notes
