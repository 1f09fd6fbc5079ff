"""`sgm sweep`: a clip for each combination of settings, and a grid of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sgm.cli.batch import BYTES_PER_PIXEL
from sgm.cli.console import duration, echo_result, echo_stderr, errors_as_sentences, path_argument, path_option
from sgm.cli.folder import TABLE, Pictures, SweepFolder
from sgm.cli.making import Making
from sgm.cli.sample import chosen, dtype_of_recipe, pictures_of, starting_point
from sgm.errors import UserError
from sgm.paths import check_writable, exists
from sgm.versions import DEFAULT_VERSION, VERSIONS

if TYPE_CHECKING:
    from sgm import Axis, Cell

_MOST_CELLS = 1000  # `sgm.MAX_CELLS`, which is not imported for the help
_SHOWN = 8  # values of an axis that the plan lists


def sweep(
    ctx: typer.Context,
    pictures: Annotated[
        list[Path], path_argument("Pictures, or folders of pictures.", show_default=False, metavar="PICTURE...")
    ],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="A setting and its values: steps=10,25,50, seed=1..4, steps=10..50..10, period=1/0.5,0.25 (lists "
            "with / between), version=svd_tiny,svd. Once for each setting.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="steps=200: also make each clip with this setting instead of its own, and measure how far it is "
            "from that.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[str | None, typer.Option(help=f"Model version. Unless given, {DEFAULT_VERSION}.")] = None,
    recipe: Annotated[
        Path | None, path_option("Settings to start from: a video that was made here, or a YAML.")
    ] = None,
    out: Annotated[Path, path_option("A folder. What is there of this sweep is not made again.")] = Path(
        "outputs/sweep"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made and how long it takes.")] = False,
    max_cells: Annotated[int, typer.Option(help="The most clips.", min=1)] = _MOST_CELLS,
    background_model: Annotated[str, typer.Option(help="rembg's model that removes the background, SV3D.")] = "u2net",
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Take as little of the GPU's memory as can be; a bit slower.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ... Unless given, the fastest.")] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, typer.Option(help="Unless given, what suits the device.")
    ] = None,
    checkpoint: Annotated[Path | None, path_option("Other weights: a file or a diffusers folder.")] = None,
    base: Annotated[Path | None, path_option("What a checkpoint of the network alone is laid over.")] = None,
) -> None:
    """Make a clip of each picture with each combination of settings, a grid of all in sync, and a table.

    FOLDER then holds clips/, each with its recipe, grid.mp4, grid.png and sweep.csv. Stopped, the same command goes
    on where it was. All settings below can be varied, too, and the version.
    """
    with errors_as_sentences(code=2):
        axes, cells, compared, settings = _planned(ctx, pictures, vary or [], reference or [], version, recipe, max_cells)
        if checkpoint and len({cell.request.version for cell in [*cells, *compared.values()]}) > 1:
            raise UserError("--checkpoint is one model's, but several versions are swept: leave out one of the two.")
        from sgm import choose_device

        target = choose_device(device)
        kind = dtype or dtype_of_recipe(settings, target)
    from sgm import check_weights, grid_pages, load_engine, making_order, typical_seconds, video_encoder

    order = making_order(cells, compared)
    shown = Pictures(background_model)
    files = list(dict.fromkeys(cell.picture for cell in cells))
    folder = SweepFolder(out, axes, files, shown)
    places = {cell: folder.find(cell, reference=cell not in set(cells)) for cell in order}
