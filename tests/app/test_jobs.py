"""The job table, driven through its documented seam by a runner that draws frames without a model."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import math
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request

from app import jobs
from app.create import progress
from app.jobs import EngineRunner, Job, Table, store
from sgm import (
    EXPORTS,
    Clip,
    Progress,
    UserError,
    VideoRequest,
    ViewsRequest,
    detect_watermark,
    open_picture,
    read_frames,
    read_settings,
    write_video,
)

REQUEST = VideoRequest(frames=4, steps=3, height=64, width=96, fps=8, seed=7)
LIMIT = 20.0  # seconds, for what takes milliseconds
FILES = ["clip.mp4", "frames.mkv", "input.png", "job.json", "poster.jpg"]  # of a finished job


def draw(job: Job, on_step: Callable[[Progress], None], check: Callable[[], object] = bool) -> Clip:
    """The picture, shifted a little further in each frame."""
    pixels = np.asarray(open_picture(job.picture))
    steps, frames = job.request.steps or 1, job.request.frames or 1
    for step in range(1, steps + 1):
        on_step(Progress("sample", step, steps))
    shifted = [np.roll(pixels, 4 * frame, axis=1) for frame in range(frames)]
    return Clip(np.stack(shifted), job.request.fps or 7, job.request.settings())


def drawn(job: Job) -> Clip:
    """As `draw`, without progress."""
    return draw(job, lambda progress: None)


class Held:
    """Draws, too, but stands still after each step until it is told to go on."""

    def __init__(self) -> None:
        self.at_step, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        def wait(progress: Progress) -> None:
            on_step(progress)
            self.at_step.release()
            assert self.go_on.acquire(timeout=LIMIT)

        return draw(job, wait)

    def reach_step(self) -> None:
        assert self.at_step.acquire(timeout=LIMIT)

    def release(self) -> None:
        self.go_on.release(1000)


@pytest.fixture
def picture() -> Image.Image:
    x, y = np.meshgrid(np.arange(96), np.arange(64))
    return Image.fromarray(np.stack([2 * x, 3 * y, x + y], axis=-1).astype(np.uint8))


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Table, Held]]:
    runner = Held()
    table = Table(tmp_path, runner)
    yield table, runner
    runner.release()
    table.close()


def finished(table: Table, job: Job) -> Job:
    ended = table.wait(job.id, LIMIT)
    assert ended is not None
    assert not ended.active, f"still {ended.state}"
    return ended


def test_a_job_becomes_a_clip_on_disk(tmp_path: Path, picture: Image.Image) -> None:
    table = Table(tmp_path, draw)
    job = finished(table, table.submit(REQUEST, picture, "hill.jpg"))
    assert (job.state, job.message, job.name) == ("done", "", "hill.jpg")
    assert job.settings == REQUEST.settings() == read_settings(job.clip)
    assert np.array_equal(np.asarray(Image.open(job.picture)), np.asarray(picture))
    saved = json.loads((job.folder / "job.json").read_text(encoding="utf-8"))
    assert saved["state"] == "done"
    assert saved["request"] == REQUEST.settings()
    assert sorted(path.name for path in job.folder.iterdir()) == FILES
    drawn, fps = table.frames(job)
    pixels = np.asarray(picture)
    assert fps == 8
    assert table.lossless(job)
    assert np.array_equal(drawn, [np.roll(pixels, 4 * frame, axis=1) for frame in range(4)])  # to the last bit
    job.frames.unlink()
    assert not table.lossless(job)
    assert np.array_equal(table.frames(job)[0], read_frames(job.clip)[0])
    table.close()


def test_first_come_first_served(held: tuple[Table, Held], picture: Image.Image) -> None:
    table, runner = held
    first = table.submit(REQUEST.replace(seed=0), picture)
    assert table.waiting() == 0  # whether or not the worker has begun
    submitted = [first, *(table.submit(REQUEST.replace(seed=seed), picture) for seed in (1, 2))]
    assert table.waiting() == 2
    runner.reach_step()
    states = [job.state for job in reversed(table.jobs())]
    assert states == ["running", "queued", "queued"]
    assert [table.jobs_before(job.id) for job in submitted] == [0, 1, 2]
    order: list[str] = []
    waiters = [
        threading.Thread(target=lambda j=job: (table.wait(j.id, LIMIT), order.append(j.id))) for job in submitted
    ]
    for waiter in waiters:
        waiter.start()
    runner.release()
    for waiter in waiters:
        waiter.join(LIMIT)
    ended = [finished(table, job) for job in submitted]
    assert [job.state for job in ended] == ["done"] * 3
    written = [job.clip.stat().st_mtime_ns for job in ended]
    assert written == sorted(written)


def test_a_running_job_stops_at_its_next_step(held: tuple[Table, Held], picture: Image.Image) -> None:
    table, runner = held
    job = table.submit(REQUEST, picture)
    runner.reach_step()
    table.cancel(job.id)
    asked = table.get(job.id)
    assert asked is not None
    assert asked.state == "running"
    assert asked.stopping
    runner.release()
    stopped = finished(table, job)
    assert (stopped.state, stopped.message) == ("cancelled", "Stopped at step 1 of 3.")
    assert not stopped.clip.exists()
    table.cancel(job.id)  # too late: nothing happens
    assert finished(table, job).state == "cancelled"


def test_a_waiting_job_leaves_the_queue_at_once(held: tuple[Table, Held], picture: Image.Image) -> None:
    table, runner = held
    first, second, third = (table.submit(REQUEST, picture) for _ in range(3))
    runner.reach_step()
    table.cancel(second.id)
    assert finished(table, second).state == "cancelled"
    assert table.jobs_before(third.id) == 1
    runner.release()
    assert [finished(table, job).state for job in (first, third)] == ["done", "done"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("The weights are damaged. Download them again."), "The weights are damaged. Download them again."),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero. The server's log has the details."),
    ],
)
def test_a_failure_is_told_and_the_next_job_runs(
    tmp_path: Path, picture: Image.Image, error: Exception, message: str
) -> None:
    def fails_on_seed_0(job: Job, on_step: Callable[[Progress], None], check: Callable[[], object] = bool) -> Clip:
        if job.request.seed == 0:
            raise error
        return draw(job, on_step)

    table = Table(tmp_path, fails_on_seed_0)
    bad, good = table.submit(REQUEST.replace(seed=0), picture), table.submit(REQUEST, picture)
    failed = finished(table, bad)
    assert failed.state == "failed"
    assert failed.message.startswith(message)
    assert finished(table, good).state == "done"
    table.close()


def test_the_table_outlives_the_server(held: tuple[Table, Held], picture: Image.Image, tmp_path: Path) -> None:
    table, runner = held
    done = table.submit(REQUEST, picture, "hill.jpg")
    runner.go_on.release(REQUEST.steps or 0)
    done = finished(table, done)
    for _ in range(REQUEST.steps or 0):
        runner.reach_step()
    running, queued = table.submit(REQUEST, picture), table.submit(REQUEST, picture)
    runner.reach_step()

    left = tmp_path / "left"
    shutil.copytree(table.folder, left, ignore=shutil.ignore_patterns("left", "app.lock"))
    later = Table(left, draw)  # as a new server finds the folder once the first is killed
    assert len(later.jobs()) == 3
    found = later.get(done.id)
    assert found is not None
    assert (found.state, found.request, found.settings) == ("done", done.request, done.settings)
    assert (found.name, found.created, found.seconds, found.phases) == (
        done.name,
        done.created,
        done.seconds,
        done.phases,
    )
    cut = later.get(running.id)
    assert cut is not None
    assert (cut.state, cut.request) == ("interrupted", REQUEST)
    assert finished(later, queued).state == "done"
    anew = finished(later, later.again(running.id))
    assert (anew.state, anew.request, anew.name) == ("done", REQUEST, cut.name)
    assert finished(later, later.submit(REQUEST, picture)).state == "done"
    later.close()
    found.clip.unlink()
    found.frames.unlink()
    last = Table(left, draw)
    missing = last.get(done.id)
    last.close()
    assert missing is not None
    assert (missing.state, missing.message) == ("failed", "The clip's file is no longer on the server.")


def test_what_is_not_a_job_is_left_alone(tmp_path: Path, picture: Image.Image) -> None:
    folder = tmp_path / "outputs"
    table = Table(folder, draw)
    job = finished(table, table.submit(REQUEST, picture))
    table.close()
    content = (job.folder / "job.json").read_text(encoding="utf-8")
    outside = tmp_path / "20250101-000000-0123abcd"
    for place in (outside, folder / "my own notes", folder / "20250101-000000-0123ABCD"):
        place.mkdir()
        (place / "job.json").write_text(content, encoding="utf-8")
    wrong: list[dict[str, Any]] = [{"created": 1e300}, {"created": "x"}, {"created": math.nan}, {"phases": [1]}]
    wrong += [{"phases": {"sample": "x"}}, {"name": 3}, {"settings": []}, {"state": None}]
    texts = ['{"state": "do', "[]", "{}", content.replace("svd_tiny", "svd_huge"), "[" * 100_000]
    for number, broken in enumerate([*texts, *(json.dumps(json.loads(content) | values) for values in wrong)], 10):
        place = folder / f"20250101-0000{number}-0123abcd"
        place.mkdir()
        (place / "job.json").write_text(broken, encoding="utf-8")
    (folder / "20250101-000009-0123abcd").mkdir()
    (folder / "20250101-000008-0123abcd").write_text("a file", encoding="utf-8")
    later = Table(folder, draw)
    assert [known.id for known in later.jobs()] == [job.id]
    for stranger in ("", ".", "..", f"../{outside.name}", str(outside), "my own notes", job.id + "\n"):
        assert later.get(stranger) is None
        later.cancel(stranger)
        assert later.jobs_before(stranger) == 0
    later.close()


def test_owners_take_turns(held: tuple[Table, Held], picture: Image.Image) -> None:
    table, runner = held
    many = [table.submit(REQUEST, picture, owner="many") for _ in range(3)]
    one = table.submit(REQUEST, picture, owner="one")
    runner.reach_step()
    assert [table.jobs_before(job.id) for job in (*many, one)] == [0, 2, 3, 1]
    runner.release()
    ended = [finished(table, job) for job in (many[0], one, many[1], many[2])]
    written = [job.clip.stat().st_mtime_ns for job in ended]
    assert written == sorted(written)


def test_their_owner_moves_edits_and_empties_what_waits(held: tuple[Table, Held], picture: Image.Image) -> None:
    table, runner = held
    running = table.submit(REQUEST, picture, owner="me")
    runner.reach_step()
    first, second, third = (table.submit(REQUEST.replace(seed=seed), picture, owner="me") for seed in range(3))
    other = table.submit(REQUEST, picture, owner="you")
    sweep = table.group(table.submit_group([REQUEST], picture, owner="me", axes=["seed=7"]))[0]

    def left(job: Job) -> float:
        told = table.get(job.id)
        assert told
        return told.seconds_left or 0

    assert left(first) < left(second) < left(third)
    table.move(third.id, -2, "me")
    table.move(first.id, 9, "me")
    in_line = sorted((first, second, third), key=lambda job: table.jobs_before(job.id))
    assert in_line == [third, second, first]
    assert left(third) < left(second) < (before := left(first))  # no older estimate is told
    edited = REQUEST.replace(seed=9, motion_bucket=60)
    table.edit(second.id, edited.replace(steps=1000), "me")
    assert left(first) > 10 * before
    table.edit(second.id, edited, "me")
    for job, words in ((running, "does not wait any more"), (other, "another visitor's")):
        with pytest.raises(UserError, match=words):
            table.move(job.id, 1, "me")
        with pytest.raises(UserError, match=words):
            table.edit(job.id, edited, "me")
    with pytest.raises(UserError, match="what it compares"):
        table.edit(sweep.id, edited, "me")
    assert table.empty("you") == 1
    assert [job.state for job in reversed(table.jobs())] == ["running", *["queued"] * 3, "cancelled", "queued"]
    threading.Timer(0.1, runner.release).start()  # once the table is told to close
    table.close()

    again = Table(table.folder, draw)  # the order and the settings outlive the server
    ended = [finished(again, job) for job in in_line]
    assert [job.ended for job in ended] == sorted(job.ended for job in ended)
    assert ended[1].settings == edited.settings()
    again.close()


def test_what_waits_keeps_its_film_and_gets_the_last_picture_that_it_needs(
    held: tuple[Table, Held], picture: Image.Image
) -> None:
    table, runner = held
    first = table.submit(REQUEST.replace(frames=6, steps=1), picture)
    runner.reach_step()
    runner.go_on.release()
    finished(table, first)
    table.submit(REQUEST, picture)
    runner.reach_step()
    extension, other = table.extend(first.id), table.submit(REQUEST, picture)
    with pytest.raises(UserError, match="its film's size, 96×64, not 128×64"):
        table.edit(extension.id, extension.request.replace(width=128))
    with pytest.raises(UserError, match="cannot become views"):
        table.edit(other.id, ViewsRequest("sv4d2"))
    with pytest.raises(UserError, match="extends this one is still being made"):
        table.delete(first.id)
    to_last = REQUEST.replace(sampler="bounded", ends="last")
    with pytest.raises(UserError, match="give one"):
        table.edit(other.id, to_last)
    for last in (picture.transpose(Image.Transpose.ROTATE_180), picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)):
        table.edit(other.id, to_last, last=last)
        table.edit(other.id, to_last.replace(seed=8))  # its own stays
        assert np.array_equal(np.asarray(open_picture(other.last)), np.asarray(last))
    runner.release()
    assert finished(table, extension).state == finished(table, other).state == "done"
    assert table.get(other.id).request.ends == "last"  # type: ignore[union-attr]


def test_a_batch_is_one_group_of_several_pictures_all_or_none(held: tuple[Table, Held], picture: Image.Image) -> None:
    table, runner = held
    takes = [REQUEST, REQUEST.replace(seed=8)]
    group = table.submit_batch(((name, picture, takes) for name in ("a.png", "b.png")), "me")
    jobs = table.group(group)
    assert [(job.name, job.request.seed) for job in jobs] == [
        (name, seed) for name in ("a.png", "b.png") for seed in (7, 8)
    ]
    assert {job.group_kind for job in jobs} == {"Batch"}
    assert len({job.picture.stat().st_ino for job in jobs}) == 2  # takes share their picture
    before = set(table.folder.iterdir())

    def pictures() -> Iterator[tuple[str, Image.Image, list[VideoRequest]]]:
        yield "a.png", picture, takes
        raise UserError("b.png is damaged.")

    with pytest.raises(UserError, match="damaged"):
        table.submit_batch(pictures(), "me")
    assert set(table.folder.iterdir()) == before
    runner.release()
    assert [finished(table, job).state for job in jobs] == ["done"] * 4


def test_two_workers_make_two_clips_at_once(tmp_path: Path, picture: Image.Image) -> None:
    runner = Held()
    table = Table(tmp_path, [runner, runner])
    submitted = [table.submit(REQUEST, picture, owner=owner) for owner in ("many", "many", "many", "one")]
    runner.reach_step()
    runner.reach_step()
    assert [job.state for job in reversed(table.jobs())].count("running") == 2
    waiting = sum(table.jobs_before(job.id) == place for place in (1, 2) for job in submitted)
    assert (waiting, table.waiting()) == (2, 2)
    runner.release()
    assert [finished(table, job).state for job in submitted] == ["done"] * 4
    table.close()


def test_the_time_left_in_a_line_counts_every_worker() -> None:
    from app.jobs.estimate import queue_ends

    assert queue_ends([5.0], [2.0, 3.0], workers=1) == [7, 10]
    assert queue_ends([5.0, 1.0], [2.0, 3.0], workers=2) == [3, 6]  # 1 + 2 of one worker, then 3 more
    assert queue_ends([], [4.0], workers=2) == [4]


def test_the_preview_is_the_middle_frame_and_once_there_are_all_a_loop(
    tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("app.jobs.runner._PREVIEW_EVERY", -1)
    monkeypatch.setattr("app.jobs.runner._PREVIEW_SHARE", 9)  # of this short job's time
    monkeypatch.setattr(jobs, "_table", table := Table(tmp_path, lambda *job: run(*job)))

    def asked(job: Job, query: str) -> dict[str, Any]:
        scope = {"type": "http", "path_params": {"id": job.id}, "query_string": query.encode(), "headers": []}
        return json.loads(bytes(asyncio.run(progress.answer(Request(scope))).body))

    def run(job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        frames = drawn(job).frames
        for step, shown in enumerate((frames[3:4], frames), 1):
            on_step(Progress("sample", step, 2, preview=lambda shown=shown: shown))
            told.extend(asked(job, query) for query in ("seen=", "seen=&moving"))
            told.append(asked(job, f"seen={told[-1]['number'].replace(' ', '%20')}&moving"))
        return drawn(job)

    job = finished(table, table.submit(REQUEST.replace(frames=6), picture))
    assert job.state == "done", job.message
    kinds = [told["preview"].partition(";")[0] for told in told]
    jpeg, webp = "data:image/jpeg", "data:image/webp"
    assert kinds == [jpeg, jpeg, "", jpeg, webp, ""]  # without "moving", as where motion is to be reduced, a still one
    with Image.open(io.BytesIO(base64.b64decode(told[4]["preview"].partition(",")[2]))) as loop:
        assert (getattr(loop, "n_frames", 1), loop.info["loop"]) == (6, 0)
    table.close()


def test_previews_take_no_more_than_their_share(
    tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, times = [1000.0], []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def encode(frames: np.ndarray, fps: float) -> bytes:
        clock[0] += 0.1
        times.append(clock[0])
        return b"RIFF"

    monkeypatch.setitem(EXPORTS, "WebP", (".webp", "image/webp", encode))

    def run(job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        for step in range(1, 41):
            clock[0] += 1
            on_step(Progress("sample", step, 40, preview=lambda: drawn(job).frames))
        return drawn(job)

    table = Table(tmp_path, run)
    finished(table, table.submit(REQUEST.replace(frames=6), picture))
    assert 7 <= len(times) <= 9  # of a tenth of a second each, in 40 seconds
    table.close()


def test_a_film_goes_on_from_near_the_end_and_ends_at_four_clips(tmp_path: Path, picture: Image.Image) -> None:
    table = Table(tmp_path, draw)
    job = finished(table, table.submit(REQUEST.replace(frames=6), picture, "hill.jpg"))
    for links in range(2, jobs.LONGEST_CHAIN + 1):
        earlier = read_frames(job.frames)[0]
        job = finished(table, table.extend(job.id))
        assert (job.state, job.message) == ("done", "")
        assert np.array_equal(np.asarray(open_picture(job.picture)), earlier[-3])
        assert len(read_frames(job.film)[0]) == 3 * (links - 1) + 6
        film, _ = table.frames(job)
        assert len(film) == 3 * (links - 1) + 6
        assert np.array_equal(film[-6:], read_frames(job.frames)[0])
    with pytest.raises(UserError, match="4 clips already"):
        table.extend(job.id)
    take = finished(table, table.new_take(job.id))
    assert (take.request.seed, take.parent) == (REQUEST.seed + 1, job.parent)
    table.delete(job.parent)
    assert table.chain(job.id) == []
    assert len(table.frames(job)[0]) == 3 * 3 + 6  # of the joined film, which is still there
    table.close()


def test_a_clip_of_another_size_or_alone_makes_no_film(tmp_path: Path, picture: Image.Image) -> None:
    """As earlier versions let some be changed, and where a clip that was extended has been deleted."""

    def sized(job: Job, *told: Any) -> Clip:
        w, h = job.request.size
        frames = [np.asarray(open_picture(job.picture).resize((w, h)))] * job.request.frames
        return Clip(np.stack(frames), 7, job.request.settings())

    table, request = Table(tmp_path, sized), REQUEST.replace(frames=6)
    first = finished(table, table.submit(request, picture))
    other = finished(table, table.submit(request.replace(width=128), picture, parent=first.id))
    assert (other.message, table.frames(other)[0].shape[1:3]) == ("", (64, 128))
    goes_on = finished(table, table.extend(other.id))
    assert (goes_on.message, len(table.frames(goes_on)[0])) == ("", 9)
    assert [link.id for link in table.chain(goes_on.id)] == [other.id, goes_on.id]
    last = finished(table, table.extend(first.id))
    table.delete(first.id)
    with pytest.raises(UserError, match="has been deleted"):
        table.extend(last.id)
    alone = finished(table, table.again(last.id))
    assert (alone.state, "the extension alone" in alone.message) == ("done", True)
    table.close()


def test_a_film_keeps_its_first_clip_s_colours(tmp_path: Path, picture: Image.Image) -> None:
    def paler(job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        pixels = np.asarray(open_picture(job.picture))
        return Clip(np.stack([(0.9 * pixels + 20).astype(np.uint8)] * 6), 7, job.request.settings())

    table = Table(tmp_path, paler)
    job = first = finished(table, table.submit(REQUEST.replace(frames=6), picture))
    for _ in range(3):
        job = finished(table, table.extend(job.id))
    start, end = (table.frames(link)[0][-1].mean(axis=(0, 1)) for link in (first, job))
    undone = 0.729 * start + 54.2  # three times paler
    assert np.abs(end - start).max() < 0.15 * np.abs(undone - start).max()
    aimed = finished(table, table.extend(first.id, last=picture))  # begins in the film's colours, ends in its picture's
    own = read_frames(aimed.frames)[0][-1].mean(axis=(0, 1))
    assert np.abs(own - start).max() > 8
    for film in (table.frames(aimed)[0], read_frames(aimed.film)[0]):
        assert np.abs(film[-6].mean(axis=(0, 1)) - start).max() < 3
        assert np.abs(film[-1].mean(axis=(0, 1)) - own).max() < 3
    table.close()


def test_a_last_picture_stays_with_its_job(tmp_path: Path, picture: Image.Image) -> None:
    """Also of its repetitions, after a restart; what goes on from it ends anywhere, or at another picture."""
    last, request = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), REQUEST.replace(sampler="bounded", ends="last")
    table = Table(tmp_path, draw)
    job = finished(table, table.submit(request, picture, last=last))
    table.close()
    table = Table(tmp_path, draw)
    group = table.group(table.submit_group([request, request.replace(ends="loop")], picture, last=last))
    for like in (job, table.again(job.id), table.new_take(job.id), group[0]):
        stored = jobs.stored_last(finished(table, like))
        assert stored is not None
        assert np.array_equal(np.asarray(stored), np.asarray(last))
    assert jobs.stored_last(finished(table, group[1])) is None
    film = finished(table, table.extend(job.id))
    assert film.request == REQUEST
    for clip in (job, film):
        aimed = finished(table, table.extend(clip.id, last=picture))
        assert (aimed.request, aimed.parent) == (request, clip.id)
        assert np.array_equal(np.asarray(jobs.stored_last(aimed)), np.asarray(picture))
        assert len(table.frames(aimed)[0]) == 1 + len(table.frames(clip)[0])
    assert jobs.extension_of(REQUEST.replace(camera="pan_left"), to_last=True) == request  # the picture says where to
    with pytest.raises(UserError, match="guider must be cfg or identity"):
        table.extend(table.submit(REQUEST.replace(guider="apg"), picture).id, last=picture)
    assert table.submit(request, picture, last=picture.copy()).request == request.replace(ends="loop")
    with pytest.raises(UserError, match="give one"):
        table.submit(request, picture)
    job.last.unlink()
    with pytest.raises(UserError, match="last picture of this clip is no longer on the server"):
        table.again(job.id)
    table.close()


def test_an_object_goes_on_without_being_cut_out_again(tmp_path: Path, picture: Image.Image) -> None:
    """A frame shows the object on its white already; to look for it again would take long, and move it."""
    table = Table(tmp_path, draw)
    job = finished(table, table.submit(REQUEST.replace(fit="object", image_frame_ratio=0.5), picture))
    film = finished(table, table.extend(job.id))
    assert film.request == REQUEST
    assert table.again(job.id).request == job.request
    table.close()


def test_what_a_kill_leaves_half_written_is_removed(tmp_path: Path, picture: Image.Image) -> None:
    table = Table(tmp_path, draw)
    job = finished(table, table.submit(REQUEST, picture))
    table.close()
    saved = json.loads((job.folder / "job.json").read_text("utf-8")) | {"state": "running"}
    (job.folder / "job.json").write_text(json.dumps(saved), encoding="utf-8")
    (job.folder / ".0123.mp4").write_bytes(b"half")
    (job.folder / "job.tmp").write_text("{", encoding="utf-8")
    (tmp_path / ".20250101-000000-0123abcd").mkdir()
    Table(tmp_path, draw).close()
    assert {path.name for path in tmp_path.iterdir()} - {"app.lock"} == {job.id}
    assert sorted(path.name for path in job.folder.iterdir()) == FILES


@pytest.mark.parametrize(("name", "told"), [("clip.mp4", "could not be saved"), ("frames.mkv", "not all")])
def test_what_could_not_be_written_is_saved_once_it_can(
    tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    def obstructed(job: Job, *told: Any) -> Clip:
        (job.folder / name).mkdir()  # where a file is to stand
        return draw(job, *told)

    table = Table(tmp_path, obstructed)
    gone = finished(table, table.submit(REQUEST, picture))
    (gone.folder / name).rmdir()
    with monkeypatch.context() as patch:  # deleted in another tab meanwhile
        patch.setattr(store, "write_video", lambda *what: (table.delete(gone.id), write_video(*what)))
        assert table.save_again(gone.id) is None
    assert not gone.folder.exists()
    job = finished(table, table.submit(REQUEST, picture))
    assert (job.state, told in job.message, bool(job.unsaved)) == ("done", True, name == "clip.mp4")
    still = table.save_again(job.id)
    assert still is not None
    assert (still.message, still.unsaved) == (job.message, job.unsaved)
    (job.folder / name).rmdir()
    saved = table.save_again(job.id)
    assert saved is not None
    assert (saved.state, saved.message, saved.unsaved) == ("done", "", b"")
    assert sorted(path.name for path in job.folder.iterdir()) == FILES
    pixels = np.asarray(picture)
    assert np.array_equal(table.frames(saved)[0], [np.roll(pixels, 4 * frame, axis=1) for frame in range(4)])
    assert table.save_again(job.id) == saved  # nothing more to do
    assert table.save_again("no job") is None
    table.close()
    last = Table(tmp_path, draw)
    later = last.get(job.id)
    last.close()
    assert later is not None
    assert (later.state, later.message, later.settings) == ("done", "", REQUEST.settings())


def test_an_outputs_folder_that_cannot_be_written(tmp_path: Path, picture: Image.Image) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="SGM_OUTPUTS"):
        Table(tmp_path / "file" / "outputs", draw).submit(REQUEST, picture)


def test_progress_and_the_time_left(tmp_path: Path, picture: Image.Image) -> None:
    seen: list[tuple[int, float, float]] = []

    def steady(job: Job, on_step: Callable[[Progress], None], check: Callable[[], object] = bool) -> Clip:
        def watched(progress: Progress) -> None:
            on_step(progress)
            at = table.get(job.id)
            assert at is not None
            assert at.progress == progress
            assert at.seconds_left is not None
            seen.append((progress.step, at.seconds_left, at.fraction))
            time.sleep(0.05)

        on_step(Progress("encode", 1, 1))
        at = table.get(job.id)
        assert at is not None
        assert jobs.doing(at) == "Step 1 of 10"  # the picture has been read: the first step runs
        return draw(job, watched)

    table = Table(tmp_path, steady)
    first = table.seconds_for(REQUEST)
    assert 0 < first < table.seconds_for(VideoRequest()) < table.seconds_for(VideoRequest("svd"))  # before any clip
    ended = finished(table, table.submit(REQUEST.replace(steps=10), picture))
    again = finished(table, table.again(ended.id))
    table.close()
    steps, left, fractions = zip(*seen, strict=True)
    assert steps == (*range(1, 11), *range(1, 11))
    assert all(0 < seconds < LIMIT for seconds in left)
    assert left[9] < left[1]
    assert left[19] < left[11]
    assert list(fractions[:10]) == sorted(fractions[:10])
    assert list(fractions[10:]) == sorted(fractions[10:])
    assert ended.seconds >= 0.5
    sampling = ended.phases["sample"]
    assert 0.4 < sampling < ended.seconds
    one, two = (table.seconds_for(REQUEST.replace(steps=steps)) for steps in (10, 20))
    assert one == pytest.approx((sum(ended.phases.values()) + sum(again.phases.values())) / 2)
    assert two - one == pytest.approx((sampling + again.phases["sample"]) / 2, rel=0.01)


def test_one_model_is_unloaded_before_the_next_is_loaded(
    tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine:
        def __init__(self, version: str) -> None:
            self.version = version

    living: weakref.WeakSet[Engine] = weakref.WeakSet()
    loads: list[tuple[str, int]] = []

    def load(version: str, **_: object) -> Engine:
        loads.append((version, len(living)))
        engine = Engine(version)
        living.add(engine)
        return engine

    def generate(engine: Engine, request: VideoRequest, image: Image.Image, *rest: Any) -> Clip:
        assert rest[3].engine is engine  # the memo
        return Clip(np.asarray(image)[None], 8, request.settings())

    monkeypatch.setattr("app.jobs.runner.load_engine", load)
    monkeypatch.setattr("sgm.workers.generate", generate)
    table = Table(tmp_path)
    for version in ("svd_tiny", "svd_tiny", "svd", "svd_tiny"):
        job = table.submit(VideoRequest(version=version), picture)
        assert finished(table, job).state == "done"
    table.close()
    assert loads == [("svd_tiny", 0), ("svd", 0), ("svd_tiny", 0)]
    del table
    gc.collect()
    assert not living


def test_cancel_while_the_model_is_loading(tmp_path: Path, picture: Image.Image) -> None:
    engines, told = EngineRunner(), []

    def cancelled_half_way(job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        def watched(progress: Progress) -> None:
            told.append((progress.phase, progress.step))
            if told[-1] >= ("load", 50) and job.id == first.id:
                table.cancel(job.id)
            on_step(progress)

        return engines(job, watched, check)

    table = Table(tmp_path, cancelled_half_way)
    request = VideoRequest(frames=2, steps=1, height=64, width=96)
    first = table.submit(request, picture)
    table.wait(first.id, 10 * LIMIT)  # a real load, with what it imports
    stopped = finished(table, first)
    assert (stopped.state, stopped.message) == ("cancelled", "Stopped while loading the model.")
    assert told[0] == ("load", 0)
    assert 50 <= told[-1][1] < 60  # nothing more was loaded
    again = table.again(first.id)
    table.wait(again.id, 10 * LIMIT)
    assert finished(table, again).state == "done"
    assert ("load", 100) in told
    table.close()


def test_one_table_for_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_table", None)
    monkeypatch.setenv("SGM_OUTPUTS", str(tmp_path / "clips"))
    found: list[Table] = []
    threads = [threading.Thread(target=lambda: found.append(jobs.table())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(table is found[0] for table in found)
    assert found[0].folder == (tmp_path / "clips").resolve()
    found[0].close()


def test_a_group_takes_turns_and_outlives_the_server(held: tuple[Table, Held], picture: Image.Image) -> None:
    table, runner = held
    requests = [REQUEST.replace(seed=seed) for seed in range(4)]
    group = table.submit_group(requests, picture, "lake.jpg", "me", ["seed=0..3"], order=[2, 0, 1, 3])
    runner.reach_step()
    mine = table.submit(REQUEST, picture, owner="me")
    other = table.submit(REQUEST, picture, owner="you")
    cells = table.group(group)
    assert [(job.cell, job.state) for job in cells] == [(0, "queued"), (1, "queued"), (2, "running"), (3, "queued")]
    assert [job.request.seed for job in cells] == [0, 1, 2, 3]
    # One of the group, one of each person, and so on: the group keeps nobody waiting for all of it.
    assert table.jobs_before(mine.id) == 1
    assert table.jobs_before(other.id) == 2
    assert [table.jobs_before(cells[cell].id) for cell in (0, 1, 3)] == [3, 4, 5]
    assert table.groups() == [group]
    assert table.seconds_left_of(group) > 0
    assert table.seconds_for_all(requests) > table.seconds_for(REQUEST)
    assert len({job.picture.stat().st_ino for job in cells}) == 1  # one picture on disk
    table.cancel(cells[3].id)
    threading.Timer(0.1, runner.release).start()  # once the table is told to close
    table.close()

    again = Table(table.folder, draw)
    for job in again.group(group):
        again.wait(job.id, LIMIT)
    assert [job.state for job in again.group(group)] == ["done", "done", "cancelled", "cancelled"]
    assert [job.axes for job in again.group(group)] == [["seed=0..3"]] * 4
    again.complete_group(group)
    for job in again.group(group):
        again.wait(job.id, LIMIT)
    assert [(job.cell, job.state) for job in again.group(group)] == [(cell, "done") for cell in range(4)]
    assert len(again.jobs()) == 6  # those that were not made are gone
    again.close()


def test_a_group_is_cancelled_or_refused_as_a_whole(held: tuple[Table, Held], picture: Image.Image) -> None:
    table, runner = held
    group = table.submit_group([REQUEST.replace(seed=seed) for seed in range(3)], picture)
    runner.reach_step()
    table.cancel_group(group)
    runner.release()
    for job in table.group(group):
        table.wait(job.id, LIMIT)
    assert [job.state for job in table.group(group)] == ["cancelled"] * 3
    before = set(table.folder.iterdir())

    def refuse(job: Job, *pictures: Any) -> None:
        if job.cell:
            raise UserError("There is no room.")
        add(job, *pictures)

    add, table._store.add = table._store.add, refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(UserError, match="no room"):
        table.submit_group([REQUEST, REQUEST], picture)
    assert set(table.folder.iterdir()) == before
    assert len(table.groups()) == 1


@pytest.mark.parametrize("watermark", [True, False])
def test_a_clip_s_files_are_marked_unless_told_and_its_frames_never(
    watermark: bool, tmp_path: Path, picture: Image.Image
) -> None:
    def make(job: Job, on_step: Callable[[Progress], None], check: Callable[[], object]) -> Clip:
        clip = draw(job, on_step)
        return Clip(clip.frames, clip.fps, clip.settings | {"sgm": {"format": 1, "watermark": True}})

    table = Table(tmp_path, make, watermark=watermark)
    job = finished(table, table.submit(REQUEST.replace(width=192, height=192), picture.resize((192, 192))))
    frames, _ = table.frames(job)
    assert np.array_equal(frames[0], np.asarray(picture.resize((192, 192))))
    assert read_settings(job.clip) == job.settings
    assert job.settings["sgm"]["watermark"] is watermark
    assert (detect_watermark(job.clip, "clip", search=False).verdict == "marked") is watermark
    film = finished(table, table.extend(job.id))
    assert (detect_watermark(film.film, "film", search=False).verdict == "marked") is watermark
    table.close()
