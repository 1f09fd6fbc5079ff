"""Templates: their names, what such a file may say, and where they are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import templates
from sgm import UserError, VideoRequest, ViewsRequest
from sgm.cli.sample import starting_point

ZOOM = VideoRequest("svd_tiny", camera="zoom_in", steps=8, seed=4)


def test_a_template_is_a_recipe_without_a_seed(tmp_path: Path) -> None:
    assert templates.templates(tmp_path) == {}
    for name in ("Slow  zoom ", "Früher 湖 🌊", "a.b (2)"):
        templates.save(tmp_path, name, ZOOM)
    assert templates.templates(tmp_path) == dict.fromkeys(
        ("Früher 湖 🌊", "Slow zoom", "a.b (2)"), ZOOM.replace(seed=23)
    )
    path = tmp_path / "templates" / "Slow zoom.yaml"
    assert path.read_text(encoding="utf-8") == "version: svd_tiny\nsteps: 8\ncamera: zoom_in\n"
    assert starting_point(path)[0] == ZOOM.replace(seed=23)  # as `sgm sample --recipe` takes it
    assert templates.parse(path.read_bytes(), "x.yaml") == ZOOM.replace(seed=23)
    assert templates.parse(b"version: sv4d2", "x.yaml") == ViewsRequest("sv4d2")
    with pytest.raises(UserError, match="is there already"):
        templates.save(tmp_path, "SLOW ZOOM", ZOOM)
    with pytest.raises(UserError, match="is there already"):
        templates.save(tmp_path, "calm", ZOOM, ("Calm",))
    templates.delete(tmp_path, "Slow zoom")
    assert not path.exists()
    for number in range(templates.MOST - 2):
        templates.save(tmp_path, str(number), ZOOM)
    with pytest.raises(UserError, match="delete one first"):
        templates.save(tmp_path, "one more", ZOOM)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        "../x",
        "a/b",
        "a\\b",
        "C:x",
        "<x>",
        ".x",
        "x.",
        "NUL",
        "com1.x",
        "a\x1bb",
        "\ud800",
        "x" * 61,
        "湖" * 60 + "x",
    ],
)
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name"):
        templates.save(tmp_path, name, ZOOM)
    assert not list(tmp_path.rglob("*.yaml"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("version: svd_tiny\nelevation: 5", "elevation does not belong to version 'svd_tiny'"),
        ("version: svd_tiny\nlater: 5", "later is not a setting of a video"),
        ("version: svd_9", "version must be one of"),
        ("version: svd_tiny\nsteps: many", "steps must be a whole number"),
        ("version: sv4d2\nframes: 3", "frames must be"),
        ("version: svd_tiny\nsgm: {format: 99}", "are a newer program's"),
        ("steps: 5", "is no recipe"),
        ("version: [", "cannot be read as YAML"),
        ("version: ${oc.env:HOME}", "version must be one of"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" * 2, "cannot be read as YAML"),
        ("version: svd_tiny\nx: " + "y" * (1 << 20), "longer than"),
    ],
)
def test_what_is_no_template_is_told(content: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        templates.parse(content.encode(), "bad.yaml")
    assert str(error.value).startswith("bad.yaml")
    with pytest.raises(UserError, match=r"^a\.png is a PNG picture"):
        templates.parse(b"\x89PNG\r\n\x1a\n", "a.png")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "bad.yaml").write_text(content)
    templates.save(tmp_path, "good", ZOOM)
    found = templates.templates(tmp_path)
    assert found["good"] == ZOOM.replace(seed=23)  # in spite of it
    assert sentence in str(found["bad"])
