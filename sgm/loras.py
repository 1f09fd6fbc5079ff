"""LoRAs of a request: their names and strengths, the folders in which they are looked for, and what their files say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgm import versions
from sgm.errors import UserError, printable, shown
from sgm.fields import Field
from sgm.formats.files import open_tensors
from sgm.formats.lora import LoraFile, Shapes, base_of, factors, open_lora
from sgm.paths import contents, exists, is_file, is_folder, user_path
from sgm.weights import WeightsError, quick_hash

_BETWEEN = " + "
_MOST = 16  # in one request
_LONGEST = 200  # characters of a name
_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")


class LoraField(Field):
    """The field of LoRAs, a text: "NAME:STRENGTH + NAME:STRENGTH". low, high, usual, step: of a strength.

    A name is that of a file in the folders `loras`, without .safetensors, never a path: a request may come from
    elsewhere.
    """

    def check(self, value: Any) -> str:
        """The text in its one form, each name with its strength. Raises UserError."""
        problem = UserError(
            f"{self.name} must be names of files in a folder loras, each perhaps with a strength from {self.low:g} to "
            f"{self.high:g}, as in pan:0.8{_BETWEEN}film; got {shown(value)}."
        )
        if not isinstance(value, str) or len(value) > _MOST * _LONGEST:
            raise problem
        chosen = chosen_loras(value)
        for name, strength in chosen:
            plain = name.isprintable() and not re.search(r"[/\\:]", name) and name.strip(". ")
            if not plain or len(name) > _LONGEST or not self.low <= strength <= self.high:
                raise problem
        names = [name for name, _ in chosen]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise UserError(f"{self.name} must be different LoRAs; {printable(twice)} is there twice.")
        if len(chosen) > _MOST:
            raise UserError(f"{self.name} must be at most {_MOST} LoRAs; got {len(chosen)}.")
        return lora_text(dict(chosen))


LORA = LoraField(
    "lora",
    str,
    "LoRAs",
    "Small files that change the model, from the folder loras, with their strengths: as pan:0.8 + film:0.5.",
    -4,
    4,
    default="",
    usual=(0, 1.5),
    step=0.05,
)


def chosen_loras(text: str) -> list[tuple[str, float]]:
    """The names in a field's text, without .safetensors, and their strengths."""
    pairs = (_parted(part.strip()) for part in text.split(_BETWEEN) if text.strip())
    return [(name.removesuffix(".safetensors"), strength) for name, strength in pairs]


def lora_text(chosen: Mapping[str, float]) -> str:
    """The field's text of names and strengths."""
    return _BETWEEN.join(f"{name}:{repr(strength).removesuffix('.0')}" for name, strength in chosen.items())


def lora_argument(text: str) -> tuple[str, Path | None]:
    """A command line's FILE[:STRENGTH], or NAME[:STRENGTH] -> the field's text, and the file where it is one."""
    if not text.strip():
        return "", None
    place, strength = _parted(text)
    path = user_path(place)
    named = path.name.removesuffix(".safetensors")
    given = path if re.search(r"[/\\]", place) or exists(path) else None
    return f"{named}:{strength!r}", given


def _parted(text: str) -> tuple[str, float]:
    """A text without its :STRENGTH, and that, 1 where there is none."""
    name, colon, number = text.rpartition(":")
    try:
        return (name.strip(), float(number)) if colon else (text, 1.0)
    except ValueError:  # a colon in the name
        return text, 1.0


def lora_folders() -> list[Path]:
    """The folders in which LoRAs are looked for, in order: `loras` beside each folder of weights."""
    return list(dict.fromkeys(folder.parent / "loras" for folder in versions.checkpoint_folders()))


def find_lora(name: str, files: Mapping[str, Path] | None = None) -> Path:
    """The file, or peft's folder, of a LoRA. files: places of some by their names. Raises WeightsError."""
    if files and name in files:
        return files[name]
    for folder in lora_folders():
        for path in (folder / f"{name}.safetensors", folder / name, *(folder / f"{name}{end}" for end in _SUFFIXES)):
            if is_file(path) or is_folder(path):
                return path
    known = list(installed_loras())
    empty = "it is empty" if is_folder(lora_folders()[0]) else "a folder that is not there yet"
    there = f"there {'are' if len(known) > 1 else 'is'} {printable(', '.join(known), 300)}" if known else empty
    raise WeightsError(
        f"There is no LoRA {printable(name)} in {lora_folders()[0]} ({there}): put its file there, or give its path "
        "with --lora."
    )


@dataclass(frozen=True)
class Lora:
    """A LoRA of a request, found. sha256: see `sgm.weights.quick_hash`."""

    name: str
    strength: float
    path: Path
    sha256: str

    @property
    def provenance(self) -> dict[str, Any]:
        """What a recipe says of it."""
        return {"name": self.name, "sha256": self.sha256, "strength": self.strength}


def loras_of(text: str, files: Mapping[str, Path] | None = None) -> list[Lora]:
    """The LoRAs of a field's text that have a strength other than 0. files: as for `find_lora`. Raises WeightsError."""
    found = [(name, strength, find_lora(name, files)) for name, strength in chosen_loras(text) if strength]
    return [Lora(name, strength, path, quick_hash(path)["sha256"]) for name, strength, path in found]


def open_loras(loras: list[Lora], shapes: Shapes, model: str) -> list[LoraFile]:
    """Open the files of LoRAs for a model's weights, all or none. Raises WeightsError as `open_lora` does."""
    opened: list[LoraFile] = []
    try:
        for lora in loras:
            opened.append(open_lora(lora.path, shapes, model))
        return opened
    except BaseException:
        for file in opened:
            file.file.close()
        raise


@dataclass(frozen=True)
class LoraAbout:
    """What a LoRA's file says of itself. note: how it was trained. problem: why it cannot be read, or ""."""

    title: str
    note: str = ""
    problem: str = ""


def installed_loras() -> dict[str, Path]:
    """The LoRAs in the folders that can be read, by name."""
    found: dict[str, Path] = {}
    for folder in lora_folders():
        with suppress(UserError):  # a folder that may not be entered
            for path in contents(folder) if is_folder(folder) else ():
                if path.suffix in _SUFFIXES or is_folder(path):
                    found.setdefault(path.name.removesuffix(".safetensors"), path)
    return found


def about_lora(path: Path) -> LoraAbout:
    """The title and note of a LoRA's file; reads its header only, and raises nothing for damaged ones."""
    title = path.name.removesuffix(".safetensors")
    if is_folder(path):
        return LoraAbout(title)
    try:
        file = open_tensors(path)
    except WeightsError as error:
        return LoraAbout(title, problem=str(error))
    with_parts, said = factors(file.layout), file.metadata
    file.close()
    title = said.get("modelspec.title") or said.get("ss_output_name") or title
    steps = said.get("sgm.steps") or said.get("ss_steps")
    trigger = said.get("modelspec.trigger_phrase")
    notes = (
        f"trained on {base_of(said)}" if base_of(said) else "",
        f"{steps} steps" if steps else "",
        f"for {trigger}" if trigger else "",
        said.get("modelspec.description", ""),
    )
    problem = "" if any("down" in parts for parts in with_parts.values()) else f"{path} is no LoRA."
    return LoraAbout(printable(title, 80), printable(" · ".join(filter(None, notes)), 200), problem)
