"""The Compare page by Streamlit's test runner, and the sheets of frames that its player gets."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from app import jobs
from app.jobs import Job, Table
from app.lab.sheets import MOST_PIXELS, draw_sheet, scale_of
from app.summary import differing, told_apart
from sgm import Clip, VideoRequest
from tests.app.pages import LIMIT, address, ok, visited

TINY: dict[str, Any] = {"frames": 4, "width": 64, "height": 64}


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Ids of three finished clips of a lake."""

    def draw(job: Job, *_: Any) -> Clip:
        noise = np.random.default_rng(job.request.seed).integers(0, 256, (4, 64, 64, 3), np.uint8)
        return Clip(noise, job.request.fps, job.request.settings())

    table = Table(tmp_path, draw)
    monkeypatch.setattr(jobs, "_table", table)
    requests = [VideoRequest(seed=1, steps=2, **TINY), VideoRequest(seed=1, steps=9, **TINY)]
    requests += [VideoRequest(seed=1, steps=2, sampler="dpmpp_2m", **TINY)]
    made = [table.submit(request, Image.new("RGB", (64, 64)), "lake.jpg").id for request in requests]
    for job_id in made:
        table.wait(job_id, LIMIT)
    yield made
    table.close()


def opened(**address: str) -> AppTest:
    def show_compare() -> None:
        from app.lab import compare

        compare.show_page()

    return visited(show_compare, **address)


def played(page: AppTest) -> dict[str, Any]:
    """What the player was told."""
    (player,) = page.get("bidi_component")
    return json.loads(player.proto.json)


def test_a_link_plays_its_clips_and_tells_what_differs(clips: list[str]) -> None:
    lost = "20200101-000000-01234567"
    page = opened(clips=",".join([*clips, lost]), view="sideways", gain="9")
    data = played(page)
    assert data["view"] == "grid"
    said = [(clip["id"], clip["letter"], clip["label"], clip["frames"], clip["fps"]) for clip in data["clips"]]
    labels = ["steps 2 · Euler EDM", "steps 9 · Euler EDM", "steps 2 · DPM++ 2M"]
    assert said == [(*entry, 4, 7.0) for entry in zip(clips, "ABC", labels, strict=True)]
    assert all(clip["url"].endswith(".jpg") for clip in data["clips"])
    assert len(json.dumps(data)) < 2000  # the frames go another way
    assert "1 chosen clip is not finished, or no longer on the server." in [caption.value for caption in page.caption]
    (table,) = [html.proto.body for html in page.get("html") if "figures" in html.proto.body]
    for row in ("Steps</th><td>2</td><td>9</td><td>2</td>", "Sampler</th><td>Euler EDM</td><td>Euler EDM</td>"):
        assert row in table
    assert "Seed" not in table
    assert "SSIM</th><td>–</td><td><b>1</b></td><td><b>1</b></td>" not in table  # all alike: none is the best
    assert "SSIM</th><td>–</td><td>1</td><td>1</td>" in table  # of the same noise

    ok(page.segmented_control(key="compare_view").set_value("difference").run())
    ok(page.selectbox(key="compare_pair").set_value("CA").run())
    data = played(page)
    assert [clip["letter"] for clip in data["clips"]] == ["C", "A"]
    assert all(clip["url"].endswith(".png") for clip in data["clips"])  # without loss
    ok(page.selectbox(key="compare_gain").set_value(32).run())
    assert played(page)["gain"] == 32
    assert address(page) == {"clips": ",".join([*clips, lost]), "view": "difference", "pair": "CA", "gain": "32"}
    again = opened(**address(page))  # a reload
    assert played(again) == played(page)


@pytest.mark.parametrize("given", ["", "x", ",,", "../../etc", "20200101-000000-01234567"])
def test_a_link_without_clips(clips: list[str], given: str) -> None:
    assert "Choose two to nine clips in History" in opened(clips=given).info[0].value
    assert "Choose another clip" in opened(clips=f"{given},{clips[0]},{clips[0]}").info[0].value


def test_what_differs_between_two_models() -> None:
    def job(request: VideoRequest, name: str = "lake.jpg", **made: Any) -> Job:
        mark = {"format": 1, "torch": "2.10", "picture": "0" * 64} | made
        return Job("20261126-120300-0123abcd", Path(), request, name, settings=request.settings() | {"sgm": mark})

    tiny, svd = job(VideoRequest(seed=3)), job(VideoRequest("svd", seed=3), torch="2.11")
    rows = dict(differing([tiny, svd]))
    assert rows["Model"] == ["SVD tiny", "SVD"]
    assert rows["Width"] == ["448", "1024"]
    assert rows["Highest scale"] == ["1", "2.5"]
    assert rows["Camera"] == ["Surprise me", "–"]
    assert rows["torch"] == ["2.10", "2.11"]
    assert not rows.keys() & {"Seed", "Picture", "Frames", "dtype"}
    assert differing([tiny, tiny]) == []
    assert told_apart([tiny, job(VideoRequest(seed=4), "road.jpg")]) == ["lake.jpg · seed 3", "road.jpg · seed 4"]
    assert dict(differing([tiny, job(tiny.request, picture="1" * 64)])) == {
        "Picture": ["lake.jpg (00000000)", "lake.jpg (11111111)"]
    }


def test_sheets_hold_the_frames_and_stay_small() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 24, 40, 3), np.uint8)
    sheet = draw_sheet(frames, 7, 1, lossless=True)
    pixels = np.asarray(Image.open(io.BytesIO(sheet.content)))
    for i, frame in enumerate(frames):
        y, x = 24 * (i // sheet.columns), 40 * (i % sheet.columns)
        assert np.array_equal(pixels[y : y + 24, x : x + 40], frame)
    half = draw_sheet(frames, 7, 0.5, lossless=False)
    assert (half.width, half.height, half.frames, half.mime) == (20, 12, 5, "image/jpeg")

    large = Job("20261126-120300-0123abcd", Path(), VideoRequest("svd_xt"), "lake.jpg")
    assert scale_of([[large]]) == 1  # 25 frames of 1024×576
    assert scale_of([[large]] * 9) == pytest.approx(math.sqrt(MOST_PIXELS / (9 * 25 * 1024 * 576)))
    assert scale_of([[large, large]]) == 1
    assert scale_of([[large, large]] * 2) == pytest.approx(math.sqrt(MOST_PIXELS / (2 * 47 * 1024 * 576)))
