"""The page and the one table of fields: what stands in the table is drawn, kept to the last digit, linked and run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest
from torch import Tensor

from app import jobs
from app.link import address_of, request_from
from sgm import (
    FAMILIES,
    GUIDERS,
    SAMPLERS,
    SCHEDULES,
    VERSIONS,
    Field,
    UserError,
    VideoRequest,
    encode_video,
    read_settings,
)
from sgm.diffusion.guidance import Denoise, Guider
from sgm.diffusion.sampling import EulerEDMSampler
from tests.app.test_page import (
    LIMIT,
    ROOT,
    Stage,
    ended,
    generate,
    job_of,
    ok,
    photograph,
    said,
    stage,
    stage_done,
    tiny,
)

__all__ = ["stage", "tiny"]  # fixtures


class MySampler(EulerEDMSampler):
    """One that is added while the program runs."""

    title = "My own"
    options: ClassVar[Mapping[str, Field]] = {
        "strength": Field("strength", float, "Strength of mine", "How strong.", 0, 2, 0.5)
    }

    def __init__(self, *args: Any, strength: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.strength = strength

    def step(self, denoise: Denoise, x: Tensor, sigmas: Tensor, *args: Any) -> Tensor:
        for _ in range(2):
            denoise(x, sigmas[0])
        return super().step(denoise, x, sigmas, *args)


class MyGuider(Guider):
    """Another that is added while the program runs."""

    title = "My waves"
    options: ClassVar[Mapping[str, Field]] = {
        "waves": Field("waves", int, "Number of waves", "How many.", 1, 9, 2, step=1)
    }

    @classmethod
    def of(cls, num_frames: int, **options: Any) -> MyGuider:
        return cls(num_frames, **options)

    def __init__(self, num_frames: int, waves: int) -> None:
        self.num_frames, self.waves = num_frames, waves

    def scales(self) -> Tensor:
        return 2 + torch.sin(torch.linspace(0, self.waves * 2 * torch.pi, self.num_frames))


def linked(address: Mapping[str, str]) -> AppTest:
    page = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=LIMIT)
    page.query_params.update(address)
    return ok(page.run())


def address(page: AppTest) -> dict[str, str]:
    """The page's query parameters, without that of an upload."""
    given = {name: value if isinstance(value, str) else value[0] for name, value in page.query_params.items()}
    return {name: value for name, value in given.items() if name != "upload"}


def dropped(page: AppTest, settings: Mapping[str, Any], name: str = "clip.mp4") -> AppTest:
    clip = encode_video(np.zeros((2, 64, 64, 3), np.uint8), 7, dict(settings))
    return ok(page.file_uploader[0].set_value((name, clip, "video/mp4")).run())


def run(page: AppTest, stage: Stage) -> jobs.Job:
    stage.go_on.set()
    ok(page.button(key="sample_lake").click().run())
    ok(generate(page).click().run())
    return ended(job_of(page))


def test_a_sampler_added_at_run_time_is_on_the_page(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ended(stage_done(stage))
    monkeypatch.setitem(SAMPLERS, "mine", MySampler)
    page = linked({"version": "svd_tiny"})
    sampler = page.selectbox(key="sampler:svd_tiny")
    assert "My own" in sampler.options
    assert "Strength of mine" not in [number.label for number in page.number_input]
    ok(sampler.set_value("mine").run())
    strength = page.number_input(key="strength")
    assert (strength.label, strength.value, strength.min, strength.max) == ("Strength of mine", 0.5, 0, 2)
    assert "Churn" not in [number.label for number in page.number_input]
    ok(strength.set_value(1.25).run())
    assert address(page) == {"version": "svd_tiny", "sampler": "mine", "strength": "1.25"}

    wanted = VideoRequest(sampler="mine", strength=1.25)
    others = sum(seconds for phase, seconds in before.phases.items() if phase not in ("load", "sample"))
    assert jobs.table().seconds_for(wanted) == pytest.approx(others + 3 * before.phases["sample"])
    job = run(page, stage)
    assert job.request == wanted
    assert job.request.build_sampler().strength == 1.25  # pyright: ignore
    assert (read_settings(job.clip) or {})["strength"] == 1.25
    ok(page.run())
    assert " · My own · " in said(page)
    assert dropped(linked({}), job.settings).number_input(key="strength").value == 1.25


def test_steps_and_schedule_follow_the_speed_until_they_are_set(stage: Stage) -> None:
    page = linked({"version": "svd_xt"})
    schedule, speed = page.selectbox(key="schedule:svd_xt"), page.selectbox(key="speed")
    ok(speed.set_value("ays_cached").run())
    assert address(page) == {"version": "svd_xt", "speed": "ays_cached"}
    assert (page.slider(key="steps:svd_xt").value, schedule.value) == (10, "ays")
    ok(page.slider(key="steps:svd_xt").set_value(20).run())
    ok(speed.set_value("exact").run())
    assert address(page) == {"version": "svd_xt", "steps": "20"}
    again = linked({"version": "svd_xt", "speed": "ays", "steps": "30"})
    assert address(again) == {"version": "svd_xt", "speed": "ays", "steps": "30"}


def test_a_sampler_with_another_s_title_can_be_told_apart(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "mine", type("Mine", (EulerEDMSampler,), {}))
    page = linked({"version": "svd_tiny", "sampler": "mine"})
    sampler = page.selectbox(key="sampler:svd_tiny")
    assert {"Euler EDM (euler_edm)", "Euler EDM (mine)"} <= set(sampler.options)
    assert run(page, stage).request.sampler == "mine"


def test_a_guider_added_at_run_time_is_on_the_page(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GUIDERS, "waves", MyGuider)
    page = linked({"version": "svd_tiny"})
    ok(page.selectbox(key="guider:svd_tiny").set_value("waves").run())
    assert "Lowest scale" not in [number.label for number in page.number_input]
    waves = page.number_input(key="waves")
    assert (waves.label, waves.value, waves.max) == ("Number of waves", 2, 9)
    ok(waves.set_value(4).run())
    assert address(page) == {"version": "svd_tiny", "guider": "waves", "waves": "4"}
    job = run(page, stage)
    assert job.request == VideoRequest(guider="waves", waves=4)
    assert len(job.request.build_guider().scales()) == job.request.frames
    assert (read_settings(job.clip) or {})["waves"] == 4


@pytest.mark.parametrize("version", ["svd_tiny", "svd", "sv3d_u", "sv3d_p"])
def test_every_field_that_a_request_takes_is_drawn(stage: Stage, version: str) -> None:
    page = linked({"version": version})
    ok(page.file_uploader[0].set_value(("wide.png", photograph(900, 400), "image/png")).run())

    def drawn() -> set[str]:
        kinds = ("selectbox", "slider", "select_slider", "number_input", "text_area", "text_input", "button_group")
        kinds += ("multiselect",)
        return {widget.key.partition(":")[0] for kind in kinds for widget in getattr(page, kind) if widget.key}

    def taken(**choices: Any) -> set[str]:
        # The picture is wider than all versions, so that it cannot be moved up and down.
        return set(VideoRequest(version, **choices).fields()) - {"crop_y"}

    assert drawn() - {"version", "template_name"} == taken()
    chosen = {}
    bounded = FAMILIES[VERSIONS[version].family].bounded
    samplers = {name: sampler for name, sampler in SAMPLERS.items() if bounded or not sampler.bounded}
    for chooser, choices in {"sampler": samplers, "guider": GUIDERS, "schedule": SCHEDULES}.items():
        kinds = {tuple(choice.options): name for name, choice in reversed(choices.items())}  # the first with the same
        for name in kinds.values() if version in ("svd_tiny", "sv3d_p") else []:
            chosen[chooser] = name
            ok(page.selectbox(key=f"{chooser}:{version}").set_value(name).run())
            assert drawn() - {"version", "template_name"} == taken(**chosen)


def test_a_link_beyond_the_usual_ranges_is_kept_as_it_is(stage: Stage) -> None:
    given = {"version": "svd_tiny", "steps": "500", "fps": "60", "max_guidance": "50", "frames": "80"}
    page = linked(given)
    assert page.slider(key="steps:svd_tiny").value == 500
    assert page.slider(key="fps:svd_tiny").value == 60
    assert page.number_input(key="max_guidance:svd_tiny").value == 50
    assert page.number_input(key="frames:svd_tiny").value == 80
    assert page.number_input(key="decode_chunk:svd_tiny").value is None
    assert "Outside the usual range, 5 to 30." in said(page)
    assert not page.error
    assert address(page) == given
    ok(page.number_input(key="seed").set_value(24).run())
    assert address(page) == given | {"seed": "24"}
    job = run(page, stage)
    assert job.request == VideoRequest(steps=500, fps=60, max_guidance=50, frames=80, seed=24)
    again = linked({"job": job.id})
    assert [again.slider(key=f"{name}:svd_tiny").value for name in ("steps", "fps")] == [500, 60]
    assert address(again) == {"job": job.id}


def test_numbers_are_kept_to_the_last_digit(stage: Stage) -> None:
    given = {"rho": "7.123456789", "cond_aug": "0.0123456789012", "sigma_min": "0.0030000000000000005", "crop_x": "0.3"}
    page = linked(given | {"version": "svd_tiny"})
    assert page.number_input(key="rho:svd_tiny").value == 7.123456789
    ok(page.slider(key="motion_bucket").set_value(60).run())
    assert address(page) == given | {"version": "svd_tiny", "motion_bucket": "60"}
    job = run(page, stage)
    assert page.select_slider(key="crop_x").value == 0.3
    numbers = {name: float(value) for name, value in given.items()}
    assert job.request == VideoRequest("svd_tiny", motion_bucket=60, **numbers)
    mark = {"sgm": {"format": 1, "dtype": "float32"}}
    fresh = dropped(linked({}), job.settings | mark)
    assert address(fresh) == given | {"version": "svd_tiny", "motion_bucket": "60"}

    orbit = {"version": "sv3d_p", "elevation": "12.345678", "image_frame_ratio": "0.8765432101"}
    page = linked(orbit)
    ok(page.number_input(key="seed").set_value(5).run())
    assert page.slider(key="elevation").value == 12.345678
    assert address(page) == orbit | {"seed": "5"}


def test_the_whole_range_of_the_sliders(stage: Stage) -> None:
    page = linked({"version": "svd_tiny"})
    motion = page.slider(key="motion_bucket")
    assert (motion.min, motion.max) == (1, 255)
    ok(page.toggle(key="whole_ranges").set_value(True).run())
    motion = page.slider(key="motion_bucket")
    assert (motion.min, motion.max) == (0, 511)
    ok(motion.set_value(400).run())
    ok(page.toggle(key="whole_ranges").set_value(False).run())
    assert page.slider(key="motion_bucket").value == 400
    assert address(page) == {"version": "svd_tiny", "motion_bucket": "400"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"version": "svd_tiny", "elevation": "60"}, "elevation does not belong to version 'svd_tiny', but to sv3d_p."),
        ({"version": "svd_tiny", "order": "3"}, "order does not belong to sampler 'euler_edm'"),
        ({"version": "svd_tiny", "fps": "1000"}, "fps must be a whole number from 1 to 120; got 1000."),
        ({"version": "svd_tiny", "camera": "sideways"}, "camera must be one of auto, pan_left"),
        ({"version": "svd_huge"}, "version must be one of svd_tiny"),
    ],
)
def test_what_a_link_cannot_ask_for_is_said(stage: Stage, given: dict[str, str], sentence: str) -> None:
    page = linked(given)
    (error,) = page.error
    assert error.value.startswith("The settings in the address were ignored.")
    assert sentence in error.value.replace("\\", "")


def test_all_frames_are_decoded_at_once_where_nothing_else_is_said(stage: Stage) -> None:
    page = linked({"version": "svd_tiny", "decode_chunk": "14"})
    chunk = page.number_input(key="decode_chunk:svd_tiny")
    assert (chunk.value, chunk.placeholder) == (None, "All frames")
    assert address(page) == {}
    ok(page.number_input(key="frames:svd_tiny").set_value(5).run())
    assert run(page, stage).request.decode_chunk == 5
    ok(page.number_input(key="decode_chunk:svd_tiny").set_value(2).run())
    assert run(page, stage).request.decode_chunk == 2
    assert not page.number_input(key="decode_chunk:svd_tiny").proto.HasField("default")  # so that it can be emptied
    assert linked({"decode_chunk": "200"}).number_input(key="decode_chunk:svd_tiny").value == 200


def test_only_our_clips_bring_settings(stage: Stage) -> None:
    page = dropped(linked({}), {"prompt": "a cat", "seed": 5})
    assert "clip.mp4 holds no settings of ours: only clips that were made here do." in page.error[0].value.replace(
        "\\", ""
    )
    assert page.number_input(key="seed").value == 23
    earlier = VideoRequest(seed=5, steps=3).settings() | {"elevation": 10.0, "order": 4}  # fields of all versions
    page = dropped(linked({}), earlier)
    assert "Settings of clip.mp4 restored." in page.success[0].value.replace("\\", "")
    assert page.number_input(key="seed").value == 5
    page = dropped(linked({}), VideoRequest().settings() | {"sgm": {"format": 99}})
    assert "update sgm-video" in page.error[0].value.replace("\\", "")


def test_a_dropped_clip_leaves_nothing_of_what_was_set_before(stage: Stage) -> None:
    page = linked({"version": "svd_tiny", "sampler": "linear_multistep", "order": "7", "crop_x": "0"})
    dropped(page, VideoRequest(sampler="lcm").settings())
    ok(page.selectbox(key="sampler:svd_tiny").set_value("linear_multistep").run())
    assert page.number_input(key="order").value == 4
    assert address(page) == {"version": "svd_tiny", "sampler": "linear_multistep"}


def test_the_recipe_stands_beside_the_link(stage: Stage) -> None:
    page = linked({"version": "svd_tiny", "motion_bucket": "60", "sampler": "heun_edm", "crop_x": "0.25"})
    job = run(page, stage)
    ok(page.run())
    link, *recipes = [code.value for code in page.code]
    assert link.endswith(f"?job={job.id}")
    assert [tab.label for tab in page.tabs] == ["YAML", "Command line", "Python"]
    assert len(recipes) == 3
    yaml, command, python = recipes
    assert "crop_x: 0.25" in yaml
    assert command.startswith("sgm sample PICTURE --version svd_tiny --seed 23 ")
    assert "--motion-bucket 60" in command
    assert "sampler='heun_edm'" in python


def test_what_ran_is_said_for_every_family(stage: Stage) -> None:
    stage.go_on.set()
    for version, expected in (
        ("svd_tiny", "SVD tiny · seed 23 · motion 127 · camera surprise me · 6 steps · Euler EDM · 14 frames at 7 fps"),
        ("svd", "SVD · seed 23 · motion 127 · 25 steps"),
        ("sv3d_u", "SV3D, orbit at eye level · seed 23 · 50 steps"),
        ("sv3d_p", "SV3D, chosen elevation · seed 23 · orbit one elevation · elevation 10° · 50 steps"),
    ):
        request = VideoRequest(version)
        assert VERSIONS[version].title in expected
        job = ended(jobs.table().submit(request, Image.new("RGB", (64, 64))).id)
        assert f"What ran: {expected}" in said(linked({"job": job.id}))


BASES = (
    VideoRequest(),
    VideoRequest(frames=5, decode_chunk=2, crop_x=0.1),
    VideoRequest(sampler="linear_multistep", order=2, steps=9),
    VideoRequest("svd", guider="triangle", period=(0.5, 0.25), rho=10 / 3),
    VideoRequest("svd", schedule="custom", sigmas=(700, 10 / 3, 0.1), steps=3),
    VideoRequest("sv3d_p", frames=3, orbit="list", azimuths=(90, 180.5, 360)),
    VideoRequest("sv3d_p", elevation=-12.345678, fit="crop", crop_y=0.7),
)


@pytest.mark.parametrize("base", [None, *BASES], ids=lambda base: base and f"{base.version} {base.choices()}")
@pytest.mark.parametrize("request_", [*BASES, VideoRequest(frames=5, decode_chunk=5, s_churn=0.1)])
def test_an_address_makes_the_request_again(request_: VideoRequest, base: VideoRequest | None) -> None:
    made = address_of(request_, base)
    assert request_from(made, base) == request_
    assert all(isinstance(value, str) for value in made.values())
    if base == request_:
        assert made == {}


def test_other_parameters_of_an_address_are_not_ours(stage: Stage) -> None:
    assert request_from({"job": "1", "utm_source": "mail", "version": "svd"}) == VideoRequest("svd")
    with pytest.raises(UserError, match="seed must be a whole number; got 'x'"):
        request_from({"seed": "x"})


def test_links_need_no_streamlit(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, app.link; assert 'streamlit' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
