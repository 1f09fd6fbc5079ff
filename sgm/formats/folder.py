"""A diffusers folder: unet/, vae/ and image_encoder/, each one file of tensors or several with an index."""

from __future__ import annotations

import json
from pathlib import Path

from sgm.formats.files import TensorFile, WeightsError, open_tensors

PARTS = ("unet", "vae", "image_encoder")
LEFTOVERS = "sgm_only.safetensors"  # tensors without a counterpart in diffusers, in folders of `sgm convert`


def is_folder(path: Path) -> bool:
    """Whether a path is a diffusers folder, complete or not."""
    return path.is_dir() and any((path / part).is_dir() for part in PARTS)


class Folder:
    """An open diffusers folder. parts: part -> tensor's name -> its file. rest: the file of other tensors, if any.

    Raises WeightsError for a folder that is incomplete or no diffusers folder.
    """

    def __init__(self, path: Path) -> None:
        if not is_folder(path):
            content = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise WeightsError(
                f"{path} is a folder with {content}, but no diffusers folder: that has {', '.join(PARTS)}. Give a file "
                "of weights or such a folder."
            )
        missing = [part for part in PARTS if not (path / part).is_dir()]
        if missing:
            raise WeightsError(
                f"{path} lacks {', '.join(missing)}: a diffusers folder has {', '.join(PARTS)}. Get it whole."
            )
        self.path = path
        self.files: list[TensorFile] = []
        try:
            self.parts = {part: self._part(path / part) for part in PARTS}
            rest = path / LEFTOVERS
            self.rest = self._open(rest) if rest.exists() else None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for file in self.files:
            file.close()

    def _part(self, folder: Path) -> dict[str, TensorFile]:
        names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        for suffix in (".safetensors", ".bin"):  # safetensors first, which cannot hold code; full precision before fp16
            single = [n for n in names if n.endswith(suffix) and "-of-0" not in n]
            indexes = [n for n in names if f"{suffix}.index" in n and n.endswith(".json")]
            for name in sorted([*single, *indexes], key=lambda name: ("fp16" in name, len(name))):
                files = self._sharded(folder / name) if name.endswith(".json") else [self._open(folder / name)]
                return {key: file for file in files for key in file.layout}
        raise WeightsError(
            f"{folder} holds no weights ({', '.join(names[:8]) or 'nothing'}): expected a .safetensors or .bin file, "
            "or its parts and their .index.json. Get the folder whole."
        )

    def _sharded(self, index: Path) -> list[TensorFile]:
        try:
            shards = sorted(set(json.loads(self._checked(index).read_text(encoding="utf-8"))["weight_map"].values()))
            paths = [index.parent / str(shard) for shard in shards]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsError(f"{index} cannot be read as an index of weights ({error}); get it again.") from None
        for path in paths:
            self._checked(path)
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise WeightsError(
                f"{index.parent} lacks {len(missing)} of the {len(paths)} parts that {index.name} names: "
                f"{', '.join(missing[:8])}. Get what is missing."
            )
        return [self._open(path) for path in paths]

    def _open(self, path: Path) -> TensorFile:
        file = open_tensors(self._checked(path))
        self.files.append(file)
        return file

    def _checked(self, path: Path) -> Path:
        """The path. Raises WeightsError for links out of the folder, except to the blobs of the hub's cache."""
        real, root = path.resolve(), self.path.resolve()
        allowed = [root]
        if root.parent.name == "snapshots":
            allowed.append(root.parent.parent / "blobs")
        if not any(real.is_relative_to(parent) for parent in allowed):
            raise WeightsError(
                f"{path} leads out of its folder, to {real}; it was not followed. Put the file itself there."
            )
        return path
