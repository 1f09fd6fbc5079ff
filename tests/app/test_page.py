"""The Create page's logic, run by Streamlit's own test runner; the worker draws frames without a model."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest

from app import jobs, upload
from app.create import result, session
from app.jobs import Job, Table, open_stored
from sgm import (
    ALL_VERSIONS,
    FAMILIES,
    VERSIONS,
    Clip,
    Progress,
    UserError,
    VideoRequest,
    embed_watermark,
    encode_video,
    fit_picture,
    open_picture,
    prepare_picture,
    read_frames,
    read_settings,
)
from tests.app.pages import LIMIT, address, clicked_meanwhile, ok, visited
from tests.small_model import official_layout, write_empty

ROOT = Path(__file__).resolve().parents[2]


class Stage:
    """The page's worker: holds after the first step until it may go on, then shows the picture, or fails."""

    def __init__(self) -> None:
        self.go_on, self.reached = Event(), Event()
        self.error: Exception | None = None

    def __call__(self, job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        steps = job.request.steps or 1
        for step in range(1, steps + 1):
            on_step(Progress("sample", step, steps))
            self.reached.set()
            assert self.go_on.wait(LIMIT)
        if self.error:
            raise self.error
        pixels = np.asarray(open_picture(job.picture).resize((64, 64)))  # encoding would be what takes the time
        return Clip(np.stack([pixels] * (job.request.frames or 1)), job.request.fps or 7, job.request.settings())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of svd_tiny and no others."""
    folder = tmp_path_factory.mktemp("tiny")
    shutil.copy(VERSIONS["svd_tiny"].checkpoint_path or "", folder)
    return folder


@pytest.fixture
def stage(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A fresh table; svd_tiny alone is installed."""
    places = [tmp_path / "checkpoints", tiny]
    places[0].mkdir()
    monkeypatch.setattr("sgm.versions.checkpoint_folders", lambda: places)
    runner = Stage()
    table = Table(tmp_path / "outputs", runner)
    monkeypatch.setattr(jobs, "_table", table)
    yield runner
    runner.go_on.set()
    table.close()


def opened(job: str | None = None, **address: Any) -> AppTest:
    page = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=LIMIT)
    page.query_params.update(address | ({"job": job} if job else {}))
    return ok(page.run())


def generate(page: AppTest) -> Any:
    return next((button for button in page.button if button.label == "Generate"), None)


def pressed(page: AppTest, label: str) -> AppTest:
    return next(button for button in page.button if button.label == label).click().run()


def labels(page: AppTest) -> set[str]:
    kinds = ("button", "selectbox", "slider", "select_slider", "number_input", "toggle")
    return {widget.label for kind in kinds for widget in getattr(page, kind)}


def said(page: AppTest) -> str:
    blocks = (page.caption, page.info, page.warning, page.error, page.get("html"))
    texts = [getattr(element, "value", None) or element.proto.body for elements in blocks for element in elements]
    told = [json.loads(component.proto.json) for component in page.get("bidi_component")]
    return "\n".join([*texts, *(some["text"] + some["more"] for some in told if "text" in some)])


def clips(page: AppTest) -> int:
    return len(page.get("video"))


def started(stage: Stage) -> tuple[AppTest, str]:
    """A page whose job stands at step 1."""
    page = opened()
    ok(page.button(key="sample_giraffe").click().run())
    ok(generate(page).click().run())
    assert stage.reached.wait(LIMIT)
    return page, job_of(page)


def stage_done(stage: Stage) -> str:
    """A finished job of svd_tiny."""
    stage.go_on.set()
    return jobs.table().submit(VideoRequest(), Image.new("RGB", (320, 192), "teal"), "lake.jpg").id


def job_of(page: AppTest) -> str:
    """The job that the page's address names."""
    value = page.query_params["job"]
    return value if isinstance(value, str) else value[0]


def ended(job_id: str) -> Job:
    job = jobs.table().wait(job_id, LIMIT)
    assert job is not None
    assert not job.active
    return job


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def photograph(width: int, height: int) -> bytes:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    file = io.BytesIO()
    Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_at_first_sight(stage: Stage) -> None:
    page = opened()
    assert generate(page).disabled
    assert "Choose a picture first." in said(page)
    assert "Your clip will play here" in said(page)
    assert {"Motion", "Frames a second", "Steps", "Seed", "Camera", "Sampler", "Frames"} <= labels(page)
    assert clips(page) == 0


def test_a_sample_becomes_a_clip(stage: Stage) -> None:
    page = opened()
    ok(page.button(key="sample_kitten").click().run())
    assert "Cropped 1024×576 to 1008×576 (7:4), scaled to 448×256." in said(page)
    assert "Choose a picture" not in said(page)
    ok(page.slider(key="motion_bucket").set_value(40).run())
    ok(page.slider(key="fps:svd_tiny").set_value(12).run())
    ok(page.slider(key="steps:svd_tiny").set_value(3).run())
    ok(page.number_input(key="seed").set_value(99).run())
    ok(page.number_input(key="frames:svd_tiny").set_value(5).run())
    ok(page.selectbox(key="camera").set_value("zoom_in").run())
    ok(page.selectbox(key="sampler:svd_tiny").set_value("heun_edm").run())
    assert "0.4 s of video" in said(page)
    ok(generate(page).click().run())
    assert stage.reached.wait(LIMIT)
    ok(page.run())
    assert "Step 1 of 3" in said(page)
    job_id = job_of(page)
    stage.go_on.set()
    job = ended(job_id)
    assert job.request == VideoRequest(
        motion_bucket=40, fps=12, steps=3, seed=99, frames=5, camera="zoom_in", sampler="heun_edm"
    )
    sample = open_picture(ROOT / "app" / "samples" / "kitten.jpg")
    assert same(open_picture(job.picture), sample)  # whole: the request says which part of it is used
    ok(page.run())
    assert clips(page) == 1
    downloads = [button.proto.label for button in page.get("download_button")]
    assert downloads == ["Download MP4", "GIF", "WebP", "PNG frames (zip)", "Last frame (PNG)"]
    assert "seed 99 · motion 40 · camera zoom in · 3 steps · Heun EDM · 5 frames at 12 fps · 448 × 256" in said(page)
    assert not generate(page).disabled
    chooser = page.selectbox(key=f"smoothing_{job_id}")
    assert chooser.options == ["As made · 12 fps", "Smoother · 24 fps", "Smoothest · 48 fps", "Slow motion · 12 fps"]
    ok(chooser.set_value("Slow motion").run())
    assert [button.proto.label for button in page.get("download_button")][:3] == ["Download MP4", "MP4", "GIF"]


def test_an_upload_and_its_frame(stage: Stage) -> None:
    page = opened()
    ok(page.button(key="size_320 × 192, quick").click().run())
    ok(page.file_uploader[0].set_value(("tall.png", photograph(400, 900), "image/png")).run())
    assert "Cropped 400×900 to 400×240 (5:3)" in said(page)
    assert "Position, left to right" not in labels(page)
    assert not page.success  # nothing is said of a picture without a watermark
    ok(page.select_slider(key="crop_y").set_value(0.0).run())
    assert page.query_params["crop_y"] in ("0", ["0"])
    ok(generate(page).click().run())
    stage.go_on.set()
    upper = ended(job_of(page))
    tall = open_picture(photograph(400, 900))
    assert upper.request == VideoRequest(width=320, height=192, crop_y=0)
    assert same(open_stored(upper.picture), tall)
    assert same(prepare_picture(open_stored(upper.picture), upper.request), fit_picture(tall, 320, 192, "crop", (0, 0)))
    assert upper.name == "tall.png"

    ok(page.run())
    ok(page.button_group(key="fit:svd_tiny").set_value("pad").run())
    assert "edges filled with a blurred copy" in said(page)
    assert "Position, top to bottom" not in labels(page)
    ok(page.select_slider(key="crop_x").set_value(1.0).run())
    ok(generate(page).click().run())
    padded = ended(job_of(page))
    assert (padded.request.fit, padded.request.crop_x) == ("pad", 1)
    again = opened(padded.id)  # the whole picture is there to be moved again
    assert again.select_slider(key="crop_x").value == 1
    assert f"Scaled 400×900 to {85}×192, edges filled with a blurred copy to 320×192." in said(again)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"Dear diary", "not a picture"),
        (b"", "empty"),
        (photograph(64, 64)[:100], "cut short"),
        (b"\x89PNG" + bytes(20 * 1024**2), "20 MB"),
    ],
    ids=["text", "empty", "truncated", "too large"],
)
def test_an_upload_that_is_no_picture(stage: Stage, content: bytes, sentence: str) -> None:
    page = opened()
    ok(page.file_uploader[0].set_value(("my_holi*day*.png", content, "image/png")).run())
    (error,) = page.error
    assert r"my\_holi\*day\*.png" in error.value  # as it is, not as Markdown
    assert sentence in error.value
    assert generate(page).disabled
    ok(page.button(key="sample_lake").click().run())  # and on with something else
    assert not page.error
    assert not generate(page).disabled
    ok(page.file_uploader[0].set_value(("again.png", content, "image/png")).run())
    assert page.error[0].value.endswith("lake.jpg stays chosen.")
    assert page.button(key="sample_lake").proto.type == "primary"
    assert not generate(page).disabled
    ok(page.file_uploader[0].set_value(("good.png", photograph(320, 192), "image/png")).run())
    ok(page.file_uploader[0].set_value(None).run())  # so browsers replace a file by another
    ok(page.file_uploader[0].set_value(("again.png", content, "image/png")).run())
    assert page.error[0].value.endswith("good.png stays chosen.")
    assert not generate(page).disabled


def test_an_upload_outlives_a_reload(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    page = opened()
    ok(page.file_uploader[0].set_value(("tall.png", photograph(400, 900), "image/png")).run())
    ok(page.slider(key="motion_bucket").set_value(60).run())
    again = opened(**page.query_params)
    assert "Cropped 400×900 to 400×700 (4:7)" in said(again)
    assert again.slider(key="motion_bucket").value == 60
    ok(generate(again).click().run())
    assert "upload" not in again.query_params  # the job has it
    stage.go_on.set()
    assert ended(job_of(again)).name == "tall.png"
    monkeypatch.setattr("app.upload.MOST_KEPT", 0)  # as after many others
    ok(page.file_uploader[0].set_value(("wide.png", photograph(900, 400), "image/png")).run())
    assert "upload" not in page.query_params
    assert "The picture of this address is gone." in opened(upload="0" * 16).error[0].value
    monkeypatch.setattr("app.upload.MOST_KEPT", 100)
    foreign = upload.keep(encode_video(np.zeros((2, 64, 64, 3), np.uint8), 7), "foreign.mp4")
    assert "last" not in opened(sample="city", ends="last", last=foreign).query_params  # no clip of ours is a picture


def test_a_very_small_picture_and_one_without_anything_in_it_are_told(stage: Stage) -> None:
    page = opened()
    ok(page.file_uploader[0].set_value(("icon.png", photograph(50, 30), "image/png")).run())
    assert "Very small picture" in said(page)
    assert "One colour" not in said(page)
    assert not generate(page).disabled
    file = io.BytesIO()
    Image.new("RGBA", (9, 9)).save(file, "PNG")
    ok(page.file_uploader[0].set_value(("clear.png", file.getvalue(), "image/png")).run())
    assert "One colour throughout" in said(page)


def test_widgets_do_not_disturb_a_running_job(stage: Stage) -> None:
    page, job_id = started(stage)
    ok(page.slider(key="motion_bucket").set_value(200).run())
    ok(page.button(key="sample_city").click().run())
    ok(page.selectbox(key="version").set_value("svd").run())
    assert job_of(page) == job_id
    stage.go_on.set()
    job = ended(job_id)
    assert job.request.motion_bucket == 127
    assert len(jobs.table().jobs()) == 1
    ok(page.run())
    assert clips(page) == 1


def test_a_link_reopens_a_running_job(stage: Stage) -> None:
    page = opened()
    ok(page.button(key="sample_giraffe").click().run())
    ok(page.slider(key="motion_bucket").set_value(60).run())
    ok(page.number_input(key="seed").set_value(5).run())
    ok(generate(page).click().run())
    job_id = job_of(page)
    assert stage.reached.wait(LIMIT)
    again = opened(job_id)
    assert "Step 1 of 6" in said(again)
    assert again.slider(key="motion_bucket").value == 60
    assert again.number_input(key="seed").value == 5
    assert "Cropped 1024×576 to 1008×576 (7:4), scaled to 448×256." in said(again)  # the job's own copy of the picture
    stage.go_on.set()
    first = ended(job_id)
    ok(again.run())
    assert clips(again) == 1
    ok(generate(again).click().run())
    second = ended(job_of(again))
    assert second.id != first.id
    assert second.request == first.request
    assert second.picture.read_bytes() == first.picture.read_bytes()


def test_several_jobs_from_one_page(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    page, first = started(stage)
    ok(generate(page).click().run())  # a second click on the same, as in a double click, makes none
    assert [job.id for job in jobs.table().jobs()] == [first]
    ok(page.slider(key="motion_bucket").set_value(200).run())
    ok(page.button(key="sample_city").click().run())
    ok(generate(page).click().run())
    second = next(job for job in jobs.table().jobs() if job.id != first)
    assert job_of(page) == first  # which is still shown
    assert " · 1 more to come" in said(page)
    assert any("city.jpg" in text.value and "motion 200" in text.value for text in page.markdown)
    again = opened(first)  # a reload has the same jobs
    assert again.button(key=f"take_out_{second.id}")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(session, "_browser", lambda: "another's")
        linked = opened(first)  # a link shows it alone
    assert "Step 1 of 6" in said(linked)
    assert f"take_out_{second.id}" not in {button.key for button in linked.button}
    stage.go_on.set()
    assert ended(second.id).request == VideoRequest(motion_bucket=200)
    ok(page.run())
    assert clips(page) == 1
    ok(page.button(key="ended").click().run())
    assert job_of(page) == second.id
    assert "motion 200" in said(page)
    assert "ended" not in {button.key for button in page.button}
    own = "browser-of-a-server-before"  # of which nothing is left but the jobs' records
    request, picture = VideoRequest(steps=1), Image.new("RGB", (9, 9))
    third, broken = (ended(jobs.table().submit(request, picture, name, f"{own}-a1").id) for name in ("a", "b.jpg"))
    jobs.table().close()
    record = broken.folder / "job.json"
    record.write_text(record.read_text("utf-8").replace('"state": "done"', '"state": "running"'), encoding="utf-8")
    monkeypatch.setattr(jobs, "_table", Table(broken.folder.parent, stage))
    assert "owner" not in opened(third.id).session_state
    monkeypatch.setattr(session, "_browser", lambda: own)
    again = opened(third.id)
    assert again.session_state["owner"] == third.owner
    assert again.button(key="ended").label == r"Not made: b.jpg"
    ok(again.button(key="ended").click().run())
    assert "The server was stopped before the clip was finished." in said(again)
    assert "ended" not in {button.key for button in opened(third.id).button}
    jobs.table().close()


def test_another_click_breaks_off_nothing_that_was_begun(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("submit", "new_take"):
        monkeypatch.setattr(Table, name, clicked_meanwhile(getattr(Table, name)))
    monkeypatch.setattr(session.picture, "open_job_picture", clicked_meanwhile(session.picture.open_job_picture))
    page, first = started(stage)
    ok(generate(page).click().run())  # the second of a slow double click
    assert [job.id for job in jobs.table().jobs()] == [first]
    stage.go_on.set()
    assert jobs.table().wait(first, LIMIT)
    take = job_of(pressed(ok(page.run()), "New take"))
    assert [job.id for job in jobs.table().jobs()] == [take, first]
    page = opened(first, steps=4)  # and a link brings all that it holds
    assert (page.slider(key="steps:svd_tiny").value, page.session_state["opened"].key) == (4, first)


def test_another_click_s_run_begins_right_after_undivided_work() -> None:
    """Or it would be lost where `st.rerun` comes next."""

    def show() -> None:
        import streamlit as st

        from app.undivided import undivided
        from tests.app.pages import clicked_meanwhile

        if "begun" not in st.session_state:
            with undivided():
                clicked_meanwhile(st.session_state.__setitem__)("begun", True)
                st.session_state["done"] = True
            st.session_state["broken off"] = False

    state = visited(show).session_state
    assert "done" in state
    assert "broken off" not in state


def test_what_a_click_has_set_can_be_set_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, to what the browser has sent before: not taken for what it showed before the click."""
    monkeypatch.setattr("app.stale._DRAWING", 60.0)

    def show() -> None:
        import streamlit as st

        st.toggle("On", key="on")
        st.button("Off", on_click=lambda: st.session_state.__setitem__("on", False))

    page = visited(show)
    for _ in range(2):
        ok(page.toggle(key="on").set_value(True).run())
        assert page.session_state["on"]
        ok(page.button[0].click().run())
        assert not page.session_state["on"]
    ok(page.button[0].click().run())
    assert not page.session_state["on"]


def test_what_waits_is_moved_edited_and_taken_out(stage: Stage) -> None:
    page, first = started(stage)
    for bucket in (60, 90):
        ok(page.slider(key="motion_bucket").set_value(bucket).run())
        ok(generate(page).click().run())
    third, second = (job.id for job in jobs.table().jobs() if job.id != first)
    assert page.button(key=f"earlier_{second}").disabled
    ok(page.button(key=f"earlier_{third}").click().run())
    assert [jobs.table().jobs_before(job_id) for job_id in (third, second)] == [1, 2]
    assert [button.key for button in page.button if (button.key or "").startswith("edit_")] == [
        f"edit_{third}",
        f"edit_{second}",
    ]
    ok(page.button(key=f"edit_{second}").click().run())
    assert page.slider(key="motion_bucket").value == 60
    ok(page.slider(key="motion_bucket").set_value(120).run())
    ok(next(button for button in page.button if button.label == "Change waiting clip").click().run())
    changed = jobs.table().get(second)
    assert changed is not None
    assert changed.request == VideoRequest(motion_bucket=120)
    assert len(jobs.table().jobs()) == 3  # no clip more
    assert generate(page)

    stranger = opened()
    assert not [button for button in stranger.button if (button.key or "").startswith(("edit_", "take_out_"))]
    ok(page.button(key=f"edit_{third}").click().run())
    ok(page.button(key="ending_At a last picture").click().run())
    uploader = next(one for one in page.file_uploader if one.label == "Last picture")
    ok(uploader.set_value(("end.png", photograph(400, 900), "image/png")).run())
    ok(next(button for button in page.button if button.label == "Change waiting clip").click().run())
    assert changed.folder.with_name(third).joinpath("last.png").exists()
    ok(page.button(key=f"edit_{third}").click().run())
    ok(next(button for button in page.button if button.label == "Take all out").click().run())
    assert [job.state for job in jobs.table().jobs()] == ["cancelled", "cancelled", "running"]
    assert generate(page)  # what was being edited waits no more


def test_the_picture_of_an_extended_clip_is_that_of_the_first(stage: Stage) -> None:
    first = ended(stage_done(stage))
    page = opened(first.id)
    ok(pressed(page, "Extend"))
    film = ended(job_of(page))
    Image.new("RGB", (400, 300), "red").save(first.picture)  # to tell it from the frame that was gone on from
    again = opened(film.id)
    assert "Cropped 400×300 to 400×229" in said(again)
    assert "Position, top to bottom" in labels(again)


def test_a_film_goes_on_to_a_picture(stage: Stage) -> None:
    first = ended(stage_done(stage))
    page = opened(first.id)
    for content, is_picture in ((b"Dear diary", False), (photograph(400, 900), True)):
        uploader = next(one for one in page.file_uploader if one.label == "Picture at the end")
        ok(uploader.set_value(("end.png", content, "image/png")).run())
        assert ("We can't read that file as a picture" in said(page)) != is_picture
        assert ("Cropped 400×900 to 400×229 (7:4)" in said(page)) == is_picture
    ok(pressed(page, "Extend to this picture"))
    film = ended(job_of(page))
    assert (film.parent, film.request) == (first.id, first.request.replace(sampler="bounded", ends="last"))
    assert same(open_stored(film.last), open_picture(photograph(400, 900)))
    assert page.button(key="ending_At a last picture").proto.type == "primary"  # and there it is
    assert not generate(page).disabled
    assert "ends at a last picture" in said(ok(opened(film.id)))


@pytest.mark.parametrize("job_id", ["20250101-000000-0123abcd", "../../etc", "no job"])
def test_a_link_to_nothing(stage: Stage, job_id: str) -> None:
    page = opened(job_id)
    assert "This clip is no longer on the server." in said(page)
    next(button for button in page.button if button.label == "Start anew").click().run()
    assert "no longer" not in said(ok(page))
    assert "job" not in page.query_params


def test_cancel(stage: Stage) -> None:
    page, job_id = started(stage)
    ok(page.run())
    ok(page.button(key="cancel").click().run())
    stage.go_on.set()
    assert ended(job_id).state == "cancelled"
    ok(page.run())
    assert "Stopped at step 1 of 6. Your settings are kept." in said(page)
    assert not generate(page).disabled


def test_a_failure_is_shown(stage: Stage) -> None:
    stage.error = UserError("The weights are damaged. Download them again.")
    stage.go_on.set()
    page, job_id = started(stage)
    ended(job_id)
    ok(page.run())
    assert page.error[0].value == "The weights are damaged. Download them again."


def test_two_sessions_wait_for_each_other(stage: Stage) -> None:
    _, first = started(stage)
    second, job_id = started(stage)
    assert job_id != first
    ok(second.run())
    assert "Number 1 in line" in said(second)
    ok(second.button(key="cancel").click().run())
    assert ended(job_id).state == "cancelled"
    stage.go_on.set()
    assert ended(first).state == "done"


def test_a_clip_that_cannot_be_stored(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = opened()
    ok(page.button(key="sample_giraffe").click().run())
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setattr(jobs.table()._store, "folder", tmp_path / "file")
    ok(generate(page).click().run())
    assert "SGM_OUTPUTS" in page.error[0].value.replace("\\", "")
    assert "job" not in page.query_params


def test_an_outputs_folder_that_another_app_owns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Table(tmp_path / "outputs", address="http://127.0.0.1:8599")
    monkeypatch.setenv("SGM_OUTPUTS", str(first.folder))
    monkeypatch.setattr(jobs, "_table", None)
    page = opened()
    said = page.error[0].value.replace("\\", "")
    assert "sgm app is already running at http://127.0.0.1:8599" in said
    assert "SGM_OUTPUTS" in said
    assert not labels(page)
    first.close()
    page = ok(page.run())  # a reload finds the folder free
    assert generate(page)
    jobs.table().close()


def test_missing_weights_say_how_to_get_them(stage: Stage, tmp_path: Path) -> None:
    page = opened()
    ok(page.button(key="sample_road").click().run())
    for name, version in VERSIONS.items():
        ok(page.selectbox(key="version").set_value(name).run())
        missing = version.repo is not None
        assert [code.value for code in page.code] == [f"sgm download {name}"] * missing
        assert generate(page).disabled == missing
        assert (f"(https://huggingface.co/{version.repo})" in said(page)) == missing
        assert (str(tmp_path / "checkpoints" / f"{name}.safetensors") in said(page).replace("\\", "")) == missing
        taken = {field.name for field in FAMILIES[version.family].fields}
        for label, field in (("Motion", "motion_bucket"), ("Elevation", "elevation"), ("Camera", "camera")):
            assert (label in labels(page)) == (field in taken)
        assert ("Motion" in labels(page)) == (not name.startswith("sv3d"))
        assert ("Elevation" in labels(page)) == (name == "sv3d_p")


def test_weights_that_arrive_are_looked_at(stage: Stage, tmp_path: Path) -> None:
    page = opened()
    ok(page.button(key="sample_road").click().run())
    ok(page.selectbox(key="version").set_value("svd_xt").run())
    path = tmp_path / "checkpoints" / "svd_xt.safetensors"
    path.touch()
    ok(pressed(page, "Check again"))
    assert "has weights that cannot be used" in page.warning[0].value
    assert "is empty" in said(page)
    assert generate(page).disabled
    write_empty(path, official_layout("svd"))
    ok(pressed(page, "Check again"))
    assert not page.warning
    assert f"{path}, 4.78 GB" in said(page).replace("\\", "")
    assert not generate(page).disabled


def test_the_best_model_that_is_ready_is_chosen_at_first(stage: Stage, tmp_path: Path) -> None:
    weights = tmp_path / "checkpoints"
    for name, layout, expected in (
        ("sv3d_u", "sv3d_u", "svd_tiny"),
        ("svd", "svd", "svd"),
        ("svd_xt", "svd", "svd_xt"),
    ):
        write_empty(weights / f"{name}.safetensors", official_layout(layout))
        assert opened().selectbox(key="version").value == expected
    (weights / "svd_xt_1_1.safetensors").touch()  # there, but spoilt
    page = opened()
    assert page.selectbox(key="version").value == "svd_xt"
    assert not page.query_params
    ok(page.selectbox(key="version").set_value("svd_tiny").run())
    assert page.query_params == {"version": "svd_tiny"}
    assert opened(ended(stage_done(stage)).id).selectbox(key="version").value == "svd_tiny"  # a job keeps its own


def test_all_models_are_listed(stage: Stage, tmp_path: Path) -> None:
    page = opened()
    ok(pressed(page, "All models"))
    assert [code.value for code in page.code] == [f"sgm download {name}" for name in ALL_VERSIONS if name != "svd_tiny"]
    listed = "\n".join(element.value for element in page.markdown)
    assert all(version.title in listed for version in ALL_VERSIONS.values())


def test_contradictions_are_told(stage: Stage) -> None:
    page = opened()
    ok(page.button(key="sample_rocket").click().run())
    ok(page.number_input(key="min_guidance:svd_tiny").set_value(4.0).run())
    assert "Lowest scale must not exceed Highest scale" in page.error[0].value  # as the fields are called here
    assert generate(page).disabled
    ok(page.selectbox(key="guider:svd_tiny").set_value("identity").run())
    assert not page.error


def test_a_new_seed_each_time(stage: Stage) -> None:
    stage.go_on.set()
    page = opened()
    ok(page.button(key="sample_rocket").click().run())
    ok(page.toggle(key="new_seed").set_value(True).run())
    seeds = set()
    for _ in range(3):
        ok(generate(page).click().run())
        seeds.add(ended(job_of(page)).request.seed)
        ok(page.run())
    assert len(seeds) == 3
    last = ended(job_of(page)).request.seed
    ok(pressed(page, f"Keep seed {last}"))
    assert page.number_input(key="seed").value == last
    assert not page.toggle(key="new_seed").value


def test_settings_beyond_the_sliders_are_kept_and_shown(stage: Stage) -> None:
    stage.go_on.set()
    odd = VideoRequest(motion_bucket=500, fps=60, steps=300, cond_aug=0, decode_chunk=3)
    job = ended(jobs.table().submit(odd, Image.new("RGB", (320, 192))).id)
    page = opened(job.id)
    assert clips(page) == 1
    assert "motion 500" in said(page)
    assert page.slider(key="motion_bucket").value == 500
    assert "Outside the usual range" in said(page)
    assert page.slider(key="fps:svd_tiny").value == 60
    assert page.number_input(key="decode_chunk:svd_tiny").value == 3
    assert page.number_input(key="cond_aug:svd_tiny").value == 0
    ok(page.slider(key="motion_bucket").set_value(100).run())
    assert page.slider(key="motion_bucket").max == 500  # as long as it may be wanted back
    ok(generate(page).click().run())
    assert ended(job_of(page)).request == odd.replace(motion_bucket=100)


def test_a_field_that_is_drawn_late_shows_its_value(stage: Stage) -> None:
    """A browser takes a field's own start value where a click came before it could draw what an earlier run told."""
    page = opened(version="sv3d_p", orbit="dynamic", steps="9", seed="5", guider="cfg")
    for version in ("sv3d_p", "svd_tiny"):
        ok(page.selectbox(key="version").set_value(version).run())
        for slider in page.slider:
            assert list(slider.proto.default) == [slider.value], slider.key
        for number in page.number_input:
            assert (number.proto.default if number.proto.HasField("default") else None) == number.value, number.key
        for choice in page.selectbox:
            assert choice.options[choice.proto.default] == choice.format_func(choice.value), choice.key


def test_presets_say_what_the_fields_say(stage: Stage) -> None:
    page = opened()
    assert page.button(key="preset_Balanced").proto.type == "primary"
    (about,) = (text.help for text in page.markdown if text.value == "Preset")
    assert "4 steps" in about
    ok(page.button(key="preset_Quick draft").click().run())
    assert page.slider(key="steps:svd_tiny").value == 4
    assert "Preset: custom" not in [text.value for text in page.markdown]
    ok(page.slider(key="motion_bucket").set_value(130).run())
    assert "Preset: custom" in [text.value for text in page.markdown]


def test_the_end_is_chosen_by_buttons_and_has_a_place_for_a_picture(stage: Stage) -> None:
    page = opened(sample="giraffe")
    assert page.button(key="ending_Anywhere").proto.type == "primary"
    ok(page.button(key="ending_Where it began").click().run())
    ok(generate(page).click().run())
    stage.go_on.set()
    loop = VideoRequest("svd_tiny", sampler="bounded")
    assert ended(job_of(page)).request == loop
    ok(page.button(key="ending_At a last picture").click().run())
    assert generate(page).disabled
    assert "Choose the last picture first" in said(page)
    for content in (b"Dear diary", photograph(400, 900)):
        uploader = next(one for one in page.file_uploader if one.label == "Last picture")
        ok(uploader.set_value(("last.png", content, "image/png")).run())
        assert ("We can't read that file as a picture" in said(page)) == (content == b"Dear diary")
    assert "Cropped 400×900 to 400×229 (7:4)" in said(page)
    ok(generate(page).click().run())
    job = ended(job_of(page))
    assert job.request == loop.replace(ends="last")
    assert same(open_stored(job.last), open_picture(photograph(400, 900)))
    again = opened(job.id)
    assert not generate(again).disabled
    ok(again.button(key="ending_Anywhere").click().run())
    chosen = {name: again.selectbox(key=f"{name}:svd_tiny").value for name in ("sampler", "guider")}
    assert chosen == {"sampler": "euler_edm", "guider": "linear"}
    assert not [button for button in opened(version="sv3d_u").button if str(button.key).startswith("ending_")]


def test_own_settings_are_kept_as_templates(stage: Stage) -> None:
    page = opened()
    ok(page.slider(key="motion_bucket").set_value(90).run())
    ok(page.number_input(key="seed").set_value(5).run())
    ok(page.text_input(key="template_name").set_value("Calm").run())
    ok(pressed(page, "Save"))
    assert "Calm is there already" in said(page)  # a preset
    ok(page.text_input(key="template_name").set_value("*Mine*").run())
    assert "cannot be a template's name" in said(pressed(page, "Save"))
    ok(page.text_input(key="template_name").set_value("Mine").run())
    ok(pressed(page, "Save"))
    assert page.button(key="template_Mine").proto.type == "primary"
    ok(page.slider(key="motion_bucket").set_value(30).run())
    ok(page.number_input(key="seed").set_value(6).run())
    other = opened()  # another session has them, too, and "Mine" is not what it shows
    assert other.button(key="template_Mine").proto.type == "secondary"
    ok(page.button(key="template_Mine").click().run())
    assert page.slider(key="motion_bucket").value == 90
    assert page.number_input(key="seed").value == 6
    content = b"version: svd_tiny\nmotion_bucket: 200\ncamera: pan_left\n"
    ok(page.file_uploader(key="template_upload_0").set_value(("Pan.yaml", content, "")).run())
    ok(page.button(key="template_Pan").click().run())
    assert (page.slider(key="motion_bucket").value, page.selectbox(key="camera").value) == (200, "pan_left")
    ok(
        page.file_uploader(key="template_upload_1")
        .set_value(("Bad.yaml", b"version: svd_tiny\nelevation: 5", ""))
        .run()
    )
    assert "elevation does not belong to version" in said(page)
    ok(page.button(key="template_delete_Mine").click().run())
    assert [button.key for button in page.button if (button.key or "").startswith("template_")] == [
        "template_Pan",
        "template_delete_Pan",
    ]


def test_sizes_are_chosen_by_buttons(stage: Stage) -> None:
    page = opened(version="svd_xt")
    assert page.button(key="size_1024 × 576").proto.type == "primary"
    ok(page.button(key="size_576 × 1024").click().run())
    assert [page.number_input(key=f"{side}:svd_xt").value for side in ("width", "height")] == [576, 1024]
    assert page.button(key="size_576 × 1024").proto.type == "primary"
    ok(page.number_input(key="width:svd_xt").set_value(640).run())
    assert "Size: custom" in [text.value for text in page.markdown]
    assert not [button for button in opened(version="sv3d_u").button if str(button.key).startswith("size_")]


def size_of(page: AppTest) -> tuple[Any, ...]:
    return tuple(page.number_input(key=f"{side}:svd_tiny").value for side in ("width", "height"))


def test_an_upright_picture_has_the_upright_size_unless_one_was_set(stage: Stage) -> None:
    page = opened()
    tall, wide = (("tall.png", photograph(400, 900), "image/png"), ("wide.png", photograph(900, 400), "image/png"))
    for picture, size in ((tall, (256, 448)), (wide, (448, 256)), (tall, (256, 448))):
        ok(page.file_uploader[0].set_value(picture).run())
        assert size_of(page) == size
    ok(page.button(key="size_448 × 256").click().run())  # the very size that pictures start with, but by hand
    ok(page.file_uploader[0].set_value(wide).run())
    ok(page.file_uploader[0].set_value(tall).run())
    assert size_of(page) == (448, 256)
    again = opened(**address(page))
    assert size_of(again) == (448, 256)
    ok(again.number_input(key="height:svd_tiny").set_value(192).run())
    ok(again.button(key="sample_lake").click().run())
    assert size_of(again) == (448, 192)


def test_a_clip_from_elsewhere_tells_its_motion_bucket(stage: Stage) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    wall = np.asarray(Image.fromarray(noise).resize((400, 192), Image.Resampling.BICUBIC))
    page = opened()
    ok(page.button(key="sample_lake").click().run())
    frames = np.stack([wall[:, 3 * i : 3 * i + 320] for i in range(6)])
    ok(page.file_uploader[0].set_value(("walk.mp4", encode_video(frames, 8), "video/mp4")).run())
    assert "holds no settings of ours" in page.error[0].value
    assert r"Watermark\: no\: " in page.error[0].value
    (told,) = (text.value for text in page.markdown if "motion bucket" in text.value)
    bucket = int(re.search(r"motion bucket (\d+)", told)[1])  # pyright: ignore[reportOptionalSubscript]
    assert bucket == pytest.approx(127 / 0.8 * 100 * 3 / 320, rel=0.1)
    ok(next(button for button in page.button if button.label == f"Use motion {bucket}").click().run())
    assert page.slider(key="motion_bucket").value == bucket
    ok(page.button(key="sample_road").click().run())
    assert not [text for text in page.markdown if "motion bucket" in text.value]
    ok(page.file_uploader[0].set_value(("cut.mp4", encode_video(frames, 8)[:600], "video/mp4")).run())
    assert page.error
    assert not [text for text in page.markdown if "motion bucket" in text.value]
    still = io.BytesIO()
    Image.fromarray(embed_watermark(frames[0])).save(still, "PNG")
    ok(page.file_uploader[0].set_value(("still.png", still.getvalue(), "image/png")).run())
    assert page.success[0].value == r"A model made still.png. Watermark\: marked\: 48 of 48 bits."


def test_loras_are_chosen_with_their_strength(stage: Stage, tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    said = {"modelspec.title": "Slow pans", "sgm.base": "svd_tiny", "sgm.steps": "200"}
    layer = "diffusion_model.middle_block.1.time_stack.0.attn1.to_q.lora_down.weight"
    save_file({layer: torch.zeros(2, 8)}, folder / "pan.safetensors", said)
    (folder / "cut.safetensors").write_bytes(b"no tensors")
    page = opened()
    names = page.multiselect(key="lora:names")
    assert names.options == ["cut", "Slow pans (pan)"]
    ok(names.select("pan").run())
    assert any("Trained on svd" in caption.value and "200 steps" in caption.value for caption in page.caption)
    ok(page.slider(key="lora:strength:pan").set_value(0.6).run())
    assert address(page)["lora"] == "pan:0.6"
    linked = opened(version="svd_tiny", lora="pan:-2.5 + lost:1")
    assert linked.slider(key="lora:strength:pan").value == -2.5
    assert any("lost is not among this computer's LoRAs" in warning.value for warning in linked.warning)
    ok(linked.multiselect(key="lora:names").unselect("lost").select("cut").run())
    assert address(linked)["lora"] == "pan:-2.5 + cut:1"
    assert any("cut.safetensors" in caption.value.replace("\\", "") for caption in linked.caption)


def test_an_address_holds_the_settings(stage: Stage) -> None:
    page = opened()
    ok(page.slider(key="motion_bucket").set_value(60).run())
    ok(page.selectbox(key="sampler:svd_tiny").set_value("euler_ancestral").run())
    ok(page.number_input(key="eta").set_value(0.5).run())
    ok(page.number_input(key="sigma_max:svd_tiny").set_value(40.0).run())
    address = {name: value if isinstance(value, str) else value[0] for name, value in page.query_params.items()}
    changed = {"motion_bucket": "60", "sampler": "euler_ancestral", "eta": "0.5", "sigma_max": "40"}
    assert address == changed | {"version": "svd_tiny"}  # named, for another may be the best one tomorrow
    again = opened(**address)
    assert again.slider(key="motion_bucket").value == 60
    ok(again.button(key="sample_road").click().run())
    ok(generate(again).click().run())
    stage.go_on.set()
    wanted = VideoRequest(motion_bucket=60, sampler="euler_ancestral", eta=0.5, sigma_max=40.0)
    assert ended(job_of(again)).request == wanted


def test_nonsense_in_an_address_is_told_and_ignored(stage: Stage) -> None:
    page = opened(steps="many", colour="blue", fps="9", max_guidance="3", min_guidance="2.9")
    assert "Some settings in the address were ignored." in page.error[0].value
    assert "steps must be a whole number; got 'many'" in page.error[0].value.replace("\\", "")
    assert page.slider(key="steps:svd_tiny").value == 6
    assert page.slider(key="fps:svd_tiny").value == 9
    assert page.number_input(key="min_guidance:svd_tiny").value == 2.9


def test_charts_follow_the_fields_before_anything_runs(stage: Stage) -> None:
    page = opened()
    assert not page.get("vega_lite_chart")  # folded away, they cost nothing
    page.session_state["research"] = True
    ok(page.run())

    def charts() -> list[dict[str, list[float]]]:
        """The lines of each chart, by name."""
        tables = [pyarrow.ipc.open_stream(chart.proto.data.data).read_all() for chart in page.get("vega_lite_chart")]
        lines = [zip(table["line"].to_pylist(), table["value"].to_pylist(), strict=True) for table in tables]
        return [{name: [v for _, v in group] for name, group in groupby(chart, lambda row: row[0])} for chart in lines]

    levels, scales = charts()
    assert min(json.loads(chart.proto.spec)["height"] for chart in page.get("vega_lite_chart")) > 200  # pixels
    sigmas = levels["EDM"]
    assert (len(sigmas), sigmas[0], sigmas[-1]) == (6, pytest.approx(80, rel=1e-4), pytest.approx(0.002))
    assert (levels["Align Your Steps"][0], len(levels["Consistency"]), "List of your own" in levels) == (700, 6, False)
    assert scales == {"": [1.0] * 14}

    def draw() -> None:
        page.session_state["research"] = True  # which Streamlit 1.65's test runner, unlike a browser, forgets
        ok(page.run())

    page.slider(key="steps:svd_tiny").set_value(5)
    page.number_input(key="sigma_max:svd_tiny").set_value(50.0)
    page.number_input(key="max_guidance:svd_tiny").set_value(3.0)
    draw()
    levels, scales = charts()
    assert (len(levels["EDM"]), levels["EDM"][0]) == (5, pytest.approx(50, rel=1e-4))
    assert (scales[""][0], scales[""][-1]) == (1.0, 3.0)

    page.selectbox(key="guider:svd_tiny").set_value("interval")
    draw()
    assert charts()[2][""] == [1.0, 1.0, 3.0, 1.0, 1.0]  # at 50, 11.3, 1.7, 0.13 and 0.002
    page.selectbox(key="schedule:svd_tiny").set_value("ays")
    draw()
    assert "This schedule starts from sigma 700, SVD tiny's own from 80," in said(page)
    page.selectbox(key="schedule:svd_tiny").set_value("custom")
    draw()
    sigmas = page.text_input(key="sigmas:svd_tiny")
    assert sigmas.value == "80, 24.41, 5.839, 0.9654, 0.08509, 0.002"
    sigmas.set_value("80 9 1 0.1")
    draw()
    steps = page.slider(key="steps:svd_tiny")
    assert (steps.value, steps.disabled, charts()[0]["List of your own"]) == (4, True, [80, 9, 1, 0.1])
    assert {len(line) for line in charts()[0].values()} == {4}
    assert "steps" not in page.query_params
    page.text_input(key="sigmas:svd_tiny").set_value("80 90")
    draw()
    assert "sigmas must fall from one to the next and stay above 0; number 2, 90, follows 80." in page.error[0].value
    assert jobs.table().jobs() == []


def test_only_what_matters_for_a_sampler_is_asked(stage: Stage) -> None:
    page = opened()
    for sampler, own in (("euler_edm", "Churn"), ("euler_ancestral", "Eta"), ("linear_multistep", "Order")):
        ok(page.selectbox(key="sampler:svd_tiny").set_value(sampler).run())
        assert {"Churn", "Eta", "Order"} & labels(page) == {own}


@pytest.mark.skipif(sys.platform == "win32", reason="limits on a file's size are POSIX")
def test_a_full_disk_is_told_and_the_clip_can_be_downloaded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    page, job_id = started(stage)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # no file may grow beyond this
    try:
        stage.go_on.set()
        job = ended(job_id)
        ok(page.run())
        ok(pressed(page, "Save again"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not job.clip.exists()
    assert [toast.value for toast in page.toast] == ["There is still no room."]
    assert "there was no room to save it: download it now" in page.warning[0].value.replace("\\", "")
    assert clips(page) == 1
    assert read_settings(job.unsaved) == job.settings
    assert len(read_frames(job.unsaved)[0]) == 14
    ok(pressed(page, "Save again"))
    assert not page.warning
    assert "Save again" not in labels(page)
    assert clips(page) == 1
    assert read_settings(job.clip) == job.settings


def test_a_thousand_clips_open_without_a_look_into_each(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = jobs.table().folder
    first = ended(stage_done(stage))
    for number in range(999):
        place = folder / f"20250101-{number:06}-0123abcd"
        place.mkdir()
        for path in first.folder.iterdir():
            os.link(path, place / path.name)
    other = json.loads((first.folder / "job.json").read_text()) | {"request": VideoRequest("svd_xt").settings()}
    for place in sorted(folder.glob("20250101-*"))[:3]:
        (place / "job.json").unlink()
        (place / "job.json").write_text(json.dumps(other))
    jobs.table().close()
    start = time.process_time()
    for _ in range(20):
        read_frames(first.clip)
    looks = (time.process_time() - start) * 1000 / 20  # into each clip: some 5 s, where listing them takes one
    start = time.process_time()
    table = Table(folder, stage)
    assert len(table.jobs()) == 1000
    assert time.process_time() - start < looks
    monkeypatch.setattr(jobs, "_table", table)
    page = AppTest.from_function(show_history, default_timeout=LIMIT)
    start = time.process_time()
    ok(page.run())
    assert time.process_time() - start < looks
    assert "Page 1 of 84 · 1000 clips" in said(page)
    assert sum(button.label.startswith("Open lake.jpg, ") for button in page.button) == 12
    ok(next(button for button in page.button if button.label == "Older").click().run())
    assert "Page 2 of 84" in said(page)
    ok(page.text_input(key="history_text").set_value("road").run())
    assert "No clip fits." in said(page)
    ok(page.text_input(key="history_text").set_value("").run())
    ok(page.selectbox(key="history_version").set_value("svd_xt").run())
    assert "Page 1 of 1 · 3 clips" in said(page)


def show_history() -> None:
    from app import history

    history.show_page()


def test_what_runs_is_what_was_imported(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that were read anew would meet modules of an older release after an update under a running server."""
    page = opened()
    monkeypatch.setattr(result, "show_result", lambda job: result.st.info("as imported"))
    assert "as imported" in said(ok(page.run()))


def test_the_samples_are_small_and_credited() -> None:
    folder = ROOT / "app" / "samples"
    pictures = sorted(folder.glob("*.jpg"))
    assert 3 <= len(pictures) <= 6
    assert sum(path.stat().st_size for path in pictures) < 900_000
    credited = re.findall(r"^\| `(\S+)` \| .+ \| (?:CC|Public)", (folder / "README.md").read_text("utf-8"), re.M)
    assert sorted(credited) == [path.name for path in pictures]
