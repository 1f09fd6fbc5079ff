"""The report of `sgm data`: what a folder holds, its motion buckets as bars, and a row for each clip."""

from __future__ import annotations

import io
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from sgm.amounts import duration, file_size
from sgm.cli.score import short
from sgm.errors import printable

if TYPE_CHECKING:
    from sgm.training.survey import Row

_BIN, _BINS = 32, 8  # motion buckets in a bar of the histogram, and bars; the last one has all beyond
_BAR = 30  # columns of the longest bar
_MOST_ROWS = 24  # of the table of clips
_MOST_SIZES = 6
_MOST_CROPPED = 2 / 3  # of the picture
_REMARKS = {"unreadable": "cannot be read", "short": "too short", "slow": "too few frames a second", "black": "black"}
_REMARKS |= {"frozen": "stands still", "cut": "no long piece between cuts"}


def histogram(rows: Iterable[Row]) -> list[tuple[int, int | None, int]]:
    """(from, up to, how many of the clips that are trained on have such motion buckets); None: without end."""
    counts = Counter(
        min(int(row.bucket // _BIN), _BINS - 1) for row in rows if row.bucket is not None and not row.left_out
    )
    return [(i * _BIN, (i + 1) * _BIN if i < _BINS - 1 else None, counts[i]) for i in range(_BINS)]


def report(folder: Path, rows: Sequence[Row], frames: int, size: tuple[int, int], split: bool = False) -> str:
    """For people: as wide as the terminal. frames, size: of a sample, (height, width). split: cuts have been split."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = "utf" in (sys.stdout.encoding or "").lower()
    width = shutil.get_terminal_size().columns
    console = Console(file=(file := io.StringIO()), width=width, markup=False, emoji=False, highlight=False)
    total = sum(row.bytes for row in rows)
    length = duration(sum(row.seconds for row in rows))
    console.print(f"{printable(folder)}: {_count(len(rows), 'clip')}, {file_size(total)}, {length}")
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    facts.add_column()
    for name, text in _facts(rows, frames, size, "" if split else f": sgm data {printable(folder)} --split FOLDER"):
        facts.add_row(name, text)
    console.print(facts)
    kept = [row for row in rows if not row.left_out]
    if kept:
        console.print("\nmotion bucket")
        most = max(count for *_, count in histogram(rows)) or 1
        for low, high, count in histogram(rows):
            bar = ("█" if drawn else "#") * -(-count * _BAR // most)
            console.print(f"{f'{low} to {high - 1}' if high else f'{low} on':>10}  {bar} {count or ''}".rstrip())
    console.print()
    table = Table(box=box.SIMPLE_HEAD if drawn else None, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("clip", no_wrap=True)
    for title in ("size", "seconds", "fps", "bucket", "cuts", "samples"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    shown = sorted(rows, key=lambda row: not _remark(row, size))[:_MOST_ROWS]
    for row in sorted(shown, key=lambda row: row.clip):
        table.add_row(short(row.clip), *_cells(row), _remark(row, size))
    console.print(table)
    if len(rows) > len(shown):
        console.print(f"… and {len(rows) - len(shown)} more: --csv FILE has all.")
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


def _facts(rows: Sequence[Row], frames: int, size: tuple[int, int], about_cuts: str) -> Iterator[tuple[str, str]]:
    """What is to be said of all clips, line by line: a name and a text. about_cuts: what can be done with them."""
    from sgm.training.checks import FASTEST, REASONS

    kept = [row for row in rows if not row.left_out]
    samples = sum(row.samples for row in kept)
    yield "trained on", f"{_count(len(kept), 'clip')}: {samples} samples of {frames} frames, {size[1]}×{size[0]}"
    for kind, count in Counter(row.left_out for row in rows if row.left_out).items():
        yield "left out", f"{_count(count, 'clip')}: {REASONS[kind].format(frames=frames)}"
    if read := [row for row in rows if row.frames]:
        sizes = Counter((row.width, row.height) for row in read).most_common()
        more = f", and {len(sizes) - _MOST_SIZES} more" if len(sizes) > _MOST_SIZES else ""
        yield "sizes", ", ".join(f"{w}×{h} ({count})" for (w, h), count in sizes[:_MOST_SIZES]) + more
        for name, values in (("seconds", [row.seconds for row in read]), ("fps", [row.fps for row in read])):
            low, middle, high = (f"{value:.5g}" for value in (min(values), median(values), max(values)))
            yield name, low if low == high else f"{low} to {high}, median {middle}"
    if uneven := sum(row.variable for row in kept):
        yield (
            "uneven",
            f"{_count(uneven, 'clip')}, whose frames come unevenly: the nearest of their mean rate are taken",
        )
    if fast := sum(row.fps > FASTEST for row in kept):
        yield "fast", f"{_count(fast, 'clip')} of more than {FASTEST:g} fps: every second frame is taken, or fewer"
    if hdr := sum(row.hdr for row in kept):
        yield "HDR", f"{_count(hdr, 'clip')}: brought into the usual range"
    if scaled := sum(_scale(row, size) > 1.01 for row in kept):
        yield "scaled up", f"{_count(scaled, 'clip')} smaller than {size[1]}×{size[0]}"
    if cropped := sum(_seen(row, size) < _MOST_CROPPED for row in kept):
        yield "cropped", f"{_count(cropped, 'clip')}, of which less than two thirds of the picture is seen"
    if near := sum(bool(row.like) for row in kept):
        yield "alike", f"{_count(near, 'clip')}: they look like another; delete one of two"
    if cuts := sum(len(row.cuts) for row in rows):
        yield "cuts", f"{cuts} in {_count(sum(bool(row.cuts) for row in rows), 'clip')}{about_cuts}"


def _cells(row: Row) -> list[str]:
    if not row.frames:
        return [""] * 6
    bucket = "" if row.bucket is None else f"{row.bucket:.0f}"
    return [
        f"{row.width}×{row.height}",
        f"{row.seconds:.1f}",
        f"{row.fps:.5g}",
        bucket,
        str(len(row.cuts) or ""),
        str(row.samples or ""),
    ]


def _remark(row: Row, size: tuple[int, int]) -> str:
    """What is to be said of a clip, in a few words; "" where nothing is."""
    remarks = [_REMARKS[row.left_out]] if row.left_out in _REMARKS else []
    remarks += [f"copy of {short(row.copy_of)}"] if row.copy_of else [f"like {short(row.like)}"] if row.like else []
    remarks += ["uneven"] if row.variable else []
    remarks += ["HDR"] if row.hdr else []
    if not row.left_out and (scale := _scale(row, size)) > 1.01:
        remarks.append(f"{scale:.1f}× up")
    return ", ".join(remarks)


def _scale(row: Row, size: tuple[int, int]) -> float:
    """How much larger a clip becomes, to cover (height, width)."""
    return max(size[0] / row.height, size[1] / row.width)


def _seen(row: Row, size: tuple[int, int]) -> float:
    """The share of a clip's picture that is left when it is cropped to (height, width)."""
    return size[0] * size[1] / _scale(row, size) ** 2 / (row.width * row.height)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
