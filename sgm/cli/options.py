"""Options that several commands have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import typer.core

from sgm.cli.console import path_option
from sgm.versions import DEFAULT_VERSION

ModelVersion = Annotated[
    str | None, typer.Option(help=f"Model version; `sgm models` lists them. Unless given, {DEFAULT_VERSION}.")
]
Recipe = Annotated[Path | None, path_option("Settings to start from: a video that was made here, or a YAML.")]
BackgroundModel = Annotated[str, typer.Option(help="rembg's model that removes the background, SV3D.")]
LowMemory = Annotated[
    bool, typer.Option("--low-memory", help="Take as little of the GPU's memory as can be; a bit slower.")
]
Safety = Annotated[
    Literal["off", "warn", "block"],
    typer.Option(help="The filter of pictures and clips unsafe for work: warn of them, or do not write such clips."),
]
NoWatermark = Annotated[
    bool, typer.Option("--no-watermark", help="Leave out the invisible watermark; the recipe says so.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ... Unless given, the fastest.")]
Devices = Annotated[
    str | None, typer.Option(help="Spread the pictures over several: all, or names as cuda:0,cuda:1 or cpu,cpu.")
]
Gpus = Annotated[
    int, typer.Option(min=1, max=16, help="GPUs that compute each video together: the device and those after it.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="[ADDRESS]",
        help="Make clips on the nodes of a Ray cluster: the one at HOST:PORT or, without an address, the one that runs "
        "on this machine, else one that is started for it.",
    ),
]
RayActors = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="How many at a time on the cluster; more than there is room for wait for nodes. Unless given, one a GPU "
        "or, without any, one a core.",
    ),
]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"] | None, typer.Option(help="Unless given, what suits the device.")
]
Checkpoint = Annotated[Path | None, path_option("Other weights: a file or a diffusers folder.")]
Base = Annotated[Path | None, path_option("What a checkpoint of the network alone is laid over.")]

_RAY_ADDRESS = re.compile(r"auto|[^/\\]*:\d+")


class RayCommand(typer.core.TyperCommand):
    """A command whose `--ray` means "auto" where the next word is no address, but a picture, say."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for i, (word, following) in enumerate(zip(args, [*args[1:], ""], strict=False)):
            if word == "--":
                break
            if word == "--ray" and not _RAY_ADDRESS.fullmatch(following):
                args = [*args[:i], "--ray=auto", *args[i + 1 :]]
        return super().parse_args(ctx, args)
