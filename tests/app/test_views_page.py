"""The page for SV4D: a clip's object cut out and shown, its views chosen, made by a small model, and watched."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from app import jobs
from app.api import application
from app.jobs import Job, Table, stored_input
from app.jobs.record import ViewsClip
from app.jobs.runner import EngineRunner
from sgm import (
    Progress,
    UserError,
    VideoRequest,
    ViewsRequest,
    encode_video,
    generate_views,
    is_marked,
    load_engine,
    read_frames,
    read_recipe,
    request_of,
    workers_on,
)
from tests.app.pages import visited
from tests.app.test_page import ROOT, ended, generate, job_of, ok, said
from tests.test_views import CLEAR, SV4D2, drawn, put

__all__ = ["put"]  # a fixture

SMALL = {"version": "sv4d2", "width": "64", "height": "64", "frames": "5", "steps": "2"}
AZIMUTHS = "10, 100, 70, 190, 280"


class Gated(EngineRunner):
    """A runner that holds at the step at which it is told to."""

    hold_at = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.reached, self.go_on = Event(), Event()

    def __call__(self, job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Any:
        def hold(progress: Progress) -> None:
            on_step(progress)
            if progress.phase == "sample" and progress.step == self.hold_at:
                self.reached.set()
                assert self.go_on.wait(60)

        return super().__call__(job, hold, check)


@pytest.fixture
def runner(put: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gated]:
    """A table that runs a small sv4d2."""
    put("sv4d2", "sv4d2_small", **SV4D2)
    runner = Gated(workers_on([torch.device("cpu")])[0])
    table = Table(tmp_path / "outputs", runner)
    monkeypatch.setattr(jobs, "_table", table)
    yield runner
    runner.go_on.set()
    table.close()


def history() -> None:
    from app.history import show_page

    show_page()


def opened(**settings: str) -> AppTest:
    page = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60)
    page.query_params.update(SMALL | settings)
    return ok(page.run())


def encoded(frames: list[Image.Image], kind: str = "webp") -> bytes:
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], lossless=True)
    return file.getvalue()


def dropped(page: AppTest, frames: list[Image.Image], name: str = "walk.webp") -> AppTest:
    return uploaded(page, [(name, encoded(frames, Path(name).suffix[1:]), "image/webp")])


def uploaded(page: AppTest, files: list[tuple[str, bytes, str]]) -> AppTest:
    return ok(page.file_uploader[0].set_value(files).run())


def test_a_clip_s_views_are_chosen_made_watched_and_opened_again(runner: Gated, tmp_path: Path) -> None:
    weights = tmp_path / "sv4d2.safetensors"
    weights.rename(tmp_path / "elsewhere")
    page = opened()
    assert "SV4D 2.0, 4 views has no weights on this computer." in page.warning[0].value.replace("*", "")
    assert page.code[0].value == "sgm download sv4d2"
    assert "Stability AI Community Licence" in said(page).replace("\\", "")
    (tmp_path / "elsewhere").rename(weights)
    clip = drawn(7, background=CLEAR)
    dropped(page, clip)
    assert "The model sees exactly this: the object on white, 64×64." in said(page)
    assert "walk.webp has 7 frames: the first 5 are taken." in said(page).replace("\\", "")
    assert len(page.get("video")) == 1
    ok(page.text_area(key="azimuths:sv4d2").set_value("1, 2").run())
    assert "azimuths must be 5 numbers, one a view, the first of them the clip's own; got 2" in page.error[0].value
    assert generate(page).disabled
    ok(page.text_area(key="azimuths:sv4d2").set_value(AZIMUTHS).run())
    assert any("60°, 90°, 180°, 270°" in image.proto.imgs[0].alt for image in page.get("image"))
    assert "Generate will run" not in said(page)
    assert "4 views, 0.5 s of video" in said(page)

    runner.hold_at = 3
    ok(generate(page).click().run())
    assert runner.reached.wait(60)
    told = next(
        json.loads(part.proto.json) for part in ok(page.run()).get("bidi_component") if '"text"' in part.proto.json
    )
    assert told["text"].startswith("Window 2 of 2, step 1 of 2")
    runner.go_on.set()
    job = ended(job_of(page))
    assert job.state == "done", job.message
    request = ViewsRequest("sv4d2", frames=5, steps=2, azimuths=[10, 100, 70, 190, 280], width=64, height=64)
    assert job.request == request
    views = generate_views(load_engine("sv4d2"), request, request.family.prepare_clip(clip, request))
    assert [path.name for path in job.parts] == ["input.mp4", *(f"view-{i}.mp4" for i in range(1, 5)), "walk.mp4"]
    recipes = [read_recipe(path) for path in job.parts]
    assert [recipe["sgm"]["frames"] for recipe in recipes[:5]] == [view.settings["sgm"]["frames"] for view in views]
    assert all(request_of(recipe) == request for recipe in recipes)
    assert [is_marked(recipe) for recipe in recipes] == [False, *[True] * 5]  # no model made the input
    unmarked = ViewsClip(**vars(views[1]), parts={"view-2": views[2]}).unmarked()
    assert not is_marked(unmarked.settings)
    assert not is_marked(unmarked.parts["view-2"].settings)
    walk = read_frames(job.parts[-1])[0]
    for time, view in enumerate((0, 2, 1, 3, 4)):  # once around by azimuth
        distances = [np.abs(walk[time].astype(float) - other.frames[time]).mean() for other in views]
        assert int(np.argmin(distances)) == view
    grid = read_frames(job.frames)[0]
    assert len(grid) == 5
    assert grid.shape[2] > 3 * 64 < grid.shape[1]

    ok(page.run())
    shown = page.button_group(key=f"part_{job.id}")
    assert [option.content for option in shown.proto.options] == [
        "Grid",
        "Walk",
        "Input",
        "100°",
        "70°",
        "190°",
        "280°",
    ]
    playing = page.get("video")[-1].proto.url
    ok(shown.set_value("walk").run())
    assert page.get("video")[-1].proto.url != playing
    again = opened(job=job.id)
    assert again.text_area(key="azimuths:sv4d2").value == AZIMUTHS
    assert not generate(again).disabled
    assert next(button for button in again.button if button.label == "Extend").disabled
    assert "SV4D 2.0, 4 views" in said(visited(history))
    with pytest.raises(UserError, match="Views of another clip cannot be gone on from"):
        jobs.table().extend(job.id)
    taken = ended(jobs.table().new_take(job.id).id)
    assert (taken.state, taken.request.seed) == ("done", 24)
    assert not np.array_equal(read_frames(taken.frames)[0], grid)


def test_cancel_in_a_window_keeps_the_clip_and_what_it_was_made_of(runner: Gated, tmp_path: Path) -> None:
    frames = [frame.crop((0, 0, 60, 60)) for frame in drawn(5, background=CLEAR)]
    runner.hold_at = 1
    job = jobs.table().submit(ViewsRequest("sv4d2", frames=5, steps=2, width=64, height=64), frames, "walk.gif")
    assert runner.reached.wait(60)
    jobs.table().cancel(job.id)
    runner.go_on.set()
    job = ended(job.id)
    assert (job.state, job.message) == ("cancelled", "Stopped at window 1 of 2, step 1 of 2.")
    stored = stored_input(job)
    assert isinstance(stored, list)
    assert [np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(stored, frames, strict=True)] == [True] * 5


def test_what_a_clip_lacks_is_said(runner: Gated) -> None:
    page, faint = opened(), [Image.new("RGBA", (40, 30), (99, 0, 0, i)) for i in range(3)]
    for frames, name, told, runs in (
        (drawn(1), "one.gif", "one.gif is a single picture, which does not move: give a clip of two frames", False),
        (drawn(1), "one.png", "one.png is a PNG picture, which does not move", False),
        (faint, "none.webp", "No object was found in the clip", False),
        (drawn(5, (40, 60), CLEAR), "gone.webp", "The object reaches the picture's edge in frames 4, 5", True),
        (drawn(3), "short.gif", "short.gif has 3 frames: they run back and forth to make 5.", True),
        ([f.resize((30, 20)) for f in drawn(9)] * 111, "long.gif", "long.gif has 999 frames: the first 5 are", True),
        (drawn(1), "one.png", "long.gif stays chosen", True),
    ):
        dropped(page, frames, name)
        assert told in said(page).replace("\\", "")
        assert generate(page).disabled != runs


def test_a_view_brings_its_settings_and_the_input_its_clip(runner: Gated) -> None:
    frames, taken = np.stack([np.asarray(frame) for frame in drawn(5)]), ViewsRequest("sv4d2", frames=5, seed=9)
    page = opened(version="svd_tiny", width="320", height="192", steps="6")
    for view, told, clips in (("view-2", "choose that one, too", 0), ("input", "Settings of it.mp4 restored", 1)):
        content = encode_video(frames, 10, {**taken.settings(), "sgm": {"format": 1, "view": view}})
        ok(page.file_uploader[0].set_value(("it.mp4", content, "video/mp4")).run())
        assert told in page.success[0].value.replace("\\", "")
        assert (page.selectbox(key="version").value, page.number_input(key="seed").value) == ("sv4d2", 9)
        assert len(page.get("video")) == clips
    other = encode_video(frames, 10, VideoRequest("svd_tiny").settings() | {"sgm": {"format": 1}})
    ok(page.file_uploader[0].set_value(("other.mp4", other, "video/mp4")).run())  # a clip like any other
    assert "other.mp4 has 5 frames, as many as are made." in said(page).replace("\\", "")
    assert page.selectbox(key="version").value == "sv4d2"


def test_programs_ask_for_views(runner: Gated) -> None:
    api, walk = TestClient(application()), encoded(drawn(5, background=CLEAR))
    small = SMALL | {"azimuths": AZIMUTHS, "steps": "1"}
    rows = {row["name"]: row for row in api.get("/api/versions").json()}
    assert [rows[name]["of"] for name in ("svd_tiny", "sv4d2")] == ["picture", "clip"]
    started = api.post("/api/jobs", data=small, files={"clip": ("walk.webp", walk)})
    assert started.status_code == 201, started.text
    names = ["grid", "input", "view-1", "view-2", "view-3", "view-4", "walk"]
    assert (started.json()["name"], started.json()["parts"]) == ("walk.webp", names)
    job = ended(started.json()["id"])
    assert job.state == "done", job.message
    for part in ("", *names):
        content = api.get(f"/api/jobs/{job.id}/video?part={part}").content
        assert content == (job.clip if part in ("", "grid") else job.folder / f"{part}.mp4").read_bytes()
    other = api.get(f"/api/jobs/{job.id}/video?part=../clip")
    assert (other.status_code, other.json()["errors"]) == (404, [f"part: must be one of {', '.join(names)}"])
    address = f"data:image/webp;base64,{base64.b64encode(walk).decode()}"
    asked = {**small, "model": "stabilityai/sv4d2.0", "seed": "23", "input_reference": address}
    del asked["version"]
    video = api.post("/v1/videos", json=asked).json()
    assert (video["model"], video["size"]) == ("sv4d2", "64x64")
    assert api.delete(f"/v1/videos/{video['id']}").status_code == 200
    view = api.get(f"/v1/videos/video_{job.id}/content?part=view-2").content
    assert view == (job.folder / "view-2.mp4").read_bytes()
    for version, files, why in (
        ("sv4d2", {"picture": walk}, "picture: sv4d2 is made of a clip, not of a picture"),
        ("svd_tiny", {"clip": walk}, "clip: svd_tiny is made of a picture, not of a clip"),
        ("sv4d2", {}, "clip: is required"),
        ("sv4d2", {"clip": encoded(drawn(1))}, "A single picture does not move"),
        ("sv4d2", {"clip": encoded([Image.new("RGBA", (40, 30), (99, 0, 0, i)) for i in range(3)])}, "No object was"),
        ("sv4d2", {"clip": b"none"}, "cannot be read as a video"),
        ("sv4d2", {"clip": walk, "last": walk}, "sampler"),
        ("sv4d3", {"clip": walk}, "version must be one of"),
    ):
        refused = api.post("/api/jobs", data={"version": version}, files=files)
        assert refused.status_code == 400
        assert why in refused.json()["errors"][0]
    assert len(jobs.table().jobs()) == 2


def test_pictures_are_a_clip_s_frames_in_natural_order_and_a_sample_is_there(runner: Gated) -> None:
    page, frames = opened(frames="11"), drawn(11, background=CLEAR)
    files = [(f"frame{i}.png", encoded([frame], "png"), "image/png") for i, frame in enumerate(frames)]
    uploaded(page, [*files, ("notes.txt", b"of the clip", "text/plain")])
    assert page.success[0].value.startswith("11 pictures are the clip's frames, in the order of their names.")
    assert page.session_state["opened_clip"].key == page.query_params["upload"]
    seen = page.session_state["clip_frames"][1]
    assert [frame.tobytes() for frame in seen] == [frame.tobytes() for frame in frames]
    for added, told in (
        (("frame2.png", encoded([frames[0].resize((9, 9))], "png"), "image/png"), "has 9×9 pixels, the first 90×60"),
        (("walk.mp4", encode_video(np.stack([np.asarray(f) for f in drawn(2)]), 9), "video/mp4"), "walk.mp4 is a clip"),
        (("frame3.png", b"\x89PNG\r\n\x1a\n", "image/png"), "frame3.png"),
    ):
        uploaded(page, [*files[:2], added])
        assert told in page.error[0].value.replace("\\", "")
        assert "frame0.png … stays chosen." in page.error[0].value.replace("\\", "")
    ok(page.button(key="sample_penguin").click().run())
    assert "penguin.webp has 21 frames: the first 11 are taken." in said(page).replace("\\", "")
    assert page.query_params["sample"] == "penguin"
    assert not generate(page).disabled
