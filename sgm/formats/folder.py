"""A diffusers folder: unet/, vae/ and image_encoder/, each one file of tensors or several with an index."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from sgm import paths
from sgm.errors import printable, shown
from sgm.formats.files import TensorFile, WeightsError, open_tensors
from sgm.formats.tensor_file import LARGEST_HEADER, reading

PARTS = ("unet", "vae", "image_encoder")
LEFTOVERS = "sgm_only.safetensors"  # tensors without a counterpart in diffusers, in folders of `sgm convert`
_USUAL_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")  # beside which others may lie: optimizer.bin


def is_folder(path: Path) -> bool:
    """Whether a path is a diffusers folder, complete or not."""
    return paths.is_folder(path) and any(paths.is_folder(path / part) for part in PARTS)


class Folder:
    """An open diffusers folder. parts: part -> tensor's name -> its file. rest: the file of other tensors, if any.

    Links in it are followed: the user named the folder. Raises WeightsError for a folder that is incomplete or no
    diffusers folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[TensorFile] = []
        try:
            with reading(path):
                self._open_parts()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for file in self.files:
            file.close()

    def _open_parts(self) -> None:
        if not is_folder(self.path):
            raise WeightsError(
                f"{self.path} is a folder with {_listed(self.path)}, but no diffusers folder: that has "
                f"{', '.join(PARTS)}. Give a file of weights or such a folder."
            )
        missing = [part for part in PARTS if not paths.is_folder(self.path / part)]
        if missing:
            raise WeightsError(
                f"{self.path} lacks {', '.join(missing)}: a diffusers folder has {', '.join(PARTS)}. Get it whole."
            )
        self.parts = {part: self._part(self.path / part) for part in PARTS}
        rest = self.path / LEFTOVERS
        self.rest = self._open(rest) if paths.exists(rest) else None

    def _part(self, folder: Path) -> dict[str, TensorFile]:
        files = [self._open(path) for path in weight_files(folder)]
        return {key: file for file in files for key in file.layout}

    def _open(self, path: Path) -> TensorFile:
        file = open_tensors(path)
        self.files.append(file)
        return file


def weight_files(folder: Path) -> list[Path]:
    """The files of the weights that lie in a folder: one, or the parts that an index names. Raises WeightsError."""
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
