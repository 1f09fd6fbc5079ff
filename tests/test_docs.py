"""The pages of text: links lead somewhere, and what they name is there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from sgm import GUIDERS, SAMPLERS, SCHEDULES, SCORES, VERSIONS, __version__

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page for pattern in ("*.md", "docs/*.md", "checkpoints/*.md", "benchmarks/*.md") for page in ROOT.glob(pattern)
)
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub(lambda found: found[0].strip("`"), page.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text("utf-8"))):
        if not target.startswith("https://"):
            path, _, fragment = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), target
            assert there.is_relative_to(ROOT), target
            assert not fragment or fragment in anchors(there), target


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in readme] == []


@pytest.mark.parametrize(
    ("page", "names"), [("README.md", VERSIONS), ("docs/research-settings.md", {**SAMPLERS, **GUIDERS, **SCHEDULES})]
)
def test_tables_name_all_there_are(page: str, names: dict[str, object]) -> None:
    rows = re.findall(r"^\| `(\w+)`", (ROOT / page).read_text("utf-8"), re.M)
    assert [name for name in names if name not in rows] == []


def test_the_recipes_page_is_what_the_table_of_fields_says() -> None:
    text = (ROOT / "docs" / "recipe.md").read_text("utf-8")
    assert runpy.run_path(str(ROOT / "docs" / "recipe.py"))["page"](text) == text, "Run python docs/recipe.py."


def test_the_page_of_scores_says_what_their_table_does() -> None:
    rows = re.findall(r"^\| `.*", (ROOT / "docs" / "scores.md").read_text("utf-8"), re.M)
    cells = [[f"`{name}`", s.title, s.unit, s.better, s.meaning] for name, s in SCORES.items()]
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows] == cells


def test_the_versions_of_the_program_agree() -> None:
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.search(rf"^## .*\b{re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
