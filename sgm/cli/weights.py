"""`sgm models`, `download` and `convert`: list, download and convert weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from sgm.cli.console import (
    echo_line,
    echo_result,
    echo_stderr,
    errors_as_sentences,
    path_argument,
    path_option,
    progress_bar,
)
from sgm.errors import UserError
from sgm.process import importing_torch
from sgm.versions import ALL_VERSIONS, checkpoint_folders


def models() -> None:
    """List the model versions, which of them are installed, and the names that `sgm sample` takes."""
    with importing_torch():
        from sgm import CAMERA_MOVES, GUIDERS, SAMPLERS, SCHEDULES, version_status

    lines = [f"{'version':<22}{'frames':>6}  {'size':<10}{'steps':>5}  weights"]
    pages: dict[str, list[str]] = {}  # licence and page -> the versions that are missing
    for version in ALL_VERSIONS.values():
        status = version_status(version.name)
        size = f"{version.width}x{version.height}"
        location = status.location or status.command or status.problem
        lines.append(
            f"{version.name:<22}{version.frames:>6}  {size:<10}{version.steps:>5}  {status.state:<8} {location}"
        )
        if status.path and status.problem:
            advice = f"Run `{status.command}`." if status.command else "" if version.repo else version.how_to_get
            lines.append(f"{'':<47}{status.problem} {advice}".rstrip())
        if not status.path and status.page:
            pages.setdefault(f"{status.page} ({status.licence})", []).append(version.name)
    if pages:
        lines += ["", "Accept the licence of what is missing before you download it:"]
        lines += [f"  {', '.join(names):<27} {page}" for page, names in pages.items()]
        lines.append(f"Files that you have already belong into {checkpoint_folders()[0]}")
    names = {"samplers": SAMPLERS, "schedules": SCHEDULES, "guiders": GUIDERS, "cameras": CAMERA_MOVES}
    lines += ["", *(f"{f'{kind}:':<10} {', '.join(known)}" for kind, known in names.items())]
    for line in lines:
        echo_line(line)


def download(
    version: Annotated[str, typer.Argument(help="Model version; `sgm models` lists them.")],
    to: Annotated[Path | None, path_option("Folder. Unless given, where weights are looked for.")] = None,
) -> None:
    """Bring a version's weights from the Hugging Face hub; goes on where an earlier download broke off."""
    with errors_as_sentences(code=2):
        if version not in ALL_VERSIONS:
            raise UserError(f"Version '{version}' is unknown; choose one of {', '.join(ALL_VERSIONS)}.")
    with importing_torch():
        from sgm import download_weights

    echo_stderr(f"Licence: {ALL_VERSIONS[version].licence}")
    with progress_bar() as show:
        path = download_weights(version, to, on_progress=show)
    base = ALL_VERSIONS[version].base
    if base and ALL_VERSIONS[base].checkpoint_path is None:
        echo_stderr(f"{version} is laid over {base}, which is missing: run `sgm download {base}`, too.")
    echo_result(path)


def convert(
    source: Annotated[Path, path_argument("A .safetensors or .ckpt file, or a diffusers folder.")],
    target: Annotated[Path, path_argument("A new name: ending in .safetensors, or a folder.")],
    to: Annotated[
        Literal["sgm", "diffusers"], typer.Option(help="sgm: one official file; diffusers: a folder.")
    ] = "sgm",
    dtype: Annotated[
        Literal["fp16", "bf16", "fp32"] | None, typer.Option(help="Unless given, as it is stored.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Whose weights they are. Unless given, recognised.")] = None,
    base: Annotated[Path | None, path_option("Weights that supply the parts that the source lacks.")] = None,
    config: Annotated[Path | None, path_option("The YAML of a model that is no known version.")] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the moving averages of the weights instead.")] = False,
) -> None:
    """Write weights in another format or precision, one tensor in memory at a time."""
    with importing_torch():
        from sgm import convert_weights

    with progress_bar() as show:
        path = convert_weights(
            source,
            target,
            to,
            dtype,
            version=version,
            base=base,
            config=config,
            ema=ema,
            on_progress=partial(show, "convert"),
        )
    echo_result(path)
