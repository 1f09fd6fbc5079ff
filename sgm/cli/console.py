"""Helpers of all commands: paths, messages on stderr, results on stdout, errors, a progress bar."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import typer.core

from sgm.amounts import duration
from sgm.errors import UserError, printable
from sgm.paths import user_path

if TYPE_CHECKING:
    from sgm import Progress


def _named_path(text: str) -> Path:
    try:
        return user_path(text)
    except UserError as error:
        raise typer.BadParameter(str(error)) from None


def path_argument(about: str, **options: Any) -> Any:
    """The metadata of an argument that is a path: "" is refused, `~` is the home folder."""
    return typer.Argument(parser=_named_path, help=about, **options)


def path_option(about: str, **options: Any) -> Any:
    """The metadata of an option whose value is a path, as of `path_argument`."""
    return typer.Option(parser=_named_path, help=about, **options)


def echo_stderr(message: str) -> None:
    """Print a message on stderr, in one line; control characters in the names that it holds become escapes."""
    with contextlib.suppress(OSError):  # what nobody can read stops no work
        typer.echo(printable(message, 2000), err=True)


def echo_line(line: object) -> None:
    """Print on stdout, as `echo_stderr` does, a line for people."""
    echo_result(printable(line, 2000))


def echo_result(text: object) -> None:
    """Print a result on stdout: for programs as it is; on a terminal, control characters become escapes.

    Raises UserError where stdout is full.
    """
    if sys.stdout and sys.stdout.isatty():
        text = "\n".join(printable(line, len(line)) for line in str(text).split("\n"))
    try:
        typer.echo(text, color=True)  # else it leaves out what looks like a colour, even of a path
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever reads has heard enough
            raise
        raise UserError(f"{printable(text, 200)} cannot be printed on stdout ({error.strerror}).") from error


@contextmanager
def errors_as_sentences(code: int = 1) -> Iterator[None]:
    """Print what the user or the system did wrong in a sentence and exit with `code`; exit with 130 on Ctrl-C."""
    try:
        yield
    except UserError as error:
        echo_stderr(f"Error: {error}" if error.exit_code is None else str(error))
        raise typer.Exit(error.exit_code or code) from None
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        what = error.filename or ("stdout" if error.errno == errno.ENOSPC else "")  # a file's writer names its file
        echo_stderr(f"Error: {f'{what}: ' if what else ''}{error.strerror or error}.")
        raise typer.Exit(code) from None
    except MemoryError:
        echo_stderr("Error: This needs more memory than there is.")
        raise typer.Exit(code) from None
    except KeyboardInterrupt:
        echo_stderr("Stopped.")
        raise typer.Exit(130) from None


class Commands(typer.core.TyperGroup):
    """All commands, within one boundary for errors, from reading their arguments on."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with errors_as_sentences():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with errors_as_sentences():
            try:
                os.getcwd()  # without which torch cannot be imported, not even for help
            except OSError:
                raise UserError("The current folder is gone or cannot be entered: change to another one.") from None
            return super().invoke(ctx)


@contextmanager
def progress_bar() -> Iterator[Callable[..., None]]:
    """A progress bar on stderr; yields the function that updates it: (phase, share that is done, 0 to 1, left).

    left: seconds, where they are known better than by the bar's speed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Left(TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            left = task.fields["left"]
            return super().render(task) if left is None else Text(f"{duration(left)} left", "progress.remaining")

    console = Console(stderr=True)
    bar_width = max(8, min(40, console.width - 44))  # beside the longest texts
    columns = TextColumn("{task.description:<13}"), BarColumn(bar_width), TaskProgressColumn(), Left()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0, left=None)

        def show(phase: str, share: float, left: float | None = None) -> None:
            bar.update(task, description=phase, completed=share, left=left)

        yield show


def show_step(show: Callable[[str, float], None], notes: set[str], progress: Progress) -> None:
    """Show a generation's progress on a bar, and print each note on memory that is not among `notes` yet."""
    if progress.note and progress.note not in notes:
        notes.add(progress.note)
        echo_stderr(progress.note)
    show(f"{progress.phase} {progress.step}/{progress.total}", progress.fraction)
