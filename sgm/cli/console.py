"""Helpers of all commands: messages on stderr, errors, a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from sgm.errors import UserError, printable


def echo_stderr(message: str) -> None:
    """Print a message on stderr, in one line; control characters in the names that it holds become escapes."""
    typer.echo(printable(message, 2000), err=True)


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
