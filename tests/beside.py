"""Long programs that tests wait for: each is run once, from the start on, on what the tests leave of the processor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]


class Program(NamedTuple):
    arguments: list[str]  # of Python
    environment: dict[str, str]


PROGRAMS = {  # by a word of the names of the tests that wait for them
    "pyright": Program(["-m", "pyright", "--pythonpath", sys.executable], {}),
    "interpreter": Program(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_fast.py", "-k", "here and not compile"],
        {"TRITON_INTERPRET": "1"},
    ),
}


class Beside:
    """The programs' outcomes, in a folder that all processes of a test run share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, names: list[str]) -> None:
        """Run programs one after the other, with less priority than the tests."""
        first = ["nice"] if shutil.which("nice") else []
        Thread(target=lambda: [self.done(name, first) for name in names], daemon=True).start()

    def done(self, name: str, first: list[str] | None = None) -> tuple[int, str]:
        """Exit status and output of a program, which is run now if it was not started. first: what it is started by."""
        program, place = PROGRAMS[name], self.folder / f"{name}.txt"
        with FileLock(place.with_suffix(".lock")):
            if not place.exists():
                command = [*(first or []), sys.executable, *program.arguments]
                done = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=os.environ | program.environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    encoding="utf-8",
                )
                place.write_text(f"{done.returncode}\n{done.stdout}", encoding="utf-8")
            status, _, output = place.read_text("utf-8").partition("\n")
            return int(status), output
