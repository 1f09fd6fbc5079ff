"""A diffusers folder: unet/, vae/ and image_encoder/, each one file of tensors or several with an index."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from sgm import paths
from sgm.errors import printable, shown
from sgm.formats.tensor_file import LARGEST_HEADER, WeightsError, reading

PARTS = ("unet", "vae", "image_encoder")
LEFTOVERS = "sgm_only.safetensors"  # tensors without a counterpart in diffusers, in folders of `sgm convert`
_USUAL_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")  # beside which others may lie: optimizer.bin


def weight_files(folder: Path) -> list[Path]:
    """The files of the weights that lie in a folder: one, or the parts that an index names. Raises WeightsError."""
    with reading(folder):
        names = [path.name for path in paths.contents(folder)]
    for suffix in (".safetensors", ".bin"):  # safetensors first, which cannot hold code; full precision before fp16
        single = [n for n in names if n.endswith(suffix) and "-of-0" not in n]
        indexes = [n for n in names if f"{suffix}.index" in n and n.endswith(".json")]
        for name in sorted(
            [*single, *indexes], key=lambda name: (not name.startswith(_USUAL_NAMES), "fp16" in name, len(name))
        ):
            return _shards(folder / name) if name.endswith(".json") else [folder / name]
    raise WeightsError(
        f"{folder} holds no weights ({_listed(folder)}): expected a .safetensors or .bin file, or its parts and their "
        ".index.json. Get the folder whole."
    )


def _shards(index: Path) -> list[Path]:
    """The files that an index of parts names, each beside it."""
    with reading(index, " as an index of weights"):
        if not paths.is_file(index) or index.stat().st_size > LARGEST_HEADER:
            raise ValueError(f"it is no file of at most {LARGEST_HEADER >> 20} MB")
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        folder = os.path.abspath(index.parent)
        for name in names:
            if os.path.dirname(os.path.normpath(os.path.join(folder, name))) != folder:
                raise WeightsError(
                    f"{index} names {shown(name)}, which leads out of its folder; it was not followed. Get it again."
                )
        missing = [name for name in names if not paths.is_file(index.parent / name)]
    count = max((int(match[1]) for name in names if (match := re.search(r"-of-(\d{1,6})\.", name))), default=len(names))
    if len(names) < count or not names:
        raise WeightsError(
            f"{index} names {len(names)} of the {count} parts that there are by their names "
            f"({', '.join(printable(name, 80) for name in names[:8])}): it is incomplete. Get it again."
        )
    if missing:
        raise WeightsError(
            f"{index.parent} lacks {len(missing)} of the {len(names)} parts that {index.name} names: "
            f"{', '.join(printable(name, 80) for name in missing[:8])}. Get what is missing."
        )
    return [index.parent / name for name in names]


def _listed(folder: Path) -> str:
    return ", ".join(printable(path.name, 80) for path in paths.contents(folder)[:8]) or "nothing"
