"""The History page by Streamlit's test runner: search, what it remembers, cards, selection, deletion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from app import history, jobs
from app.jobs import Job, Table
from app.summary import matches, summary, varied
from sgm import Clip, VideoRequest
from tests.app.pages import LIMIT, address, ok, visited

TINY: dict[str, Any] = {"frames": 2, "steps": 1, "width": 64, "height": 64}
NAMES = ("lake.jpg", "[x](https://evil.example) www.evil.example\n# \u202e*IMG_2041*.jpg", "road at night.jpg")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    def draw(job: Job, *_: Any) -> Clip:
        request = job.request
        return Clip(np.full((request.frames, 64, 64, 3), 90, np.uint8), request.fps, request.settings())

    table = Table(tmp_path, draw)
    for seed, name in enumerate(NAMES):
        made = table.wait(table.submit(VideoRequest(seed=seed, **TINY), Image.new("RGB", (64, 64)), name).id, LIMIT)
        assert made is not None
        assert made.state == "done"
    monkeypatch.setattr(jobs, "_table", table)
    yield table
    table.close()


def show_history() -> None:
    from app import history

    history.show_page()


def opened(**address: str) -> AppTest:
    return visited(show_history, **address)


def cards(page: AppTest) -> list[str]:
    return [button.label.removeprefix("Open ") for button in page.button if button.label.startswith("Open ")]


def pressed(page: AppTest, label: str) -> AppTest:
    return ok(next(button for button in page.button if button.label.startswith(label)).click().run())


JOB = Job(
    "20261126-120300-0123abcd",
    Path(),
    VideoRequest(
        seed=5, sampler="dpmpp_2m", steps=12, frames=15, width=320, height=192, camera="pan_left", motion_bucket=60
    ),
    "Lake_IMG2041.jpg",
    created=1_795_694_580.0,  # 26 Nov 2026
)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        *(
            (query, True)
            for query in ("", "lake", "LAKE 2041", "seed 5", "seed:5", "5", "DPM++ 2M", "dpmpp_2m", "motion 60")
        ),
        *(
            (query, True)
            for query in ("12 steps", "steps 12", "15 frames", "320x192", "320 × 192", "nov 2026", "2026-11")
        ),
        *(
            (query, True)
            for query in (
                "20261126",
                "svd tiny",
                "svd_tiny",
                "pan left",
                "seed 5 lake 12 steps",
                "november",
                "0123abcd",
                "crop",
            )
        ),
        *(
            (query, False)
            for query in ("seed 50", "seed 15", "50", "seed 12", "motion 6", "motion 127", "steps 1", "2 steps")
        ),
        *((query, False) for query in ("320x19", "20", "euler", "road", "lake seed 4", "2025", "SVD-XT", "pan right")),
        ("seed " + 5000 * "9", False),  # of an address: Python makes no number of so many digits
    ],
)
def test_a_search_finds_what_it_says(query: str, found: bool) -> None:
    assert matches(JOB, query) == found


def test_what_varied_is_what_is_said() -> None:
    guiders = ("identity", "cfg", "linear", "triangle", "trapezoid", "spatiotemporal")
    for said in (summary, varied):
        assert len({said(VideoRequest("svd", guider=guider)) for guider in guiders}) == 6
    assert varied(VideoRequest("svd")) == ""
    assert varied(VideoRequest("svd", s_churn=4, seed=7, frames=10)) == "frames 10 · churn 4"
    assert summary(VideoRequest("svd", s_churn=4)).endswith("1024 × 576 · churn 4")
    drawn = {varied(VideoRequest(seed=seed)) for seed in range(30)}
    assert len(drawn) > 8
    assert all(way.startswith(("camera in to the ", "camera straight in")) for way in drawn)
    assert varied(VideoRequest(camera="pan_left")) == "camera pan left"
    assert summary(VideoRequest(seed=2)).endswith(varied(VideoRequest(seed=2)).removeprefix("camera "))
    angles = [float(angle) for angle in range(21)]
    assert "elevations of 21 numbers" in varied(VideoRequest("sv3d_p", orbit="list", elevations=angles))


def test_a_search_is_kept_in_the_address_and_the_session(table: Table) -> None:
    page = opened()
    assert len(cards(page)) == 3
    assert address(page) == {}
    ok(page.text_input(key="history_text").set_value("seed 1").run())
    ok(page.toggle(key="history_unfinished").set_value(True).run())
    assert address(page) == {"search": "seed 1", "unfinished": "yes"}
    assert len(cards(page)) == 1
    again = opened(**address(page))  # a reload
    assert (again.text_input(key="history_text").value, again.toggle(key="history_unfinished").value) == (
        "seed 1",
        True,
    )
    assert len(cards(again)) == 1
    ok(page.selectbox(key="history_version").set_value("svd_xt").run())
    assert address(page)["model"] == "svd_xt"
    assert "No clip fits." in page.info[0].value
    ok(page.text_input(key="history_text").set_value("").run())
    ok(page.selectbox(key="history_version").set_value("").run())
    assert len(cards(page)) == 3


@pytest.mark.parametrize(
    "given", [{"page": "0"}, {"page": "9" * 99}, {"page": "x"}, {"model": "svd_huge"}, {"page": "²"}]
)
def test_nonsense_in_the_address(table: Table, given: dict[str, str]) -> None:
    assert len(cards(opened(**given))) == 3


def test_names_are_shown_as_they_are_and_tell_buttons_apart(table: Table) -> None:
    page = opened()
    labels = [button.label for button in page.button if "2041" in button.label]
    assert len(labels) == 2  # open, delete
    for label in labels:
        assert "\n" not in label
        assert r"\[x\](https\://evil.example) www\.evil.example \# \\u202e\*IMG\_2041\*.jpg, " in label
    assert len({button.label for button in page.button}) == len(page.button)
    assert len({box.label for box in page.checkbox}) == 3


def test_several_clips_are_deleted_at_once_also_if_another_browser_was_first(table: Table) -> None:
    page, other = opened(), opened()
    for box in page.checkbox[:2]:
        ok(box.check().run())
    assert "2 selected" in [caption.value for caption in page.caption]
    pressed(page, "Delete selected")
    kinds = {button.label: button.proto.type for button in page.button}
    assert (kinds["Keep them"], kinds["Delete for good"]) == ("primary", "secondary")
    table.delete(table.jobs()[0].id)
    pressed(page, "Delete for good")
    assert len(table.jobs()) == 1
    assert len(cards(ok(other.run()))) == 1


def test_clips_are_compared(table: Table) -> None:
    page = opened()
    for box in page.checkbox[:2]:
        ok(box.check().run())
    one, two, three = (job.id for job in table.jobs())
    pressed(page, "Add to compare")
    assert page.session_state["compared"] == [one, two]
    pressed(page, "Select none")
    assert not [box for box in page.checkbox if box.value]
    ok(page.checkbox[2].check().run())
    assert {button.label: button.disabled for button in page.button}["Compare"]  # one alone cannot be
    pressed(page, "Add to compare")
    assert page.session_state["compared"] == [one, two, three]


def test_a_card_that_cannot_be_drawn_costs_itself(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = table.jobs()[1]
    title = history.title

    def fails_for_one(job: Job) -> str:
        if job.id == bad.id:
            raise RuntimeError("of any kind")
        return title(job)

    monkeypatch.setattr(history, "title", fails_for_one)
    page = opened()
    assert len(cards(page)) == 2
    assert f"Clip {bad.id} cannot be shown: its files may be damaged." in [caption.value for caption in page.caption]
    assert "Page 1 of 1 · 3 clips" in [caption.value for caption in page.caption]


def test_damaged_posters(table: Table) -> None:
    one, two, three = table.jobs()
    one.poster.write_bytes(b"")
    two.poster.write_bytes(two.poster.read_bytes()[:200])
    three.poster.unlink()
    three.picture.write_bytes(b"")
    page = opened()
    assert len(cards(page)) == 3
    assert [caption.value for caption in page.caption].count("Its picture is missing or damaged.") == 1
