"""`sgm train`: training configs, one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from sgm.cli.console import errors_as_sentences
from sgm.errors import UserError
from sgm.paths import is_file, user_path


def train(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG|KEY=VALUE",
            help="YAMLs such as configs/training/svd_finetune.yaml, trained one after the other, and values to change.",
            show_default=False,
        ),
    ],
    time_limit: Annotated[
        float | None,
        typer.Option(
            help="Minutes after which a checkpoint is written and the command ends, with exit code 75, as on SIGTERM.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a model; goes on from the last checkpoint when there is one."""
    began = time.monotonic()
    overrides = [text for text in arguments if "=" in text]
    if time_limit is not None:
        overrides.append(f"train.time_limit={time_limit}")
    paths = [text for text in arguments if "=" not in text]
    with errors_as_sentences(code=2):
        if not paths:
            raise UserError("There is no config: give a YAML, such as those in configs/training/.")
        for path in paths:
            if not is_file(user_path(path)):
                raise UserError(
                    f"{path} is neither a file nor of the form key.subkey=value: give training configs, such as those"
                    " in configs/training/, and values to change in them."
                )
        for override in overrides:
            if override.startswith("="):
                raise UserError(f"{override!r} is no override: write it as key.subkey=value.")
    if find_spec("lightning") is None:
        raise UserError(
            'Training needs lightning, which is not installed: run `python -m pip install -e ".[train]"` first.'
        )
    from sgm.training.schema import read_training_config

    with errors_as_sentences(code=2):
        for path in paths:
            read_training_config(path, overrides)
    if len(paths) > 1:  # each in a process of its own, since training on several GPUs starts the command again
        for path in paths:
            # By its path, since `-m` would import from the current folder first.
            if time_limit is not None:
                overrides[-1] = f"train.time_limit={max(time_limit - (time.monotonic() - began) / 60, 0.001)}"
            command = [sys.executable, str(Path(__file__).with_name("__main__.py")), "train", path, *overrides]
            with subprocess.Popen(command) as child:
                try:
                    code = child.wait()
                except KeyboardInterrupt:
                    child.wait()  # Ctrl-C has reached it, too; it may be writing a checkpoint
                    raise
            if code:
                raise typer.Exit(code)
        return
    from sgm.training import run

    path = run(paths[0], overrides)
    if not int(os.environ.get("LOCAL_RANK", "0")):  # else a process that Lightning started for another device
        typer.echo(path)
