"""`sgm train`: training configs, one after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from sgm.cli.console import errors_as_sentences
from sgm.errors import UserError


def train(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG|KEY=VALUE",
            help="YAMLs such as configs/training/svd_finetune.yaml, trained one after the other, and values to change.",
            show_default=False,
        ),
    ],
) -> None:
    """Train a model; goes on from the last checkpoint when there is one."""
    overrides = [text for text in arguments if "=" in text]
    configs = [Path(text) for text in arguments if "=" not in text]
    with errors_as_sentences(code=2):
        if not configs:
            raise UserError("There is no config: give a YAML, such as those in configs/training/.")
        for config in configs:
            if not config.is_file():
                raise UserError(
                    f"{config} is neither a file nor of the form key.subkey=value: give training configs, such as those"
                    " in configs/training/, and values to change in them."
                )
        for override in overrides:
            if override.startswith("="):
                raise UserError(f"{override!r} is no override: write it as key.subkey=value.")
    if len(configs) > 1:  # each in a process of its own, since training on several GPUs starts the command again
        for config in configs:
            # By its path, since `-m` would import from the current folder first.
            command = [sys.executable, str(Path(__file__).with_name("__main__.py")), "train", str(config), *overrides]
            if code := subprocess.run(command).returncode:
                raise typer.Exit(code)
        return
    (config,) = configs
    with errors_as_sentences():
        try:
            from sgm.training import run

            run(config, overrides)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in ("lightning", "cv2"):
                raise
            raise UserError(
                f'Training needs {package}, which is not installed: run `python -m pip install -e ".[train]"` first.'
            ) from None
