"""`sgm detect`: whether a file carries the invisible watermark, and what its recipe says."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from sgm.cli.console import echo_result, echo_stderr, path_argument, progress_bar
from sgm.errors import UserError, printable
from sgm.process import importing_torch


def detect(files: Annotated[list[Path], path_argument("Videos, animations or pictures.")]) -> None:
    """Say whether files carry the watermark by which the clips made here are known.

    A line for each: marked, likely or no, how many of the 48 bits match, and the recipe, if there is one. Exit codes:
    0, all are marked or likely; 1, some are not; 2, some cannot be read.
    """
    with importing_torch():
        from sgm import detect_watermark

    code = 0
    with progress_bar() as show:
        for number, file in enumerate(files):
            show(f"file {number + 1}/{len(files)}", number / len(files))
            try:
                reading = detect_watermark(file, str(file))
            except (UserError, OSError) as error:
                echo_stderr(f"Error: {error if str(file) in str(error) else f'{file}: {error}'}")
                code = 2
                continue
            echo_result(f"{printable(file)}: {reading}; {_recipe(file)}")
            code = max(code, reading.verdict == "no")
    raise typer.Exit(code)


def _recipe(file: Path) -> str:
    """What a file's recipe says of its origin, in words."""
    from sgm import is_recipe, read_settings

    settings: dict[str, Any] | None = None
    with contextlib.suppress(UserError, OSError):
        settings = read_settings(file)
    if settings is None or not is_recipe(settings):
        return "no recipe"
    of = {name: printable(settings.get(name)) for name in ("version", "seed") if name in settings}
    mark = settings.get("sgm")
    if isinstance(mark, dict) and isinstance(mark.get("watermark"), bool):
        of["watermark"] = "yes" if mark["watermark"] else "no"
    return "recipe: " + ", ".join(f"{name} {value}" for name, value in of.items())
