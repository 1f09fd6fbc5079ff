"""`sgm motion`: the motion buckets of clips, in all and over time, as a table, a CSV or a plot."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgm.cli.console import echo_result, echo_stderr, errors_as_sentences, path_argument, path_option, progress_bar
from sgm.cli.score import csv_target, expanded, short
from sgm.errors import UserError
from sgm.paths import check_writable, exists, write_new
from sgm.process import importing_torch

if TYPE_CHECKING:
    from sgm import Motion

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 24  # of a clip in the table


def motion(
    clips: Annotated[
        list[Path],
        path_argument("Clips: mp4, mkv, webm, gif or webp; of a folder, all videos in it, such as the page's."),
    ],
    to_csv: Annotated[
        str | None, typer.Option("--csv", help="Write each step's bucket there; - prints them instead of the table.")
    ] = None,
    plot: Annotated[Path | None, path_option("Draw the buckets over time there, a .png.")] = None,
) -> None:
    """Say which motion bucket clips have: in all, the least, the most and over time.

    A clip that cannot be read costs its own row, and the exit code is 1.
    """
    with errors_as_sentences(code=2):
        target = csv_target(to_csv)
        if plot is not None:
            if plot.suffix.lower() != ".png":
                raise UserError(f"--plot {plot} must be a name ending in .png.")
            check_writable(plot.parent)
            exists(plot)
        with importing_torch():
            from sgm import draw_motion, measure_motion
        paths = list(expanded(clips))
    measured: dict[Path, Motion] = {}
    failed = False
    with progress_bar() as show:
        for number, path in enumerate(paths):

            def on_frame(done: int, of: int, number: int = number) -> None:
                show(f"clip {number + 1}/{len(paths)}", (number + done / of) / len(paths))

            try:
                measured[path] = measure_motion(path, on_frame=on_frame)
            except (UserError, OSError) as error:
                failed = True
                echo_stderr(f"Error: {error if str(path) in str(error) else f'{path}: {error}'}")
    if measured:
        content = _csv(measured)
        echo_result(content.rstrip("\n") if to_csv == "-" else _table(measured))
        if target is not None:
            echo_stderr(f"CSV: {write_new(target, partial(_write, content))}")
        if plot is not None:
            picture = draw_motion(
                [(short(str(path)), move.seconds.tolist(), move.buckets.tolist()) for path, move in measured.items()]
            )
            echo_stderr(f"Plot: {write_new(plot, picture.save)}")
    raise typer.Exit(1 if failed else 0)


def _write(content: str, path: Path) -> None:
    path.write_text(content, "utf-8", "surrogateescape", "")


def _csv(measured: dict[Path, Motion]) -> str:
    """A row for each step of each clip, with the clip's own bucket."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["clip", "clip_motion", "clip_bucket", "frame", "seconds", "motion", "bucket"])
    for path, move in measured.items():
        mean = f"{move.steps.mean():.4f}", f"{move.bucket:.1f}"
        for number, step in enumerate(zip(move.seconds, move.steps, move.buckets, strict=True), 2):
            seconds, percent, bucket = step
            writer.writerow([path, *mean, number, f"{seconds:.3f}", f"{percent:.4f}", f"{bucket:.1f}"])
    return file.getvalue()


def _table(measured: dict[Path, Motion]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = "utf" in (sys.stdout.encoding or "").lower()
    table = Table(box=box.SIMPLE_HEAD if drawn else None, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("clip", no_wrap=True)
    for title in ("frames", "fps", "motion", "bucket", "least", "most"):
        table.add_column(title, justify="right", no_wrap=True)
    if drawn:
        table.add_column("over time", no_wrap=True)
    for path, move in measured.items():
        numbers = move.bucket, move.buckets.min(), move.buckets.max()
        cells = [
            str(len(move.steps) + 1),
            f"{move.fps:g}"[:6],
            f"{move.steps.mean():.3f}",
            *(f"{n:.0f}" for n in numbers),
        ]
        table.add_row(short(str(path)), *cells, *([_bars(move.buckets.tolist())] if drawn else []))
    console = Console(file=(file := io.StringIO()), width=120, markup=False, emoji=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _bars(values: Sequence[float]) -> str:
    """A clip's buckets as bars, from none to its largest: at most `_MOST_BARS`, each the mean of a stretch."""
    count, highest = min(len(values), _MOST_BARS), max(*values, 1e-6)
    ends = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(ends)]
    return "".join(_BARS[min(int(mean / highest * len(_BARS)), len(_BARS) - 1)] for mean in means)
