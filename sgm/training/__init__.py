"""`sgm train`: run a training config on Lightning, resume where it stopped, leave weights that `sgm sample` loads."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgm.errors import UserError, enough_memory, printable, shown
from sgm.paths import check_writable, exists, is_file, is_folder, replacing, writes_explained
from sgm.training.schema import read_training_config

if TYPE_CHECKING:
    from sgm.training.tasks import Task


@enough_memory("set train.batch, data.frames, data.width or data.height lower; docs/training.md tells more")
def run(config_path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Train a model by a config. overrides: such as "train.lr=1e-4", merged into the YAML.

    Training resumes from `<out>/last.ckpt` if it exists; only tensors and plain values are read from it. Returns the
    path of `<out>/<version>.safetensors`, the averaged weights in float16, or of `<out>/<name of out>.safetensors`, a
    LoRA. Raises UserError for a config, data or weights that do not fit, for a `last.ckpt` that is damaged or another
    training's, for a loss that is no number, and where memory or disk run out; its subclass Stopped where SIGTERM or
    `train.time_limit` ended the training, with a checkpoint to go on from.
    """
    began = time.monotonic()
    config = read_training_config(config_path, overrides)
    _resolve_paths(config)
    model = config["model"]
    if not (every := os.environ.get("SGM_PROGRESS_EVERY") or "20").isdecimal():
        raise UserError(f"SGM_PROGRESS_EVERY must be a number of steps; got {shown(every)}.")

    import lightning
    import torch

    from sgm.config import config_errors, instantiate_from_config, load_config
    from sgm.training.autoencoder import AutoencoderTask
    from sgm.training.checkpoints import Saving, Stopped, WholeCheckpoints
    from sgm.training.logs import Bar, loggers, quiet
    from sgm.training.lora import LoraTask
    from sgm.training.optimizers import check as check_optimizer
    from sgm.training.samples import Samples
    from sgm.training.sharding import Averaged, Sharded
    from sgm.training.thrift import halve, use_expandable_segments
    from sgm.training.video import VideoTask
    from sgm.weights import load_weights

    quiet()
    out, train = config["out"], config["train"]
    limit = math.inf if train["time_limit"] is None else began + 60 * train["time_limit"]
    gpus = torch.cuda.device_count()
    devices = train["devices"] or max(gpus, 1)
    if gpus and devices > gpus:
        raise UserError(f"train.devices is {devices}, but there are {gpus} GPUs: give that many at most.")
    if train["wandb"] and not find_spec("wandb"):
        raise UserError("train.wandb is set, but wandb is not installed: run `python -m pip install wandb` first.")
    check_optimizer(train)
    samples = [Samples(out / "log" / "samples", config, model, limit)] if config["sample"]["pictures"] else []
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(train["seed"])
    if gpus:
        use_expandable_segments()
    sharded = train["strategy"] == "fsdp"
    tasks = {"autoencoder": AutoencoderTask, "video": VideoTask, "lora": LoraTask}

    def build() -> Task:
        engine = instantiate_from_config(load_config(model)["model"])
        if config["init"]:
            load_weights(engine, config["init"], torch.device("cpu"), torch.float32)
        with config_errors(config_path):
            task = tasks[config["task"]](engine, config["data"], train)
        if config["init"] and not sharded:
            halve(engine, train["precision"])
        return task

    last, task = out / "last.ckpt", build()
    steps = _check_checkpoint(last, task) if exists(last) else 0
    out.mkdir(parents=True, exist_ok=True)
    trainer = lightning.Trainer(
        accelerator="auto" if gpus else "cpu",
        devices=devices,
        strategy=Sharded(devices) if sharded else Averaged() if devices > 1 else "auto",
        precision=train["precision"],
        max_steps=train["steps"] or -1,
        max_epochs=-1,
        gradient_clip_val=1.0,
        accumulate_grad_batches=train["accumulate"],
        log_every_n_steps=20,
        default_root_dir=out,
        logger=loggers(out, train, steps),
        callbacks=[
            Bar(refresh_rate=int(every)),
            Saving(last, limit),
            *samples,
        ],
        enable_checkpointing=False,  # Lightning's own callback would save among the batches of a step
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[WholeCheckpoints()],
    )
    try:
        trainer.fit(task, ckpt_path=last if exists(last) else None, weights_only=True)
    except Stopped:
        if trainer.is_global_zero:
            raise
        raise SystemExit(0) from None  # else Lightning, which started this process, ends the first one for it
    except SystemExit:
        if trainer.interrupted:  # Lightning ends the process itself
            raise KeyboardInterrupt from None
        raise
    trainer.save_checkpoint(last, weights_only=False)
    path = task.result(out, model)
    if trainer.is_global_zero:
        if sharded:
            task = build()
            saved = torch.load(last, map_location="cpu", weights_only=True)
            task.load_state_dict(saved["state_dict"], strict=False)
            task.trainer, task.ema = trainer, saved["ema"]
        task.finish()
        with writes_explained(path), replacing(path) as unfinished:
            task.save(unfinished, config)
    return path


def _initial_weights(init: Path | None) -> Path | None:
    """The file of the initial weights: `init` or, of checkpoints/NAME, NAME in any folder that weights are found in.

    Raises UserError where it is missing.
    """
    from sgm.versions import VERSIONS, checkpoint_folders

    if init is None or exists(init):
        return init
    folders = checkpoint_folders() if init.parent == Path("checkpoints") else []

    def is_there(path: Path) -> bool:
        with suppress(UserError):  # a folder that cannot be read
            return is_file(path)
        return False

    found = next(filter(is_there, (folder / init.name for folder in folders)), None)
    if found is None:
        fetch = f"fetch them by `sgm download {init.stem}`, " if folders and init.stem in VERSIONS else ""
        raise UserError(f"There are no weights to start from at {init}: {fetch}set init=FILE, or null for none.")
    return found


def _resolve_paths(config: dict[str, Any]) -> None:
    """Resolve a config's model and init to files that are there. Raises UserError for a missing file or folder."""
    from sgm.media.kinds import files_of
    from sgm.training.shards import clips_and_shards
    from sgm.versions import bundle

    model = next((place for place in (config["model"], bundle() / config["model"]) if is_file(place)), None)
    if model is None:
        raise UserError(
            f"There is no config of a model at {config['model']}: set model, such as configs/inference/svd.yaml."
        )
    config["model"], config["init"] = model, _initial_weights(config["init"])
    for name in ("pictures", "clips", "masks"):
        there = exists if name == "clips" else is_folder  # clips may be a shard, or a list of some
        if config["data"][name] and not there(config["data"][name]):
            raise UserError(f"There is no folder {config['data'][name]}: set data.{name} to a folder of your {name}.")
    pictures = config["sample"]["pictures"]
    if pictures and not exists(pictures):
        raise UserError(f"There is no picture or folder {pictures}: set sample.pictures, or null for none.")
    perceptual = config["train"]["perceptual"]
    if perceptual and not is_file(perceptual):
        raise UserError(f"There is no file {perceptual}: set train.perceptual, or null for none.")
    check_writable(config["out"])
    # Both raise for none; the rest is said when it is read.
    if folder := config["data"]["pictures"]:
        files_of(folder, "picture", lambda line: None, deep=True)
    if place := config["data"]["clips"]:
        clips_and_shards(place, lambda line: None)


def _check_checkpoint(path: Path, task: Task) -> int:
    """The steps of a checkpoint. Raises UserError for one that holds code, is damaged or another training's."""
    import torch

    advice = f"Move it away to start anew, or set out to another folder than {path.parent}."
    try:
        # On the device without memory: each tensor is read, and forgotten.
        saved = torch.load(path, map_location="meta", weights_only=True)
        shapes = {name: tuple(value.shape) for name, value in saved["state_dict"].items()}
        averages, steps = len(saved["ema"]), int(saved["global_step"])
    except Exception as error:
        reason = printable(str(error).partition("\n")[0].partition(". ")[0], 120)
        raise UserError(
            f"{path} cannot be gone on with ({type(error).__name__}: {reason}): it is damaged, or holds more than "
            f"tensors and plain values, which could run code. {advice}"
        ) from error
    trained = {id(parameter) for parameter in task.trained()}
    wanted = {name: tuple(value.shape) for name, value in task.named_parameters() if id(value) in trained}
    if shapes != wanted or averages not in (0, len(wanted)):
        raise UserError(f"{path} is another training's, with other parameters. {advice}")
    target = task.train_config["optimizer"]["target"]
    if (before := saved.get("optimizer", target)) != target:
        raise UserError(f"{path} has the states of {printable(before)}; train.optimizer is {target}. {advice}")
    return steps
