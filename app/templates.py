"""Templates: settings under a name of one's own, beside the presets. Does not import Streamlit.

Each is a recipe in YAML without a seed, `templates/NAME.yaml` in the outputs folder: `sgm sample --recipe` takes it as
it is, and what such a file says is checked like every recipe from elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import islice
from pathlib import Path

from sgm import RECIPE_TEXTS, UserError, VideoRequest, printable, read_recipe, request_of
from sgm.paths import contents, folded, is_folder, refusals_explained, replacing, writes_explained

MOST = 24
_LONGEST, _LONGEST_BYTES = 60, 200  # of a name
_NO_NAME = re.compile(r'[\\/:*?"<>|]|^\.|\.$|(?i:^(con|prn|aux|nul|com\d|lpt\d)(\.|$))')  # of a file on every system


def templates(outputs: Path) -> dict[str, VideoRequest | str]:
    """Name -> the settings, or why they cannot be read."""
    folder = _folder(outputs)
    files = (path for path in contents(folder) if path.suffix == ".yaml") if is_folder(folder) else ()
    found: dict[str, VideoRequest | str] = {}
    for path in islice(files, MOST):
        try:
            with refusals_explained(path):
                state = path.stat()
            found[path.stem] = _read(path, state.st_mtime_ns, state.st_size)
        except UserError as error:
            found[path.stem] = str(error)
    return found


def parse(content: bytes, name: str) -> VideoRequest:
    """The settings of a YAML or of a clip that was made here. name: the file's in messages.

    Raises UserError for what is neither, and for settings that their version does not have.
    """
    return _checked(read_recipe(content, name), name)


def text(request: VideoRequest) -> str:
    """A template as a YAML: what differs from the version's own settings, but for the seed."""
    settings = request.settings()
    chosen = {name: settings[name] for name in request.choices() if name != "seed"}
    return RECIPE_TEXTS["yaml"]({"version": request.version} | chosen)


def save(outputs: Path, name: str, request: VideoRequest, taken: tuple[str, ...] = ()) -> str:
    """Write a new template. Returns its name. taken: other names that it may not have.

    Raises UserError for a name that is taken or that no file can have, for one too many, and where it cannot be
    written.
    """
    name, known = _as_file(name), templates(outputs)
    if folded(name) in map(folded, (*known, *taken)):
        raise UserError(f"{name} is there already: delete it first, or take another name.")
    if len(known) >= MOST:
        raise UserError(f"There are {MOST} templates, which are the most: delete one first.")
    path = _folder(outputs) / f"{name}.yaml"
    with writes_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, new=True) as temporary:
            temporary.write_text(text(request), encoding="utf-8")
    return name


def delete(outputs: Path, name: str) -> None:
    """Delete a template. Raises UserError where it cannot be."""
    path = _folder(outputs) / f"{name}.yaml"
    with refusals_explained(path, "check the permissions of its folder", "deleted"):
        path.unlink(missing_ok=True)


def _folder(outputs: Path) -> Path:
    return outputs / "templates"


@lru_cache(4 * MOST)  # a page asks at every click
def _read(path: Path, changed: int, size: int) -> VideoRequest:
    return _checked(read_recipe(path), path.name)


def _checked(settings: dict, name: str) -> VideoRequest:
    try:
        return request_of(settings)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _as_file(name: str) -> str:
    """A name as a file has it. Raises UserError for one that no file can have on every system."""
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    if not name:
        raise UserError("A template needs a name.")
    fits = printable(name) == name and len(name) <= _LONGEST and len(name.encode()) <= _LONGEST_BYTES
    if not fits or _NO_NAME.search(name):
        raise UserError(
            f"{printable(name, 80)} cannot be a template's name: take up to {_LONGEST} letters, digits, spaces and "
            'signs other than \\ / : * ? " < > |, without a dot at its beginning or end.'
        )
    return name
