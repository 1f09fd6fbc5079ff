"""`sgm data`: a look over a folder of clips before training, and its clips split at their cuts."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgm.cli.console import echo_result, echo_stderr, errors_as_sentences, path_argument, path_option, progress_bar
from sgm.cli.score import csv_target
from sgm.cli.survey import histogram, report
from sgm.errors import UserError
from sgm.paths import exists, write_new
from sgm.process import importing_torch

if TYPE_CHECKING:
    from sgm.training.split import Split
    from sgm.training.survey import Row


def data(
    folder: Annotated[
        Path, path_argument("A folder of clips, or of shards (.tar); a shard; a list of shards (.txt), a path a line.")
    ],
    config: Annotated[
        Path | None,
        path_option("The training config whose frames and size count; unless given, svd_finetune.yaml."),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, max=1000, help="Frames of a sample, as data.frames.")] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="How much of each clip is decoded; with --split, all of it.")
    ] = 600,
    split: Annotated[
        Path | None, path_option("Make this new folder of what can be trained on, clips split at their cuts.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    to_csv: Annotated[
        str | None, typer.Option("--csv", help="Write a row for each clip there; - prints them instead of tables.")
    ] = None,
) -> None:
    """Look over clips before training: what they are, what speaks against them, what `sgm train` makes of each.

    The exit code is 1 where nothing can be trained on.
    """
    with errors_as_sentences(code=2):
        if as_json and to_csv == "-":
            raise UserError("--json and --csv - would both be printed: give one of them, or a file for the CSV.")
        target = csv_target(to_csv)
        if not exists(folder):
            raise UserError(f"There is no folder {folder}: name the folder of your clips.")
        with importing_torch():
            from sgm.training.schema import read_training_config
            from sgm.training.split import check_split, split_clips
            from sgm.training.survey import survey
            from sgm.versions import bundle

        if split is not None:
            check_split(folder, split)
        default = bundle() / "configs" / "training" / "svd_finetune.yaml"
        settings = read_training_config(config or default)["data"]
    of, size = frames or settings["frames"], (settings["height"], settings["width"])
    done: Split | None = None
    with progress_bar() as show:
        with errors_as_sentences(code=2):
            rows = survey(folder, of, size, math.inf if split else seconds, echo_stderr, show)
        if split is not None:
            done = split_clips(folder, rows, split, of, show)
    if as_json:
        echo_result(json.dumps(_summary(folder, rows, of, size), indent=1))
    elif to_csv == "-":
        echo_result(_csv(rows).rstrip("\n"))
    else:
        echo_result(report(folder, rows, of, size, split is not None))
    if target is not None:
        echo_stderr(f"CSV: {write_new(target, partial(_write, _csv(rows)))}")
    if done is not None:
        echo_stderr(
            f"{done.folder}: {done.whole} clips as they are and {done.copied + done.encoded} pieces, of which "
            f"{done.copied} have the source's coded frames; {done.short} of fewer than {of} frames are left out."
        )
    raise typer.Exit(0 if any(not row.left_out for row in rows) else 1)


def _write(content: str, path: Path) -> None:
    path.write_text(content, "utf-8", "surrogateescape", "")


def _summary(folder: Path, rows: Sequence[Row], frames: int, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "frames": frames,
        "height": size[0],
        "width": size[1],
        "kept": sum(not row.left_out for row in rows),
        "left_out": dict(Counter(row.left_out for row in rows if row.left_out)),
        "samples": sum(row.samples for row in rows if not row.left_out),
        "motion_buckets": [{"from": low, "to": high, "clips": count} for low, high, count in histogram(rows)],
        "clips": [asdict(row) for row in rows],
    }


def _csv(rows: Sequence[Row]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, asdict(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(row), "cuts": " ".join(f"{cut:g}" for cut in row.cuts)} for row in rows)
    return file.getvalue()
