"""Logs: where the figures of a training go: the terminal, `metrics.csv`, TensorBoard, Weights & Biases."""

from __future__ import annotations

import contextlib
import csv
import logging
import time
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image

from sgm.paths import is_file, replacing, writes_explained

logger = logging.getLogger(__name__)
_EVERY = 10.0  # seconds after which the table is written anew at the earliest
_ENDLESS = 10**8  # batches: of a training that ends by its minutes
_CHATTER = (  # warnings of what is meant to be so
    r".*does not have many workers",
    r"Found \d+ module\(s\) in eval mode",
    r".*LeafSpec",
    r"You're resuming from a checkpoint that ended before the epoch ended",
)


def quiet() -> None:
    """Silence Lightning's lines about itself, and its warnings of what is meant to be so."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for text in _CHATTER:
        warnings.filterwarnings("ignore", text)


class Bar(TQDMProgressBar):
    """The progress bar in the terminal: batches of how many, time, rate and loss."""

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        total = self.total_train_batches
        self.train_progress_bar.reset(total=total if total < _ENDLESS else None)
        self.train_progress_bar.set_description("Training")

    def get_metrics(self, trainer: Trainer, pl_module: Any) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


def bytes_bar(what: str) -> dict[str, Any]:
    """tqdm's options for a bar of the bytes of a large file, which a terminal shows after two seconds."""
    units = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    return {"desc": f"Writing {what}", **units, "delay": 2, "leave": False, "disable": None}


def loggers(out: Path, train: Mapping[str, Any], step: int) -> list[Logger]:
    """The loggers of a training, which write into `out`/log. step: that from which it goes on, 0 for a new one."""
    found: list[Logger] = [Table(out / "log" / "metrics.csv", step)]
    if train["tensorboard"] and find_spec("tensorboard"):
        found.append(TensorBoardLogger(out, name="", version="log", purge_step=step + 1 if step else None))
    elif train["tensorboard"]:
        logger.warning(
            "TensorBoard is not installed: the figures are in log/metrics.csv alone. Run `python -m pip install "
            "tensorboard` for it, or set train.tensorboard=false."
        )
    if train["wandb"]:  # offline where WANDB_MODE says so
        found.append(WandbLogger(out.absolute().name, out, project=train["wandb"]))
    return found


def log(trainer: Trainer, figures: Mapping[str, float], picture: Path | None = None) -> None:
    """Log figures, and a picture, for the step that is done."""
    for one in trainer.loggers:
        one.log_metrics(dict(figures), trainer.global_step)
        if picture is not None and isinstance(one, TensorBoardLogger):
            pixels = np.asarray(Image.open(picture))
            one.experiment.add_image("samples", pixels, trainer.global_step, dataformats="HWC")
        elif picture is not None and isinstance(one, WandbLogger):
            one.log_image("samples", [str(picture)], trainer.global_step)


class Table(Logger):
    """A CSV file with a row for each step at which something is logged, and a column for each figure.

    Where the file is there, the rows up to `step` stay, and those of later steps, which are made again, do not.
    """

    def __init__(self, path: Path, step: int) -> None:
        super().__init__()
        self.path, self.rows = path, {}
        self._written = time.monotonic()
        if step and is_file(path):
            # Of a file that is no such table, nothing stays.
            with contextlib.suppress(ValueError, KeyError, TypeError, csv.Error), path.open(newline="") as file:
                self.rows: dict[int, dict[str, Any]] = {
                    int(row["step"]): {name: value for name, value in row.items() if value}
                    for row in csv.DictReader(file)
                    if int(row["step"]) <= step
                }

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return "log"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        self.rows.setdefault(step or 0, {"step": step or 0}).update(row)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config is the user's own file."""

    @rank_zero_only
    def save(self) -> None:
        if time.monotonic() >= self._written + _EVERY:
            self.finalize("")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if not self.rows:
            return
        columns = dict.fromkeys(name for row in self.rows.values() for name in row)
        with writes_explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as unfinished, unfinished.open("w", newline="") as file:
                table = csv.DictWriter(file, list(columns))
                table.writeheader()
                table.writerows(self.rows[step] for step in sorted(self.rows))
        self._written = time.monotonic()
