"""`sgm score`: figures of finished clips, as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from sgm.cli.console import echo_result, echo_stderr, errors_as_sentences, path_argument, path_option, progress_bar
from sgm.cli.recipe import stored_frames, stored_picture
from sgm.errors import UserError, printable
from sgm.paths import check_writable, contents, exists, is_file, is_folder, user_path, write_new
from sgm.process import importing_torch
from sgm.versions import VIEW_VERSIONS

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from sgm import VideoRequest

Row = dict[str, Any]  # "clip", the figures of SCORES, and "error"
_LONGEST_NAME = 26  # columns of the terminal for a clip's name


class ScoreCommand(typer.core.TyperCommand):
    """A command whose help ends with what each figure is."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with importing_torch():
            from sgm import SCORES

        with formatter.section("Figures"):
            rows = [(f"{name}, {score.unit}".rstrip(", "), score.meaning) for name, score in SCORES.items()]
            formatter.write_dl(rows)


def score(
    clips: Annotated[
        list[Path],
        path_argument("Clips: mp4, mkv, webm, gif or webp; of a folder, all videos in it, such as the page's."),
    ],
    picture: Annotated[
        Path | None,
        path_option("What they were made of; unless given, the page's copy beside a clip, if there is one."),
    ] = None,
    reference: Annotated[Path | None, path_option("A clip of their size and length to compare each with.")] = None,
    fvd: Annotated[
        Path | None, path_option("A folder of real videos: also say how far all clips are from them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    to_csv: Annotated[
        str | None, typer.Option("--csv", help="Write a CSV there; - prints it instead of a table.")
    ] = None,
) -> None:
    """Measure how clips move, hold and flicker, and how near they are to their picture or to another clip.

    A figure that cannot be known is left out of the table, null in JSON and empty in CSV. A clip that cannot be read
    costs its own row, and the exit code is 1.
    """
    with errors_as_sentences(code=2):
        if as_json and to_csv == "-":
            raise UserError("--json and --csv - would both be printed: give one of them, or a file for the CSV.")
        target = csv_target(to_csv)
        with importing_torch():
            from sgm import SCORES, files_of, fvd_missing, lpips_missing, open_picture, read_frames, score_clip

        paths = list(expanded(clips))
        if picture is not None:
            open_picture(picture)
        other = None if reference is None else read_frames(reference)[0]
        real = [] if fvd is None else files_of(fvd, "clip", echo_stderr)
        if fvd is not None and (reason := fvd_missing()):
            raise UserError(reason)
    if reference is not None and (reason := lpips_missing()):
        echo_stderr(reason)
    rows: list[Row] = []
    lengths: dict[Path, int] = {}
    distance: float | None = None
    with progress_bar() as show:
        for number, path in enumerate(paths):
            show(f"clip {number + 1}/{len(paths)}", number / len(paths))
            row: Row = {"clip": str(path), **dict.fromkeys(SCORES), "error": None}
            try:
                frames = read_frames(stored_frames(path) or path)[0]
                source, request = _made_of(path, frames, picture)
                row |= score_clip(frames, source, other, request)
                lengths[path] = len(frames)
            except (UserError, OSError) as error:
                row["error"] = str(error) if str(path) in str(error) else f"{path}: {error}"
                echo_stderr(f"Error: {row['error']}")
            rows.append(row)
        if fvd is not None:
            try:
                distance = _distance(lengths, real, show)
            except UserError as error:
                echo_stderr(f"Error: {error}")
    if as_json:
        echo_result(json.dumps({"clips": rows, "fvd": distance}, indent=1))
    elif to_csv == "-":
        echo_result(_csv(rows).rstrip("\n"))
    elif lengths:
        echo_result(_table(rows, shutil.get_terminal_size().columns))
    if target is not None:
        echo_stderr(
            f"CSV: {write_new(target, lambda path: path.write_text(_csv(rows), 'utf-8', 'surrogateescape', ''))}"
        )
    if distance is not None and not as_json:
        echo_stderr(f"FVD to the videos of {fvd}: {distance:.1f}")
    raise typer.Exit(1 if any(row["error"] for row in rows) or (fvd is not None and distance is None) else 0)


def csv_target(to_csv: str | None) -> Path | None:
    """The CSV's file, None where there is none. Raises UserError for one that cannot be written."""
    if to_csv is None or to_csv == "-":
        return None
    target = user_path(to_csv)
    if is_folder(target):
        raise UserError(f"--csv {target} is a folder: give the name of a file.")
    check_writable(target.parent)
    exists(target)
    return target


def expanded(paths: list[Path]) -> Iterator[Path]:
    """The clips, those of a folder by name; what is left out of it is said.

    Of the page's outputs folder the videos in it, then the clips of its jobs, and no word of the rest; of a job's
    folder, the job's clip.
    """
    from sgm import files_of

    for path in paths:
        if not is_folder(path):
            yield path
        elif _is_job(path):
            yield path / "clip.mp4"
        elif of_jobs := [place / "clip.mp4" for place in contents(path) if _is_job(place)]:
            with suppress(UserError):  # there are no others
                yield from files_of(path, "clip", lambda line: None)
            yield from of_jobs
        else:
            yield from files_of(path, "clip", echo_stderr)


def _is_job(folder: Path) -> bool:
    """Whether a folder is that of a job of the page with its clip; not where that cannot be known."""
    try:
        return is_file(folder / "job.json") and is_file(folder / "clip.mp4")
    except UserError:
        return False


def _made_of(path: Path, frames: np.ndarray, given: Path | None) -> tuple[Image.Image | None, VideoRequest | None]:
    """What a clip was made of, cropped where it has no recipe, and its recipe's request.

    None where that is not known, or its first frame shows another: with SV3D, and in a film of several clips.
    """
    from sgm import fit_picture, open_picture, read_settings, request_of

    size = frames.shape[2], frames.shape[1]
    try:
        request = request_of(read_settings(path) or {})
    except UserError:  # there is no recipe, or none that can be used
        return None if given is None else fit_picture(open_picture(given), *size), None
    source = given or (stored_picture(path) if len(frames) == request.frames else None)
    if source is None or request.family.input_frame != 0 or request.size != size or request.version in VIEW_VERSIONS:
        return None, None
    return open_picture(source, keep_alpha=request.fit == "object"), request


def _distance(lengths: dict[Path, int], real: list[Path], show: Callable[[str, float], None]) -> float:
    """FVD of the clips that could be read. Raises UserError."""
    from sgm import fvd, read_frames

    def frames_of(paths: list[Path], start: float) -> Iterator[np.ndarray]:
        for number, path in enumerate(paths):
            show("FVD", start + number / len(paths) / 2)
            frames = read_frames(path)[0]
            if len(frames) < shortest:
                raise UserError(
                    f"{path} has {len(frames)} frames, fewer than the {shortest} of the clips: leave it out."
                )
            yield frames

    shortest = min(lengths.values(), default=0)
    return fvd(frames_of(list(lengths), 0), frames_of(real, 0.5), shortest)


def _csv(rows: list[Row]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _table(rows: list[Row], width: int) -> str:
    """The figures that are known, in as many tables below each other as the terminal's width asks for."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    from sgm import SCORES

    names = [short(row["clip"]) for row in rows]
    columns: list[tuple[str, list[str]]] = []
    for name, score in SCORES.items():
        known = [row[name] for row in rows if row[name] is not None]
        if known:
            values = [row[name] for row in rows] + ([sum(known) / len(known)] if len(rows) > 1 else [])
            columns.append((score.title, ["-" if v is None else f"{v:.{score.digits}f}" for v in values]))
    names += ["mean"] if len(rows) > 1 else []
    lines = box.SIMPLE_HEAD if "utf" in (sys.stdout.encoding or "").lower() else None
    console = Console(file=(file := io.StringIO()), width=width, markup=False, emoji=False)
    first = max(map(cell_len, names)) + 1
    while columns:
        table = Table(box=lines, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
        table.add_column("clip", no_wrap=True)
        used, count = first, 0
        for title, cells in columns:
            used += max(len(title), *map(len, cells)) + 2
            if used > width and count:
                break
            table.add_column(title, justify="right", no_wrap=True)
            count += 1
        for line, name in enumerate(names):
            if line == len(rows):
                table.add_section()
            table.add_row(name, *(cells[line] for _, cells in columns[:count]))
        columns = columns[count:]
        console.print(table)
        if columns:
            console.print()
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def short(name: str) -> str:
    """A path in few columns: its end, which tells it from others."""
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
