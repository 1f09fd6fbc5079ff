"""Samples: clips of fixed pictures while a training runs, by the averaged weights, and their scores."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from PIL import Image

from sgm.errors import UserError
from sgm.media.image import open_picture
from sgm.media.kinds import files_of
from sgm.media.video import write_video
from sgm.paths import is_folder, replacing, writes_explained
from sgm.pipeline import generate
from sgm.request import VideoRequest
from sgm.score import score_clip
from sgm.training.logs import log
from sgm.versions import VERSIONS

logger = logging.getLogger(__name__)
_SHOWN = ("frame0", "hold", "motion", "flicker", "sharpness")  # in the line of a sample; the log has all scores
_COLUMNS, _WIDTH = 5, 1600  # frames of a clip on the sheet, and its width in pixels


class Samples(Callback):
    """Makes a clip of each picture at the start, every so many minutes and at the end: `<step>-<picture>.mp4`.

    With a sheet of all of them, `<step>.png`, and the means of their scores in the log, as `sample_…`. Nothing of the
    training changes: the weights are a copy, the noise is the request's. The first process makes them, the others wait.
    pictures: a file or a folder. A clip that cannot be made, as of an untrained network, is said, and is no end.
    limit: seconds of `time.monotonic`, beyond which no sample begins that took as long as those before. Raises
    UserError for pictures and settings that cannot be used.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], model: Path, limit: float = math.inf) -> None:
        data, sample = config["data"], config["sample"]
        place: Path = sample["pictures"]
        paths = files_of(place, "picture", logger.warning) if is_folder(place) else [place]
        self.folder, self.every = folder, 60 * sample["minutes"]
        self.pictures = {path.stem: open_picture(path) for path in paths}
        kind = model.stem if model.stem in VERSIONS else "svd_xt"  # those of another name are of its kind
        choices = {name: data[name] for name in ("frames", "height", "width")} | {"seed": sample["seed"]}
        self.request = VideoRequest(kind, **choices, **({"steps": sample["steps"]} if sample["steps"] else {}))
        self._due, self._latest, self._limit, self._cost = 0.0, -1, limit, 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        now = time.monotonic()
        if self._due <= now < self._limit - self._cost and batch_idx % trainer.accumulate_grad_batches == 0:
            self._make(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._make(trainer, pl_module)

    def _make(self, trainer: Trainer, task: Any) -> None:
        step, began = trainer.global_step, time.monotonic()
        if trainer.is_global_zero and step != self._latest:
            try:
                self._sample(trainer, task, began)
            except UserError as error:
                logger.warning("Step %d: no sample. %s", step, error)
        self._latest, self._due = step, time.monotonic() + self.every
        self._cost = time.monotonic() - began
        task.course.pause(self._cost)

    def _sample(self, trainer: Trainer, task: Any, began: float) -> None:
        engine, rows, scores = task.sampler(), [], []
        name = f"{trainer.global_step:07d}"
        for title, picture in self.pictures.items():
            clip = generate(engine, self.request, picture)
            write_video(self.folder / f"{name}-{title}.mp4", clip.frames, clip.fps)
            scores.append(score_clip(clip.frames, picture, request=self.request))
            rows.append(_row(clip.frames))
        sheet = self.folder / f"{name}.png"
        with writes_explained(sheet), replacing(sheet) as unfinished:
            Image.fromarray(np.concatenate(rows)).save(unfinished)
        memory = ""
        if task.device.type == "cuda":
            memory = f" and at most {torch.cuda.max_memory_allocated(task.device) / 2**30:.1f} GiB"
            del engine
            torch.cuda.empty_cache()
        means = {
            key: float(np.mean(known)) for key in scores[0] if (known := [s[key] for s in scores if s[key] is not None])
        }
        log(trainer, {f"sample_{key}": value for key, value in means.items()}, sheet)
        seconds = time.monotonic() - began
        figures = ", ".join(f"{key} {means[key]:.3g}" for key in _SHOWN if key in means)
        Tqdm.write(  # above the bar
            f"Step {trainer.global_step}: {len(rows)} sampled in {seconds:.1f} s of the training's time{memory}: "
            f"{figures}. {sheet}"
        )


def _row(frames: np.ndarray) -> np.ndarray:
    """Frames of a clip (t, h, w, 3), from the first to the last, side by side, (h', w', 3)."""
    chosen = frames[np.linspace(0, len(frames) - 1, _COLUMNS).round().astype(int)]
    row = Image.fromarray(np.concatenate(list(chosen), axis=1))
    scale = min(1.0, _WIDTH / row.width)
    return np.asarray(row.resize((round(scale * row.width), round(scale * row.height)), Image.Resampling.LANCZOS))
