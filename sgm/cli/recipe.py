"""`sgm recipe`: the settings that made a clip, as YAML, as a command or as a Python program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sgm.cli.console import echo_result, path_argument
from sgm.paths import is_file
from sgm.process import importing_torch


def recipe(
    clip: Annotated[Path, path_argument("A video that was made here, or a YAML of settings.")],
    form: Annotated[
        Literal["yaml", "command", "python"],
        typer.Option("--as", help="yaml: all settings, for `sgm sample --recipe`; command or python: what to run."),
    ] = "yaml",
) -> None:
    """Print the settings that made a clip."""
    with importing_torch():
        from sgm import RECIPE_TEXTS, read_recipe, request_of

    settings = read_recipe(clip)
    request_of(settings)  # raises UserError for invalid values
    echo_result(RECIPE_TEXTS[form](settings).rstrip("\n"))


def stored_frames(clip: Path) -> Path | None:
    """The page's copy of a clip's frames as the model drew them, where the clip lies in a job's folder."""
    return stored_picture(clip, "frames.mkv") if clip.name == "clip.mp4" else None


def stored_picture(clip: Path, name: str = "input.png") -> Path | None:
    """The page's copy of what a clip was made of, where the clip lies in a job's folder.

    name: last.png for the last picture, input.mkv for the clip of which a view was made.
    """
    stored = clip.with_name(name)
    return stored if is_file(stored) and is_file(clip.with_name("job.json")) else None
