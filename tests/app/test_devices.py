"""Several workers: a fair line, a device that fails, and what page and API say of it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest

from app import jobs
from app.api import work
from app.api.refused import Refused
from app.create.progress import _text
from app.jobs import EngineRunner, Job, Runner, Table
from app.jobs.runner import runners_on
from sgm import Clip, DeviceFailed, Progress, UserError, VideoRequest, choose_devices, generate, load_engine

REQUEST = VideoRequest(frames=2, steps=2, height=64, width=64, seed=7)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
LIMIT = 60.0  # seconds, for what takes few
ROOT = Path(__file__).parents[2]


class Card(Runner):
    """Draws without a model once it is let, or fails as it is told."""

    def __init__(self, device: str, fault: Exception | None = None) -> None:
        self.device, self.fault = device, fault
        self.running, self.let = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
        on_step(Progress("sample", 1, 2))
        self.running.release()
        assert self.let.acquire(timeout=LIMIT)
        check()
        if self.fault:
            raise self.fault
        frames = np.random.default_rng(job.request.seed).integers(0, 256, (2, 64, 64, 3), np.uint8)
        return Clip(frames, 7, job.request.settings())

    def wait(self) -> Card:
        assert self.running.acquire(timeout=LIMIT)
        return self


def ended(table: Table, job: Job) -> Job:
    found = table.wait(job.id, LIMIT)
    assert found
    assert not found.active, found.state
    return found


def now(table: Table, job: Job) -> Job:
    found = table.get(job.id)
    assert found
    return found


def test_owners_take_turns_at_every_card(tmp_path: Path) -> None:
    cards = [Card("cuda:0"), Card("cuda:1")]
    table = Table(tmp_path, cards)
    many = [table.submit(REQUEST, PICTURE, owner="many") for _ in range(4)]
    for card in cards:
        card.wait()
    one = table.submit(REQUEST, PICTURE, owner="one")
    assert [table.jobs_before(job.id) for job in (one, many[2], many[3])] == [1, 2, 3]
    seconds = [now(table, job).seconds_left or 0 for job in (one, many[2], many[3])]
    assert seconds[0] == pytest.approx(seconds[1], rel=0.3)  # of two workers, each takes one of them
    assert seconds[2] > 1.3 * seconds[1]
    cards[0].let.release()
    cards[0].wait()
    assert [now(table, job).state for job in (one, many[2])] == ["running", "queued"]
    for card in cards:
        card.let.release(9)
    assert {ended(table, job).state for job in (*many, one)} == {"done"}
    assert {ended(table, job).device for job in many} == {"cuda:0", "cuda:1"}
    table.close()


def test_a_card_that_fails_is_taken_out_and_its_job_made_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = Card("cuda:0", DeviceFailed("cuda:0 does not compute any more: an illegal access.")), Card("cuda:1")
    table = Table(tmp_path, [broken, whole])
    submitted = [table.submit(REQUEST.replace(seed=seed), PICTURE) for seed in range(2)]
    broken.wait().let.release()
    whole.wait().let.release()
    whole.wait().let.release()
    assert [(job.state, job.device) for job in (ended(table, job) for job in submitted)] == [("done", "cuda:1")] * 2
    assert [bool(state.reason) for state in table.devices()] == [True, False]
    assert not table.none_left()

    whole.fault = DeviceFailed("cuda:1 fell off the bus.")
    last = table.submit(REQUEST, PICTURE)
    whole.wait().let.release()
    while not table.none_left():
        threading.Event().wait(0.01)
    waits = now(table, last)
    assert (waits.state, waits.resumed) == ("queued", True)
    assert waits.message.startswith("No device is left to make clips, and the line waits: cuda:0 does not compute")
    assert "cuda:1 fell off the bus" in waits.message
    monkeypatch.setattr(jobs, "_table", table)
    assert _text(waits).startswith("No device is left")
    with pytest.raises(Refused, match="No device is left") as refused:
        work.submit(REQUEST, PICTURE, "a", "api-x")
    assert refused.value.status == 503
    table.cancel(last.id)
    assert ended(table, last).state == "cancelled"
    kept = table.submit(REQUEST, PICTURE)
    table.close()
    later = Table(tmp_path, Card("cuda:0"))  # the program is started again
    later._seats[0].runner.let.release()  # type: ignore[attr-defined]
    assert ended(later, kept).state == "done"
    later.close()


def test_a_job_goes_back_in_line_once(tmp_path: Path) -> None:
    cards = [Card(f"cuda:{number}", DeviceFailed(f"cuda:{number} is gone.")) for number in range(3)]
    for card in cards:
        card.let.release()
    table = Table(tmp_path, cards)
    failed = ended(table, table.submit(REQUEST, PICTURE))
    assert failed.state == "failed"
    assert failed.message.endswith("is gone.")
    assert sum(bool(state.reason) for state in table.devices()) == 2
    table.close()


def test_the_last_card_stays_where_memory_is_lacking(tmp_path: Path) -> None:
    card = Card("cuda:0", DeviceFailed("Other programs hold 70 of the 80 GB of cuda:0.", for_good=False))
    card.let.release(2)
    table = Table(tmp_path, card)
    assert ended(table, table.submit(REQUEST, PICTURE)).message.startswith("Other programs")
    card.fault = None  # they have ended
    assert ended(table, table.submit(REQUEST, PICTURE)).state == "done"
    table.close()


def test_a_job_that_is_cancelled_while_its_card_fails_stays_cancelled(tmp_path: Path) -> None:
    class Stubborn(Card):
        def __call__(self, job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
            return super().__call__(job, on_step, lambda: None)

    card = Stubborn("cuda:0", DeviceFailed("cuda:0 is gone."))
    table = Table(tmp_path, [card, Card("cuda:1")])
    job = table.submit(REQUEST, PICTURE)
    others = table.submit(REQUEST, PICTURE)
    card.wait()
    mine = next(job.id for job in table.jobs() if job.device == "cuda:0")
    table.cancel(mine)
    card.let.release()
    assert ended(table, job if job.id == mine else others).state == "cancelled"
    table._seats[1].runner.let.release()  # type: ignore[attr-defined]
    table.close()


def test_the_page_says_which_card_is_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [Card("cuda:0", DeviceFailed("cuda:0 is *gone*.")), Card("cuda:1"), Card("cuda:2")]
    table = Table(tmp_path, cards)
    monkeypatch.setattr(jobs, "_table", table)
    for _ in cards:
        table.submit(REQUEST, PICTURE)
    for card in cards:  # each has one: the fast ones do not take the slow one's
        card.wait()
    for card in cards:
        card.let.release(2)
    for job in table.jobs():
        assert ended(table, job).state == "done"
    page = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=60).run()
    badges = " ".join(element.value for element in page.markdown)
    assert "cuda:1, cuda:2" in badges
    assert "cuda:0 is out" in badges
    assert not page.exception
    table.close()


def test_two_workers_of_one_processor_share_engine_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their clips have the bits of clips made alone, with as many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    runners, loads, both = runners_on("cpu,cpu"), [], threading.Barrier(2, timeout=LIMIT)
    torch.set_num_threads(before)
    assert [runner.cores for runner in runners] == [1, 1]
    monkeypatch.setattr("app.jobs.runner.load_engine", lambda *a, **k: loads.append(a) or load_engine(*a, **k))

    def together(make: Runner) -> Callable[..., Clip]:
        def run(job: Job, on_step: Callable[[Progress], None], check: Callable[[], None]) -> Clip:
            both.wait()  # both are at work, or this breaks
            return make(job, on_step, check)

        return run

    table = Table(tmp_path, [together(runner) for runner in runners])
    submitted = [table.submit(REQUEST.replace(seed=seed), PICTURE) for seed in range(4)]
    made = [ended(table, job) for job in submitted]
    assert [job.state for job in made] == ["done"] * 4
    assert len(loads) == 1
    torch.set_num_threads(1)
    engine = load_engine()
    for job in made[:2]:
        clip = generate(engine, job.request, PICTURE)
        np.testing.assert_array_equal(table.frames(job)[0], clip.frames)
        assert clip.settings == job.settings
    torch.set_num_threads(before)
    table.close()


def test_an_error_of_the_job_is_not_the_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = EngineRunner()

    def fails(*_: object) -> Clip:
        raise RuntimeError("CUDA error: device-side assert triggered\nand more")

    monkeypatch.setattr("sgm.workers.generate", fails)
    table = Table(tmp_path, runner)
    assert ended(table, table.submit(REQUEST, PICTURE)).message.startswith("RuntimeError")
    assert not table.none_left()
    # On a card, one that computes no more is told from one that does by a sum: this machine has no such card.
    if not torch.cuda.is_available():
        runner._worker.device = torch.device("cuda:0")
        job = table.submit(REQUEST, PICTURE)
        while not table.none_left():
            threading.Event().wait(0.01)
        assert "cuda:0 does not compute any more" in table.devices()[0].reason
        table.cancel(job.id)
    table.close()


_BREAKS = """
import torch
from sgm.devices import DeviceFailed, watched

card = torch.device("cuda:0")
try:
    with watched(card):
        torch.empty(10**15, device=card)
except torch.cuda.OutOfMemoryError:
    print("too large")
try:
    with watched(card):
        torch.zeros(1, device=card)[torch.full((1,), 9, device=card)].item()
except DeviceFailed as failure:
    print(failure)
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA card, to break it for a process of its own")
def test_an_error_of_a_real_card() -> None:
    done = subprocess.run([sys.executable, "-c", _BREAKS], capture_output=True, text=True, timeout=LIMIT)
    assert done.stdout.startswith("too large\ncuda:0 does not compute any more"), done.stderr


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("tpu", "Device 'tpu' cannot be used"),
        ("cpu,cuda:77", "Device 'cuda:77' cannot be used"),
        (" , ", "Devices are 'all' or names with commas"),
        ("all,cpu", "Device 'all' cannot be used"),
        (",".join(["cpu"] * 999), "cpu is named 999 times"),
    ],
)
def test_devices_that_cannot_be_used(names: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_devices(names)
