"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

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
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ... Unless given, the fastest.")]
Devices = Annotated[
    str | None, typer.Option(help="Spread the pictures over several: all, or names as cuda:0,cuda:1 or cpu,cpu.")
]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"] | None, typer.Option(help="Unless given, what suits the device.")
]
Checkpoint = Annotated[Path | None, path_option("Other weights: a file or a diffusers folder.")]
Base = Annotated[Path | None, path_option("What a checkpoint of the network alone is laid over.")]
