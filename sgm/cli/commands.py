"""All commands of the command line, in one group."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from sgm import __version__
from sgm.cli.console import Commands
from sgm.cli.data import data
from sgm.cli.detect import detect
from sgm.cli.motion import motion
from sgm.cli.options import RayCommand
from sgm.cli.page import app
from sgm.cli.recipe import recipe
from sgm.cli.repeat import repeat
from sgm.cli.sample import SampleCommand, sample
from sgm.cli.score import ScoreCommand, score
from sgm.cli.sweep import sweep
from sgm.cli.train import train
from sgm.cli.weights import convert, download, models

cli = typer.Typer(
    cls=Commands,
    help="Turn pictures into videos on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain errors: one line that can be read, copied and searched for
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    """The callback of `--version`: print the program's version and exit."""
    if value:
        typer.echo(f"sgm-video {__version__}")
        raise typer.Exit


@cli.callback()
def _prepare(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and leave.")
    ] = False,
) -> None:
    for stream in (sys.stdout, sys.stderr):  # printing a file name that the terminal cannot encode must not fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


for command in (sample, sweep):
    cli.command(cls=SampleCommand)(command)
cli.command(cls=ScoreCommand)(score)
cli.command(cls=RayCommand)(app)
for command in (motion, repeat, recipe, detect, models, download, convert, data, train):
    cli.command()(command)
