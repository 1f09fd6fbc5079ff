"""How long jobs are said to take, by the phases of jobs that ran: svd_tiny on one core, recorded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from app.jobs import Job, doing, estimate
from sgm import Progress, VideoRequest

FLAT = VideoRequest(width=320, height=192, depth=0)
SMALL = FLAT.replace(width=160, height=96, frames=5, steps=4)
# Seconds of encoding, sampling, decoding and saving, of the flat camera, while others used the machine, too.
RECORDED = {
    "draft": (SMALL, (0.15, 0.50, 0.34, 0.04)),
    "longer draft": (SMALL.replace(frames=14, steps=8), (0.42, 1.96, 0.77, 0.08)),
    "default": (FLAT, (1.21, 5.65, 2.90, 0.32)),
    "two evaluations": (FLAT.replace(sampler="heun_edm"), (1.10, 10.61, 2.88, 0.12)),
    "guided": (FLAT.replace(guider="cfg", max_guidance=2.0), (1.05, 10.21, 2.64, 0.17)),
    "25 frames": (FLAT.replace(frames=25), (2.12, 10.51, 5.39, 0.39)),
}
ORDER = ("encode", "sample", "decode", "save")


def job(name: str, slower: float = 1.0, small_offset: float = 0.0, **fields: object) -> Job:
    request, seconds = RECORDED[name]
    phases = {phase: slower * took + small_offset for phase, took in zip(ORDER, seconds, strict=True)}
    return Job(name, Path(), request, name, **({"state": "done", "phases": phases} | fields))  # pyright: ignore


def quote(asked: Job, *newest_first: Job, device: str = "cpu") -> float:
    expected = estimate.expected(newest_first, asked.request, device)
    return sum(expected[phase] for phase in ORDER)


def seconds(of: Job) -> float:
    return sum(of.phases.values())


@pytest.mark.parametrize("asked", RECORDED)
@pytest.mark.parametrize("before", [(), ("draft", "draft"), ("longer draft", "draft"), ("default", "default")])
def test_a_quote_is_within_a_quarter(asked: str, before: tuple[str, ...]) -> None:
    """Of every kind of clip: before the first one, after small drafts, after two default clips."""
    assert quote(job(asked), *map(job, before)) == pytest.approx(seconds(job(asked)), rel=0.25, abs=0.3)


@pytest.mark.parametrize("slower", [0.1, 4.0, 30.0])
@pytest.mark.parametrize("asked", RECORDED)
def test_two_clips_of_a_kind_on_any_machine(asked: str, slower: float) -> None:
    """Each clip has costs there that this machine has not, and clips of other kinds came before and after."""
    kind = job(asked, slower, small_offset=1.5)
    others = [job(name, slower, small_offset=1.5) for name in ("draft", "default", "25 frames")]
    assert quote(kind, others[0], kind, others[1], kind, others[2]) == pytest.approx(seconds(kind), rel=0.25)
    assert quote(kind, kind, kind, *others) == pytest.approx(seconds(kind), rel=0.25)
    many = [job("25 frames" if asked == "draft" else "draft", 2 * slower)] * 20  # made meanwhile
    assert quote(kind, *many, kind, kind) == pytest.approx(seconds(kind), rel=0.25)


def test_what_teaches_nothing() -> None:
    """Other versions, other devices, clips that failed."""
    asked = job("default")
    other_device = job("default", 100, settings={"sgm": {"device": "cuda"}})
    for other in (job("default", 100, state="failed"), other_device, job("default", 100, settings={"sgm": None})):
        learned = quote(asked, other) != quote(asked)
        assert learned == (other.settings == {"sgm": None})
    assert quote(Job("", Path(), VideoRequest("svd"), ""), job("default", 100)) == quote(
        Job("", Path(), VideoRequest("svd"), "")
    )
    expected = estimate.expected([job("default", phases={})], asked.request, "cpu")
    assert expected == estimate.expected([], asked.request, "cpu")


def course(of: Job, slower: float, known: list[Job], monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, ...]]:
    """A job that runs `slower` than recorded, looked at each quarter of a second: (left, really left, fraction)."""
    now = 100.0
    monkeypatch.setattr("app.jobs.record.time", SimpleNamespace(monotonic=lambda: now))
    took = {phase: slower * seconds for phase, seconds in of.phases.items()}
    steps, blocks = of.request.steps, 8
    events = [(0.0, "encode", 0, 1), (took["encode"], "sample", 0, steps)]
    start = took["encode"]
    events += [(start + took["sample"] * step / steps, "sample", step, steps) for step in range(1, steps + 1)]
    start += took["sample"]
    # A decoder's first blocks work on small pictures: half of the blocks take a twentieth of the time.
    shares = [0.05 * block / 4 if block < 4 else 0.05 + 0.95 * (block - 4) / 4 for block in range(blocks + 1)]
    events += [(start + took["decode"] * share, "decode", block, blocks) for block, share in enumerate(shares)]
    end = sum(took.values())
    running = Job("running", Path(), of.request, "", state="running")
    running.start()
    expected = estimate.expected(known, of.request, "cpu")
    seen = []
    while now - 100 < end:
        while events and events[0][0] <= now - 100:
            _, phase, step, total = events.pop(0)
            if running.phase != phase:
                running.phases[running.phase] = now - running.phase_started
                running.enter(phase, Progress(phase, step, total))
            else:
                running.go_on(Progress(phase, step, total))
        left = estimate.seconds_left(running, expected, now)
        running.fraction = estimate.fraction_done(running, left, now)
        assert ("Reading" in doing(running)) == (now - 100 < took["encode"])
        seen.append((left, end - (now - 100), running.fraction))
        now += 0.25
    return seen


@pytest.mark.parametrize("slower", [1.0, 3.0])
@pytest.mark.parametrize("asked", ["default", "guided", "25 frames"])
def test_the_time_left_can_be_believed_and_nothing_runs_backwards(
    asked: str, slower: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a machine that is three times as busy as when it was learned, once the first steps have told that."""
    known = [job("default"), job("default"), job("draft")]
    seen = course(job(asked), slower, known, monkeypatch)
    fractions = [fraction for *_, fraction in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.1
    assert 0.85 < fractions[-1] < 1
    believed = seen if slower == 1 else seen[len(seen) // 2 :]
    for left, truly, _ in believed:
        assert left == pytest.approx(truly, rel=0.25, abs=1 + 0.02 * seen[0][1])
