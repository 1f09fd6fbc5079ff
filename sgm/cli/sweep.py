"""`sgm sweep`: a clip for each combination of settings, and a grid of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sgm.amounts import duration
from sgm.cli.batch import BYTES_PER_PIXEL
from sgm.cli.console import (
    echo_line,
    echo_result,
    echo_stderr,
    errors_as_sentences,
    path_argument,
    path_option,
)
from sgm.cli.ends import Last, Loop, last_picture, with_ends
from sgm.cli.folder import TABLE, Pictures, SweepFolder
from sgm.cli.making import Making
from sgm.cli.options import BackgroundModel, Base, Checkpoint, Device, Dtype, Gpus, LowMemory, ModelVersion, Recipe
from sgm.cli.recipe import stored_picture
from sgm.cli.sample import chosen, dtype_of_recipe, pictures_of, starting_point
from sgm.errors import UserError
from sgm.paths import check_writable, is_file, locked
from sgm.versions import VERSIONS

if TYPE_CHECKING:
    from sgm import Axis, Cell

_SHOWN = 8  # values of an axis that the plan lists


class _Plan(NamedTuple):
    """What is to be made. compared: each cell's reference. settings: the recipe's that the sweep starts from."""

    files: list[Path]
    axes: list[Axis]
    cells: list[Cell]
    compared: dict[Cell, Cell]
    settings: dict[str, Any] | None


def sweep(
    ctx: typer.Context,
    pictures: Annotated[
        list[Path] | None, path_argument("Pictures, or folders of pictures.", show_default=False, metavar="PICTURE")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="A setting and its values, as steps=10,25,50, seed=1..4, steps=10..50..10, version=svd,svd_xt, or two "
            "lists, period=1/0.5,0.25. Once for each setting that varies."
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="As in steps=200: makes each clip so, too, and says how far the others are from that."),
    ] = None,
    version: ModelVersion = None,
    recipe: Recipe = None,
    last: Last = None,
    loop: Loop = False,
    out: Annotated[Path, path_option("A folder. What is there of this sweep is not made again.")] = Path(
        "outputs/sweep"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made and how long it takes.")] = False,
    max_cells: Annotated[int, typer.Option(help="The most clips.", min=1)] = 1000,
    background_model: BackgroundModel = "u2net",
    low_memory: LowMemory = False,
    device: Device = None,
    gpus: Gpus = 1,
    dtype: Dtype = None,
    checkpoint: Checkpoint = None,
    base: Base = None,
) -> None:
    """Make a clip of each picture with each combination of settings, a grid of all in sync, and a table.

    The folder then holds clips/, each with its recipe, grid.mp4, grid.png and sweep.csv. Once stopped, the same command
    goes on where it was. Each setting below can be varied, or set for all. With --recipe, the settings of a video that
    was made here, and without a picture, the page's copy of its own. With --last, all end at one picture; with --vary
    ends=last,loop, half of them.
    """
    from sgm import (
        check_credentials,
        check_weights,
        choose_device,
        grid_pages,
        load_engine,
        making_order,
        video_encoder,
    )

    with errors_as_sentences(code=2):
        ends_vary = any(text.partition("=")[0].strip() == "ends" for text in vary or ())
        plan = _plan(
            ctx.meta["fields"] if ends_vary and not loop else with_ends(ctx.meta["fields"], last, loop),
            pictures or _pictures_of(recipe),
            vary or [],
            reference or [],
            version,
            recipe,
            max_cells,
        )
        order = making_order(plan.cells, plan.compared)
        between = next((cell.request for cell in order if cell.request.takes_last), None)
        if last and not between:
            raise UserError("None of these clips ends at a last picture: leave out --last.")
        goal = last_picture(between, last, recipe) if between else None
        versions = list(dict.fromkeys(cell.request.version for cell in order))
        if checkpoint and len(versions) > 1:
            raise UserError(
                f"--checkpoint is one model's, but these are {', '.join(versions)}: leave out one of the two."
            )
        target = choose_device(device)
        kind = dtype or dtype_of_recipe(plan.settings, target)
    opened = Pictures(background_model, goal)
    folder = SweepFolder(out, plan.axes, plan.files, opened)
    extra = set(order) - set(plan.cells)

    def found(cells: Iterable[Cell]) -> dict[Cell, tuple[Path, dict[str, Any] | None]]:
        return {cell: folder.find(cell, reference=cell in extra) for cell in cells}

    places = found(order)
    weights: dict[str, Any] = {"checkpoint": checkpoint, "base": base, "loras": ctx.meta["loras"]}
    load = partial(load_engine, **weights, device=device, gpus=gpus, dtype=kind, low_memory=low_memory)
    price = partial(_price, device=target.type)
    making = Making(folder, opened, order, places, plan.compared, price, load, low_memory)
    say = echo_line if dry_run else echo_stderr
    for line in _described(plan, order, making, target.type):
        say(line)
    kept = [recipe for _, recipe in places.values() if recipe is not None]
    for line in _changed(kept, target.type, kind, checkpoint, base):
        say(line)
    # What can be known before the work, in the order of its cost.
    todo = [cell.request for cell in order if cell not in making.made]
    check_writable(out, int(sum(of.frames * of.width * of.height for of in todo) * BYTES_PER_PIXEL))
    video_encoder()
    check_credentials()
    for name, lora in dict.fromkeys((of.version, of.lora) for of in todo):
        check_weights(name, **weights, lora=lora)
    if dry_run:
        return
    go_on = f"What is made stays in {out}, and the same command goes on from there."
    busy = f"Another sgm sweep is at work in {out}: wait for it, or name another folder with --out."
    with locked(out / ".sweep.lock", busy, "--out"):
        try:
            folder.read()  # another process may have been at work until now
            making.add_places(found(cell for cell in order if cell not in making.made))
            making.run(plan.cells)
            making.draw(grid_pages(plan.cells, plan.axes, [path.name for path in plan.files]), _title(plan))
        except KeyboardInterrupt:
            echo_stderr(f"Stopped after {len(making.made)} of {len(order)} clips. {go_on}")
            raise typer.Exit(130) from None
        except (UserError, OSError) as error:
            reason = error if isinstance(error, UserError) else f"{error.filename or out}: {error.strerror or error}."
            raise UserError(f"{reason} {go_on}") from error
    echo_result(out / TABLE)
    if failed := len(order) - len(making.made):
        echo_stderr(f"{failed} of {len(order)} clips failed; the same command tries them again.")
    raise typer.Exit(1 if failed else 0)


def _plan(
    fields: dict[str, Any],
    pictures: Sequence[Path],
    vary: Sequence[str],
    reference: Sequence[str],
    version: str | None,
    recipe: Path | None,
    limit: int,
) -> _Plan:
    """Read the options. Raises UserError for what cannot be made."""
    start, settings = starting_point(recipe)
    from sgm import Axis, cells, references_of

    axes = [Axis.parse(text) for text in vary]
    fixed = chosen(version, {**dict.fromkeys(axis.name for axis in axes), **fields})
    fixed = {name: value for name, value in fixed.items() if value is not None}
    files = _files(pictures)
    if not axes and len(files) == 1:
        raise UserError("Nothing varies: say what does, as in --vary steps=10,25,50, or give several pictures.")
    try:
        made = cells(start, axes, files, fixed, limit)
    except UserError as error:
        raise UserError(str(error).replace("raise the limit", "say --max-cells")) from None
    others = {axis.name: axis.values for axis in map(Axis.parse, reference)}
    if several := [name for name, values in others.items() if len(values) > 1]:
        raise UserError(f"--reference {several[0]} has several values: give one, with which the others are compared.")
    values = {name: value for name, (value,) in others.items()}
    return _Plan(files, axes, made, references_of(made, values) if values else {}, settings)


def _pictures_of(recipe: Path | None) -> list[Path]:
    """The picture of a recipe. Raises UserError where there is none."""
    stored = recipe and stored_picture(recipe)
    if not stored:
        lack = f"{recipe} has no picture beside it" if recipe else "Missing argument 'PICTURE'"
        raise UserError(f"{lack}: give pictures, as in sgm sweep photo.jpg …")
    return [stored]


def _files(pictures: Iterable[Path]) -> list[Path]:
    """The pictures, those of folders by name. Raises UserError for one that is missing, or given twice."""
    files: list[Path] = []
    for path in (file for picture in pictures for file in pictures_of(picture)):
        if not is_file(path):
            raise UserError(f"There is no picture at {path}: it is missing, or no file.")
        if path in files:
            raise UserError(f"{path} is given twice: give each picture once.")
        files.append(path)
    return files


def _price(cell: Cell, device: str) -> tuple[float, float]:
    """Seconds that are typical of a cell's clip, and of loading its model."""
    import torch

    from sgm import typical_seconds

    seconds = {
        phase: sum(parts) for phase, parts in typical_seconds(cell.request, device, torch.get_num_threads()).items()
    }
    return sum(seconds.values()) - seconds["load"], seconds["load"]


def _described(plan: _Plan, order: Sequence[Cell], making: Making, device: str) -> list[str]:
    """The axes, and how much is to be made, in lines."""
    axes = [(axis.name, [axis.field.text(value) for value in axis.values]) for axis in plan.axes]
    if len(plan.files) > 1:
        axes.insert(0, ("picture", [path.name for path in plan.files]))
    wide = max(len(name) for name, _ in axes)
    between = {axis.name: " / " for axis in plan.axes if axis.field.kind is tuple}
    lines = [f"{name:<{wide}}  {_listed(texts, between.get(name, ', '))}" for name, texts in axes]
    references, made = len(order) - len(plan.cells), len(making.made)
    line = f"{len(order):,} clip{'s' * (len(order) > 1)}"
    if references:
        line += f", {references:,} of them references"
    if made:
        line += f", {'all' if made == len(order) else f'{made:,}'} there already"
    if evaluations := sum(cell.request.evaluations for cell in order if cell not in making.made):
        line += f"; {evaluations:,} evaluation{'s' * (evaluations > 1)} of the network"
        line += f", about {duration(making.seconds)} on {device}"
    notes = dict.fromkeys(note for cell in order for note in cell.request.notes)
    return [*lines, f"{line}.", *notes]


def _listed(texts: Sequence[str], between: str) -> str:
    if len(texts) > _SHOWN:
        return f"{between.join(texts[: _SHOWN - 2])}{between}… {texts[-1]} ({len(texts):,} values)"
    return between.join(texts)


def _changed(
    kept: Sequence[dict[str, Any]], device: str, dtype: str | None, checkpoint: Path | None, base: Path | None
) -> list[str]:
    """What differs between now and when clips were made that are kept, in sentences."""
    import torch

    from sgm import __version__, differences, quick_hash
    from sgm.recipe import MARK, made_by

    threads = {"threads": str(torch.get_num_threads())} if device == "cpu" else {}
    hash_of_file, sentences = cache(quick_hash), dict[str, None]()
    for settings in kept:
        model, before = VERSIONS[settings["version"]], made_by(settings)
        paths = {"weights": checkpoint or model.checkpoint_path, "base": base or model.base_path}
        hashes = {name: hash_of_file(path) for name, path in paths.items() if path and before[name]}
        now = {
            **{key: before[key] for key in ("dtype", "picture") if key in before},
            "program": __version__,
            "torch": str(torch.__version__),
            "device": device,
            **threads,
            **({"dtype": dtype} if dtype else {}),
            "weights": {**hashes.get("weights", {}), "base": hashes.get("base", {})},
        }
        sentences |= dict.fromkeys(differences(settings, {MARK: now}))
    return [
        *sentences,
        *(["Clips that are there stay as they are: delete them to have them made anew."] if sentences else []),
    ]


def _title(plan: _Plan) -> str:
    """What all cells share, in a line: picture, version, and the settings that are not the version's own."""
    first, *rest = ({"version": cell.request.version, **cell.request.choices()} for cell in plan.cells)
    shared = {name: value for name, value in first.items() if all(name in of and of[name] == value for of in rest)}
    fields, varied = plan.cells[0].request.fields(), {axis.name for axis in plan.axes}
    words = [
        value if name == "version" else f"{name} {fields[name].text(value)}"
        for name, value in shared.items()
        if name not in varied
    ]
    return " · ".join([*(path.name for path in plan.files if len(plan.files) == 1), *words])
