"""Outputs folders after power cuts, full disks and other programs: what is whole goes on working."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from app import jobs
from app.jobs import EngineRunner, Job, Table, still
from app.summary import matches, summary, varied
from sgm import RECIPE_TEXTS, Clip, Progress, UserError, VideoRequest, read_frames

REQUEST = VideoRequest(frames=4, steps=1, height=64, width=96)
LIMIT = 20.0  # seconds


def draw(job: Job, *_: Any) -> Clip:
    """Noise, which no encoder makes small."""
    request = job.request
    shape = request.frames, request.height, request.width, 3
    return Clip(np.random.default_rng(request.seed).integers(0, 255, shape, np.uint8), request.fps, request.settings())


def made(table: Table, name: str = "hill.jpg", request: VideoRequest = REQUEST) -> Job:
    job = table.wait(table.submit(request, Image.new("RGB", (96, 64), "teal"), name).id, LIMIT)
    assert job is not None
    return job


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Job:
    table = Table(tmp_path_factory.mktemp("finished"), draw)
    job = made(table)
    table.close()
    return job


@pytest.fixture
def outputs(tmp_path: Path, finished: Job) -> tuple[Path, Job]:
    """An outputs folder, free, and the one finished job in it."""
    folder = tmp_path / "outputs"
    shutil.copytree(finished.folder, folder / finished.id)
    return folder, replace(finished, folder=folder / finished.id)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Table]:
    table = Table(folder, draw)
    try:
        yield table
    finally:
        table.close()


def beside(job: Job, number: int, record: str | bytes | None = None) -> Path:
    """A copy of a job's folder under a name of its own, with another job.json."""
    place = job.folder.parent / f"20250101-{number:06}-0123abcd"
    place.mkdir()
    for path in (job.clip, job.poster, *([] if record is not None else [job.folder / "job.json"])):
        os.link(path, place / path.name)
    if record is not None:
        (place / "job.json").write_bytes(record.encode() if isinstance(record, str) else record)
    return place


WRONG = [
    *({"created": value} for value in (None, "x", [], True, math.nan, math.inf, 1e300, -1e18, -1)),
    *({"name": value} for value in (None, 3, [], "\ud800", {"a": 1})),
    *({"seconds": value} for value in (None, "1", -1, 1e300, math.nan, [])),
    *({"settings": value} for value in (None, 3, "x", [], {"seed": math.nan}, {"a": "\udfff"})),
    *(
        {"phases": value}
        for value in (None, [1], {"sample": "x"}, {"sample": None}, {"sample": -1.0}, {"sample": True})
    ),
    *({"message": value} for value in (None, 1, ["x"])),
    *({"parent": value} for value in (None, 1, "../x", "20250101-000000-0123abcd\n")),
    *({"owner": value} for value in (None, [], {})),
    *({"state": value} for value in (None, "gone", "", ["done"])),
    *(
        {"axes": value}
        for value in (None, [1], ["colour=1"], ["seed=x"], ["seed=1..40", "steps=1..40"], 9999 * ["seed=0..99999"])
    ),
    *({"cell": value} for value in (None, -1, 10**5)),
    *({"files": value} for value in (None, [], {"clip.mp4": "1"}, {"clip.mp4": None})),
    *(
        {"request": value}
        for value in (None, [], {}, {"version": "svd_huge"}, {"version": "svd_tiny", "steps": 10**30})
    ),
]


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


NO_RECORDS = [
    *("", "{", "[]", "null", "{}", "[" * 100_000, nested(100_000), '{"settings": ' + nested(400) + "}"),
    *(b"\xff\xfe", '{"name": "' + "x" * 2**21 + '"}'),
]


def test_records_that_no_program_of_ours_wrote_are_left_out_and_told(outputs: tuple[Path, Job]) -> None:
    folder, job = outputs
    good = json.loads((job.folder / "job.json").read_text("utf-8"))
    records = {f"{fields!r:.60}": json.dumps(good | fields) for fields in WRONG}
    records |= {repr(record[:20]): record for record in NO_RECORDS}
    places = {beside(job, number, record).name: what for number, (what, record) in enumerate(records.items())}
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    with opened(folder) as table:
        assert [known.id for known in table.jobs()] == [job.id]
        assert sorted(places[name] for name in table.left_out) == sorted(records)
        assert all("\n" not in reason and len(reason) < 400 for reason in table.left_out.values())
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*")} == before


def test_markdown_and_long_names_are_names(outputs: tuple[Path, Job]) -> None:
    folder, job = outputs
    good = json.loads((job.folder / "job.json").read_text("utf-8"))
    names = ["[a](https://evil.example) **b**\n# c", "x" * 100_000, "<script>", "", "a\x1b[31mb"]
    for number, name in enumerate(names):
        beside(job, number, json.dumps(good | {"name": name}))
    with opened(folder) as table:
        assert {known.name for known in table.jobs()} == {job.name, *names}


def test_links_and_pipes_are_not_followed(outputs: tuple[Path, Job], tmp_path: Path) -> None:
    folder, job = outputs
    strange = tmp_path / "strange"
    shutil.copytree(job.folder, strange)
    record = json.loads((job.folder / "job.json").read_text("utf-8")) | {"state": "running"}
    (strange / "job.json").write_text(json.dumps(record), encoding="utf-8")
    (strange / ".hidden").write_text("theirs", encoding="utf-8")
    (strange / "theirs.tmp").write_text("theirs", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in strange.iterdir()}
    for name in ("20250101-000001-0123abcd", ".20250101-000002-0123abcd"):
        (folder / name).symlink_to(strange, target_is_directory=True)
    (folder / "20250101-000003-0123abcd").symlink_to(tmp_path / "nowhere")
    piped, linked = beside(job, 4), beside(job, 5)
    for place in (piped, linked):
        (place / "job.json").unlink()
    (linked / "job.json").symlink_to(strange / "job.json")
    if hasattr(os, "mkfifo"):
        os.mkfifo(piped / "job.json")
    # A job's own files are no links, either.
    secret = tmp_path / "secret.mp4"
    shutil.copy(job.clip, secret)
    job.clip.unlink()
    job.clip.symlink_to(secret)
    with opened(folder) as table:
        assert [known.id for known in table.jobs()] == [job.id]
        assert {name[9:15] for name in table.left_out} == {"000001", "000003", "000004", "000005"}
        assert not job.has(job.clip)
        assert np.array_equal(table.frames(job)[0], draw(job).frames)  # of frames.mkv
    assert {path: path.stat().st_mtime_ns for path in strange.iterdir()} == before


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) * 2 // 3])


def empty(path: Path) -> None:
    path.unlink()
    path.touch()


def garble(path: Path) -> None:
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(random.Random(5).randbytes(size))


def pipe(path: Path) -> None:
    path.unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(path)  # to be waited for, by whoever opens it


@pytest.mark.parametrize("damage", [empty, cut, garble, pipe, Path.unlink])
@pytest.mark.parametrize("name", ["clip.mp4", "frames.mkv", "poster.jpg", "input.png"])
def test_one_damaged_file_costs_itself(outputs: tuple[Path, Job], name: str, damage: Callable[[Path], None]) -> None:
    folder, job = outputs
    sizes_known = damage is garble
    if not sizes_known:  # as earlier programs wrote job.json
        record = json.loads((job.folder / "job.json").read_text("utf-8"))
        del record["files"]
        (job.folder / "job.json").write_text(json.dumps(record), encoding="utf-8")
    damage(job.folder / name)
    with opened(folder) as table:
        found = table.get(job.id)
        assert found is not None
        assert (found.state, found.message) == ("done", "")
        frames, _ = table.frames(found)
        assert len(frames) == 4
        if name != "frames.mkv":
            assert np.array_equal(frames, draw(job).frames)
        if name == "clip.mp4":
            assert len(read_frames(table.video(found))[0]) == 4
        assert Image.open(io.BytesIO(still(found))).size == (96, 64)
        assert table.extend(job.id).parent == job.id
        if name == "input.png":
            with pytest.raises(UserError, match="Choose it again"):
                table.again(job.id)
        else:
            assert table.again(job.id).name == job.name


def test_a_clip_with_no_whole_file(outputs: tuple[Path, Job]) -> None:
    folder, job = outputs
    for path in (job.clip, job.frames, job.poster, job.picture):
        empty(path)
    with opened(folder) as table:
        found = table.get(job.id)
        assert found is not None
        assert (found.state, found.message) == ("failed", "The clip's files are damaged. Run it again.")
        assert still(found) == b""
        for refused in (table.video, table.frames):
            with pytest.raises(UserError, match="damaged"):
                refused(found)


# While a clip is saved


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
@pytest.mark.parametrize("limit", [0, 300, 2_000, 20_000, 70_000])
def test_a_full_disk_at_any_write(tmp_path: Path, limit: int) -> None:
    """The files grow in the order job.json, poster, picture, MP4, frames: each limit stops at another."""
    import resource

    table, job = Table(tmp_path / "outputs", draw), None
    picture = Image.fromarray(draw(Job("", tmp_path, REQUEST, "")).frames[0])
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        with pytest.raises(UserError, match="cannot be stored") if limit < 10_000 else contextlib.nullcontext():
            job = table.wait(table.submit(REQUEST, picture).id, LIMIT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert not list(table.folder.rglob(".*"))
    if job is None:
        assert not [*table.folder.glob("2*")]
    else:
        assert job.state == "done"
        saved = table.save_again(job.id)
        assert saved is not None
        assert (saved.message, saved.unwritten) == ("", None)
        assert np.array_equal(read_frames(saved.frames)[0], draw(job).frames)
    assert made(table).state == "done"
    table.close()


def test_no_error_while_saving_loses_the_clip_or_ends_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an FFmpeg without encoders: nothing can be written, and no MP4 be made in memory."""

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("Unknown encoder")

    for name in ("write_video", "write_frames", "encode_video", "small_jpeg"):
        monkeypatch.setattr(f"app.jobs.store.{name}", fails)
    with opened(tmp_path / "outputs") as table:
        job = made(table)
        assert job.state == "done"
        assert "it could not be saved (Unknown encoder): download it now" in job.message
        assert np.array_equal(table.frames(job)[0], draw(job).frames)
        assert table.video(job) == b""
        assert made(table).state == "done"
        monkeypatch.undo()
        saved = table.save_again(job.id)
        assert saved is not None
        assert (saved.message, saved.unwritten) == ("", None)
        assert len(read_frames(table.video(saved))[0]) == 4


@pytest.mark.parametrize("settings", [{"a": object()}, {"a": math.nan}])
def test_settings_that_json_cannot_hold(tmp_path: Path, settings: dict[str, Any]) -> None:
    table = Table(tmp_path / "outputs", lambda job, *_: Clip(draw(job).frames, 7, settings))
    assert made(table).state == "done"
    assert made(table).state == "done"
    table.close()


def test_a_folder_that_is_deleted_while_its_job_waits_or_runs(tmp_path: Path) -> None:
    def vanishing(job: Job, *_: Any) -> Clip:
        for place in job.folder.parent.glob("2*"):
            shutil.rmtree(place)
        return draw(job)

    table = Table(tmp_path / "outputs", vanishing)
    first, second = (table.submit(REQUEST, Image.new("RGB", (96, 64))) for _ in range(2))
    ends = [table.wait(job.id, LIMIT) for job in (first, second)]
    assert [job and (job.state, job.message) for job in ends] == [("done", "")] * 2
    assert ends[1]
    assert len(read_frames(table.video(ends[1]))[0]) == 4
    with pytest.raises(UserError, match="Choose it again"):
        table.again(second.id)
    with pytest.raises(UserError, match="Choose it again"):  # before a model is loaded
        EngineRunner()(second, print, print)
    table.close()


def test_two_browsers_delete_one_clip(outputs: tuple[Path, Job]) -> None:
    with opened(outputs[0]) as table:
        table.delete(outputs[1].id)
        table.delete(outputs[1].id)
        assert table.jobs() == []
        assert not outputs[1].folder.exists()


def test_a_clock_that_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "outputs") as table:
        early = made(table, "early")
        monkeypatch.setattr("time.time", lambda: early.created - 1e6)
        late = made(table, "late")
        assert [job.name for job in table.jobs()] == ["late", "early"]
        assert 0 <= late.seconds < LIMIT


def test_a_preview_that_cannot_be_drawn_costs_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> np.ndarray:
        raise ValueError("not finite")

    numbers = []

    def run(job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        for step, preview in enumerate((fails, lambda: draw(job).frames[:1]), 1):
            on_step(Progress("sample", step, 2, preview=preview))
            known = table.get(job.id)
            assert known is not None
            numbers.append((known.preview_number, bool(known.preview)))
        return draw(job)

    table = Table(tmp_path / "outputs", run)
    monkeypatch.setattr("app.jobs.runner._PREVIEW_EVERY", -1)
    assert made(table).state == "done"
    assert numbers == [(0, False), (1, True)]
    table.close()


# A thousand damaged records

WILD: list[Any] = [None, True, 0, -1, 10**400, 1e308, math.nan, -math.inf, "", "\ud800", "x" * 999, "../..", [], [[]]]
WILD += [{}, {"": None}, [None] * 50, "**b**", "20250101-000000-0123abcd", "queued", "running", "svd", 2**63, 1e-320]


def damaged(record: dict[str, Any], rng: random.Random) -> bytes:
    """A record with a few wild values, names or missing keys, or with damaged bytes."""
    record = json.loads(json.dumps(record))
    for _ in range(rng.randint(1, 3)):
        place: Any = record
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = rng.choice(keys)
            if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.6:
                place = place[key]
                continue
            break
        kind = rng.randrange(4)
        if kind == 0 and isinstance(place, dict):
            place[str(rng.choice([*WILD, *record, "preview", "folder", "id", "progress"]))[:99]] = rng.choice(WILD)
        elif kind == 1 and len(place) > 1:
            del place[key]
        else:
            place[key] = rng.choice(WILD)
        if not record:
            break
    content = bytearray(json.dumps(record).encode())
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content[: rng.randrange(len(content))] if rng.random() < 0.1 else content)


def test_a_thousand_damaged_records(outputs: tuple[Path, Job], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, job = outputs
    rng, record = random.Random(16), json.loads((job.folder / "job.json").read_text("utf-8"))
    record["settings"]["sgm"] = {"format": 1, "device": "cpu", "weights": {"name": "x", "sha256": "y"}}
    for number in range(1000):
        beside(job, number, damaged(record, rng))
    with opened(folder) as table:
        known = table.jobs()
        assert job.id in {found.id for found in known}
        assert len(known) + len(table.left_out) == 1001
        assert 100 < len(table.left_out) < 950
        for found in known:
            assert table.get(found.id) is not None
            assert summary(found.request)
            assert varied(found.request) is not None
            assert matches(found, "seed 5 hill 320x192") in (True, False)
            assert table.chain(found.id) is not None
            for text in RECIPE_TEXTS.values():
                with contextlib.suppress(UserError):
                    text(found.settings)
        assert table.seconds_for(REQUEST) >= 0
        monkeypatch.setattr(jobs, "_table", table)
        page = AppTest.from_function(show_history, default_timeout=LIMIT).run()
        assert not page.exception
        assert sum(button.label.startswith("Open ") for button in page.button) == 12
        assert f"{len(table.left_out)} folders hold no clip that can be read" in page.caption[0].value


def show_history() -> None:
    from app import history

    history.show_page()
