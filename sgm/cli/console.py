"""Helpers of all commands: messages on stderr, errors, a progress bar, unused file names."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import typer

from sgm.errors import UserError

echo_stderr = partial(typer.echo, err=True)


@contextmanager
def errors_as_sentences(code: int = 1) -> Iterator[None]:
    """Print a UserError's message and exit with `code`; exit with 130 on Ctrl-C."""
    try:
        yield
    except UserError as error:
        echo_stderr(f"Error: {error}")
        raise typer.Exit(code) from None
    except OSError as error:
        if error.filename is None:  # else the system refuses a path, such as a name that is too long
            raise
        echo_stderr(f"Error: {error.filename}: {error.strerror}.")
        raise typer.Exit(code) from None
    except KeyboardInterrupt:
        echo_stderr("Stopped.")
        raise typer.Exit(130) from None


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None]]:
    """A progress bar on stderr; yields the function that updates it: (phase, share that is done, 0 to 1)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description:<13}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda phase, share: bar.update(task, description=phase, completed=share)


def check_writable(folder: Path) -> None:
    """Raise UserError for a folder that cannot be written, before the work rather than after it."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"Nothing can be written to {folder}: choose another place with --out.")


def write_new(path: Path, write: Callable[[Path], object]) -> Path:
    """Have a file written as `path`, or with -2, -3, ... before its suffix: nothing that exists is overwritten.

    An empty file takes the name before `write` begins, so that no other process can take it; the folder is made.
    Returns the name. Raises UserError if nothing can be written there.
    """
    name, numbers = path, itertools.count(2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                name.open("x").close()
                break
            except FileExistsError:
                name = path.with_name(f"{path.stem}-{next(numbers)}{path.suffix}")
        try:
            write(name)
        except BaseException:
            name.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{name} cannot be written ({reason}): make room there or choose another place.") from error
    return name
