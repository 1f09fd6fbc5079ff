"""`sgm train`: run a training config on Lightning, resume where it stopped, leave weights that `sgm sample` loads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path


def run(config_path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Train a model by a config. overrides: such as "train.lr=1e-4", merged into the YAML.

    Training resumes from `<out>/last.ckpt` if it exists. Returns the path of `<out>/<version>.safetensors`, the
    averaged weights in float16. Raises UserError for a config, data or weights that do not fit.
    """
    import lightning
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
    from lightning.pytorch.loggers import CSVLogger

    from sgm.config import instantiate_from_config, load_config
    from sgm.training.tasks import TASKS, save_engine
    from sgm.versions import bundle
    from sgm.weights import load_weights

    config = load_config(config_path, overrides)
    out, train = Path(config["out"]), config["train"]
    out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(int(train.get("seed", 0)))
    model = Path(config["model"])
    engine = instantiate_from_config(load_config(model if model.is_file() else bundle() / model)["model"])
    if config.get("init"):
        load_weights(engine, config["init"], torch.device("cpu"), torch.float32)
    task = TASKS[config["task"]](engine, config["data"], train)
    last = out / "last.ckpt"
    devices = int(train.get("devices") or max(torch.cuda.device_count(), 1))
    trainer = lightning.Trainer(
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision=train["precision"],
        max_steps=int(train.get("steps") or -1),
        max_epochs=-1,
        gradient_clip_val=1.0,
        log_every_n_steps=20,
        logger=CSVLogger(out, name="", version="log"),
        callbacks=[
            ModelCheckpoint(
                out, save_last="link", save_top_k=0, every_n_train_steps=None, train_time_interval=timedelta(minutes=3)
            ),
            TQDMProgressBar(refresh_rate=int(os.environ.get("SGM_PROGRESS_EVERY", "20"))),
        ],
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(task, ckpt_path=last if last.exists() else None)
    trainer.save_checkpoint(last)
    path = out / f"{model.stem}.safetensors"
    if trainer.is_global_zero:
        task.to("cuda" if torch.cuda.is_available() else "cpu")
        task.finish()
        unfinished = path.with_suffix(".part")
        save_engine(engine, str(unfinished))
        os.replace(unfinished, path)
    return path
