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
    elsewhere: bool = False  # in a folder of its own, else in the checkout


TINY = [  # a training of svd_tiny on small pictures
    *("train.devices=1", "train.compile=false", "train.precision=32-true", "train.warmup=2", "train.batch=3"),
    *("data.frames=3", "data.height=32", "data.width=32", "data.canvas=[48,48]", "data.clips_share=0.34"),
]
_CONFIGS = [str(ROOT / "configs" / "training" / f"svd_tiny_{stage}.yaml") for stage in ("autoencoder", "video")]
_PICTURES = [f"data.pictures={ROOT / 'app' / 'samples'}", "data.clips=null"]
PROGRAMS = {  # by a word of the names of the tests that wait for them, in the order of these
    "trains_one_after_the_other": Program(
        ["-m", "sgm.cli", "train", *_CONFIGS, *TINY, *_PICTURES, "train.steps=2", "train.fresh=3", "train.pool=6"],
        {"PYTHONPATH": str(ROOT)},
        elsewhere=True,
    ),
    "interpreter": Program(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_fast.py", "-k", "here and not compile"],
        {"TRITON_INTERPRET": "1"},
    ),
    "pyright": Program(["-m", "pyright", "--pythonpath", sys.executable], {}),
}


class Beside:
    """The programs' outcomes, in a folder that all processes of a test run share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, names: list[str]) -> None:
        """Run programs one after the other, with less priority than the tests."""
        first = ["nice"] if shutil.which("nice") else []
        Thread(target=lambda: [self.done(name, first) for name in names], daemon=True).start()

    def place(self, name: str) -> Path:
        """The folder in which a program runs."""
        place = self.folder / name if PROGRAMS[name].elsewhere else ROOT
        place.mkdir(exist_ok=True)
        return place

    def done(self, name: str, first: list[str] | None = None) -> tuple[int, str]:
        """Exit status and output of a program, which is run now if it was not started. first: what it is started by."""
        program, place = PROGRAMS[name], self.folder / f"{name}.txt"
        with FileLock(place.with_suffix(".lock")):
            if not place.exists():
                command = [*(first or []), sys.executable, *program.arguments]
                done = subprocess.run(
                    command,
                    cwd=self.place(name),
                    env=os.environ | program.environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    encoding="utf-8",
                )
                place.write_text(f"{done.returncode}\n{done.stdout}", encoding="utf-8")
            status, _, output = place.read_text("utf-8").partition("\n")
            return int(status), output
