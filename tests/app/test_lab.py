"""The pages Sweep and Drafts by Streamlit's test runner; the worker draws frames without a model."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streamlit.delta_generator import DeltaGenerator
from streamlit.testing.v1 import AppTest

from app import jobs
from app.jobs import Job, Table
from app.lab.bundle import Bundle
from app.lab.download import archive as archive_of
from app.lab.sweep import command
from app.upload import LARGEST
from sgm import Axis, Clip, UserError, VideoRequest
from tests.app.pages import LIMIT, clicked_meanwhile, ok, visited

go_on = Event()  # of the worker
go_on.set()


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    def draw(job: Job, *_: Any) -> Clip:
        assert go_on.wait(LIMIT)
        if job.request.seed == 13:
            raise UserError("Bad luck.")
        width, height = (side // 2 for side in job.request.size)  # noise takes its time to encode
        frames = np.random.default_rng(job.request.seed).integers(0, 256, (2, height, width, 3), np.uint8)
        return Clip(frames, job.request.fps, job.request.settings())

    table = Table(tmp_path, draw)
    monkeypatch.setattr(jobs, "_table", table)
    yield table
    table.close()


def show_sweep() -> None:
    from app.lab import sweep

    sweep.show_page()


def show_drafts() -> None:
    from app.lab import drafts

    drafts.show_page()


def show_batch() -> None:
    from app.lab import batch

    batch.show_page()


def warned(page: AppTest) -> str:
    return "\n".join(element.value for element in page.warning).replace("\\", "")


def opened(show: Any, **address: Any) -> AppTest:
    page = visited(show, **address)
    ok(page.button(key="sample_lake").click().run())
    return page


def said(page: AppTest) -> str:
    blocks = (page.caption, page.info, page.error, page.markdown, page.code)
    return "\n".join(element.value for elements in blocks for element in elements)


def pressed(page: AppTest, label: str) -> AppTest:
    return ok(next(button for button in page.button if button.label == label).click().run())


def grid(page: AppTest, component: str = "sgm_player") -> dict[str, Any]:
    """What the player of the grid, or another component, was told."""
    told = [found.proto for found in page.get("bidi_component") if component in found.proto.component_name]
    return json.loads(told[0].json)


def test_a_sweep_has_a_price_a_command_and_a_grid(table: Table) -> None:
    page = opened(show_sweep, vary=["steps=1..2", "seed=12,13,14"])
    assert "**6 clips** · 9 evaluations of the network · about **" in said(page)
    assert "sgm sweep PICTURE --version svd_tiny --vary steps=1,2 --vary seed=12,13,14" in said(page)
    go_on.clear()
    pressed(page, "Start")
    assert grid(page, "sgm_hands")["said"] == ""
    assert "group_started" not in page.session_state  # which another page of the Lab would take for its own
    go_on.set()
    (group,) = table.groups()
    for job in table.group(group):
        table.wait(job.id, LIMIT)
    ok(page.run())
    assert grid(page, "sgm_hands")["said"] == "4 of 6 clips are made."  # to those who hear the page
    shown = grid(page)
    assert (shown["columns"], shown["heads"]) == (3, ["seed 12", "seed 13", "seed 14"])
    assert shown["sides"] == ["steps 1", "steps 2"]
    assert ["url" in tile for tile in shown["clips"]] == [True, False, True] * 2
    assert {tile["note"] for tile in shown["clips"] if "url" not in tile} == {"Not made"}
    assert shown["clips"][3]["label"] == "steps 2, seed 12"
    assert [tile["id"] for tile in shown["clips"]] == [job.id for job in table.group(group)]
    again = opened(show_sweep, group=group)  # a link, or a reload
    assert grid(again)["clips"] == shown["clips"]

    (rows,) = (frame.value for frame in page.dataframe)
    assert list(rows["steps"]) == [1, 1, 2, 2]
    assert list(rows["seed"]) == [12, 14] * 2
    table.delete(table.group(group)[0].id)
    assert grid(ok(page.run()))["clips"][0] is None
    pressed(page, "Make the missing 2")
    for job in table.group(group):
        table.wait(job.id, LIMIT)
    assert [job.cell for job in table.group(group)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("vary", "sentence"),
    [
        (["steps=0"], "steps must be a whole number from 1 to 1000; got 0."),
        (["seed=1..500"], "These are 500 clips, more than the 200 of a sweep here: vary less."),
        (["steps=ten"], "steps must be a whole number; got 'ten'."),
        (["elevation=5,10"], "elevation does not belong to version 'svd"),
        (["nonsense=1"], "Give values to a setting: then the price stands here."),
        (["sampler=euler_edm,nonsense"], "**1 clip**"),
        (["sampler=bounded", "ends=last"], "Some of these clips end at a last picture: choose it,"),
    ],
)
def test_what_cannot_be_swept_is_said(table: Table, vary: list[str], sentence: str) -> None:
    page = opened(show_sweep, vary=vary)
    assert sentence.lower() in said(page).replace("\\", "").lower()
    start = next(button for button in page.button if button.label == "Start")
    assert start.disabled == ("**" not in sentence)


def test_rows_are_added_changed_and_left_out(table: Table) -> None:
    page = opened(show_sweep)
    assert [box.label for box in page.text_input if box.label.startswith("Values")] == [
        "Values of Steps",
        "Values of Seed",
    ]
    ok(page.text_input(key="values_0_steps").set_value("2,3").run())
    assert page.query_params["vary"] in ("steps=2,3", ["steps=2,3"])
    ok(page.selectbox(key="vary_1_seed").set_value("sampler").run())
    ok(page.multiselect(key="values_1_sampler").set_value(["euler_edm", "dpmpp_2m"]).run())
    assert page.query_params["vary"] == ["steps=2,3", "sampler=euler_edm,dpmpp_2m"]
    assert "**4 clips** · 10 evaluations" in said(page)
    pressed(page, "Another setting")
    pressed(page, "Leave out Steps")
    assert "**2 clips**" in said(page)


def png(value: int, size: tuple[int, int] = (96, 64)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 90, 200)).save(file, "PNG")
    return file.getvalue()


def zipped(files: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_a_batch_is_dropped_made_and_downloaded_as_one(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although a click asks for a new run of the page while it reads, and while it stores."""
    monkeypatch.setattr(DeltaGenerator, "progress", clicked_meanwhile(DeltaGenerator.progress))
    page = visited(show_batch)
    start = next(button for button in page.button if button.label == "Start")
    assert start.disabled
    archive = zipped(
        {"in/sea.png": png(2), "in/sea.PNG": png(3, (48, 80)), "__MACOSX/in/._sea.png": b"", "../x.png": png(4)}
    )
    dropped = [("sea.png", png(1), "image/png"), ("a.zip", archive, ""), ("*notes*.txt", b"no picture", "text/plain")]
    ok(page.file_uploader[0].set_value(dropped).run())
    assert "**3 pictures**" in said(page)
    assert "- *notes*.txt is not a picture" in warned(page)
    assert "../x.png: Its path leads out of the ZIP." in warned(page)
    ok(page.number_input(key="batch_takes").set_value(2).run())
    ok(page.number_input(key="seed").set_value(12).run())
    assert "**6 clips** · about **" in said(page)
    for width, follows in ((384, False), (448, True)):  # a size that was set by hand is that of all
        ok(page.number_input(key="width:svd_tiny").set_value(width).run())
        said_of_sizes = "Upright pictures 256 × 448, others 448 × 256." in [caption.value for caption in page.caption]
        assert said_of_sizes == follows
    pressed(page, "Start")
    (group,) = table.groups()
    for job in table.group(group):
        table.wait(job.id, LIMIT)
    shown = grid(ok(page.run()))
    assert [tile["label"] for tile in shown["clips"]] == [
        f"{name} · seed {seed}" for name in ("sea.png", "sea.png", "sea.PNG") for seed in (12, 13)
    ]
    assert grid(visited(show_batch, group=group))["clips"] == shown["clips"]  # a link, or a reload
    jobs = table.group(group)
    assert [job.request.size for job in jobs] == [(448, 256)] * 4 + [(256, 448)] * 2  # by each picture's shape
    table.delete(jobs[4].id)
    with zipfile.ZipFile(
        io.BytesIO(archive_of(table.group(group), {job.id: str(job.request.seed) for job in jobs}, [lambda: b"sheet"]))
    ) as made:
        assert made.namelist() == ["sea-12.mp4", "sea-12-2.mp4", "contact-sheet.png", "not-made.txt"]
        assert made.read("sea-12.mp4") == table.video(jobs[0])
        assert made.read("not-made.txt").decode() == "sea.png, 13: Bad luck.\n" * 2 + "sea.PNG, 13: Bad luck.\n"
    assert not said(visited(show_sweep)).count("sea.png")  # a batch is no sweep


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"bomb.png": bytes(15 << 20)}, "packed to less than a 500th of its size"),
        ({"large.bmp": bytes(range(256)) * (LARGEST + 1 << 12)}, "larger than the 20 MB"),
        ({"inner.zip": zipped({"a.png": png(1)})}, "an archive in an archive"),
        ({"inner.png": zipped({"a.png": png(1)})}, "inner.png is an archive, not a picture"),
        ({f"{i}.png": png(i % 256, (2, 2)) for i in range(500)}, "beyond the 200 pictures of a batch"),
        ({f"{i}": b"" for i in range(2001)}, "more than the 2,000 files"),
        ({"..\\x.png": png(1)}, "leads out of the ZIP"),
        ({"notes/": b""}, "holds no picture"),
    ],
)
def test_a_zip_that_is_no_batch_is_told_and_not_unpacked(files: dict[str, bytes], sentence: str) -> None:
    bundle = Bundle()
    bundle.add("a.zip", zipped(files))
    assert any(sentence in reason for _, reason in bundle.left_out), bundle.left_out
    assert len(bundle.pictures) == (200 if len(files) == 500 else 0)


def test_a_damaged_zip_is_told() -> None:
    whole = zipped({"a.png": png(1), "b.png": png(2)}, zipfile.ZIP_STORED)
    flipped = whole.replace(b"IDAT", b"IDXX", 1)  # its check sum is wrong
    end = len(whole) - 22
    locked = whole[: whole.index(b"PK\1\2") + 8] + b"\1" + whole[whole.index(b"PK\1\2") + 9 :]
    for content, left, sentence in (
        (flipped, 1, "cannot be unpacked: it is damaged"),
        (whole[:-40], 0, "cannot be read as a ZIP"),
        (whole.replace(b"a.png", b".././").replace(b"b.png", b"././."), 0, "no picture that can be used"),
        (locked, 1, "needs a password"),
        (whole[:end] + b"PK\6\7" + bytes(16) + whole[end:], 0, "more than the 2,000 files"),  # says: billions
        (whole[: end + 12] + b"\xff" * 4 + whole[end + 16 :], 0, "more than the 2,000 files"),
    ):
        bundle = Bundle()
        bundle.add("a.zip", content)
        assert len(bundle.pictures) == left
        assert sentence in bundle.left_out[0][1]


def test_one_picture_that_is_gone_costs_no_other_of_a_batch(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    unlucky = VideoRequest(seed=13, frames=2, width=64, height=64)
    picture = Image.new("RGB", (64, 64))
    group = table.submit_batch([(name, picture, [unlucky]) for name in ("a", "b", "c")])
    before = table.group(group)
    for job in before:
        table.wait(job.id, LIMIT)
    before[1].picture.unlink()
    delete, refusing = table.delete, [PermissionError("not now")]
    monkeypatch.setattr(table, "delete", lambda job_id: delete(job_id) if not refusing else raising(refusing.pop()))
    with pytest.raises(UserError, match="Choose it again"):
        table.complete_group(group)
    assert [job.id in {old.id for old in before} for job in table.group(group)] == [False, True, False]


def raising(error: Exception) -> None:
    raise error


def test_the_command_makes_the_same() -> None:
    axes = [Axis.parse("sampler=euler_edm,heun_edm"), Axis.parse("seed=1..3")]
    request = VideoRequest(motion_bucket=60, s_churn=2.5)
    assert command(request, axes) == (
        "sgm sweep PICTURE --version svd_tiny --motion-bucket 60 --s-churn 2.5 --vary sampler=euler_edm,heun_edm "
        "--vary seed=1,2,3"
    )
    last = request.replace(sampler="bounded", ends="last")
    assert command(last, axes[1:], last=True).startswith("sgm sweep PICTURE --last LAST --version svd_tiny")


def test_four_drafts_and_the_finished_clip_of_one(table: Table) -> None:
    page = opened(show_drafts)
    assert "4 steps instead of 6" in said(page)
    pressed(page, "Make 4 drafts")
    (group,) = table.groups()
    drafts = table.group(group)
    for job in drafts:
        table.wait(job.id, LIMIT)
    assert [(job.request.seed, job.request.steps) for job in drafts] == [(seed, 4) for seed in range(23, 27)]
    assert [action[0] for action in grid(ok(page.run()))["clips"][0]["actions"]] == ["open", "added", "finish"]
    from app.lab.drafts import finished

    made = table.wait(finished(drafts[2].id, "me").id, LIMIT)
    assert made is not None
    assert made.request == VideoRequest(seed=25)
    assert not made.group
    assert np.array_equal(np.asarray(Image.open(made.picture)), np.asarray(Image.open(drafts[2].picture)))
