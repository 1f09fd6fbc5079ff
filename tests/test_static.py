"""ruff, pyright and import-linter find nothing; the settings are in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.beside import Beside

ROOT = Path(__file__).resolve().parents[1]
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.mark.parametrize(
    "tool",
    [
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-c", LINT_IMPORTS],
    ],
    ids=["ruff-check", "ruff-format", "lint-imports"],
)
def test_finds_nothing(tool: list[str]) -> None:
    done = subprocess.run([sys.executable, *tool], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_finds_nothing(beside: Beside) -> None:
    assert beside.done("pyright")[0] == 0, beside.done("pyright")[1]
