"""The model version of a file of weights, and the versions that are installed. Only headers are read."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sgm.amounts import file_size
from sgm.errors import printable
from sgm.formats.diffusers import FIRST_STAGE, UNET
from sgm.kinds import other_kind, unusable, versions_of
from sgm.paths import user_path
from sgm.versions import ALL_VERSIONS, DEFAULT_VERSION, Version
from sgm.weights import WeightsError, stored_tensors

# The best one first; without SV3D, which needs an object, and svd_xt_lcm, which trades quality for time.
_BEST = ("svd_xt_1_1", "svd_xt", "svd_xt_image_decoder", "svd", "svd_image_decoder")


@dataclass(frozen=True)
class VersionStatus:
    """Whether a version's weights are installed.

    state: "ready", "on disk" (present but unusable: `problem` says why) or "missing". path: file or folder, of `size`
    bytes. command: the command that downloads them, or "". page: the address where the licence is accepted.
    """

    version: str
    state: str
    path: Path | None
    size: int
    command: str
    licence: str
    page: str
    problem: str = ""

    @property
    def location(self) -> str:
        """Path, relative to the current folder if possible, and size in words; "" where the weights are missing."""
        if self.path is None:
            return ""
        path = self.path
        with contextlib.suppress(OSError, ValueError):  # the current folder may be gone, or not above the path
            path = path.relative_to(Path.cwd())
        return f"{path}, {file_size(self.size)}"


def version_status(version: str) -> VersionStatus:
    """Look for a version's weights and read their headers: fast enough for every redraw of a page.

    Weights that cannot be read, whatever is wrong with them, are "on disk", with the problem.
    """
    model = ALL_VERSIONS[version]
    page = f"https://huggingface.co/{model.repo}" if model.repo else ""
    download = f"sgm download {version}" if model.repo else ""
    path = model.checkpoint_path
    if path is None:
        return VersionStatus(version, "missing", None, 0, download, model.licence, page, model.how_to_get)
    size, command = 0, ""
    try:
        files = [path]
        if path.is_dir():
            files = [file for file in sorted(path.glob("*/*")) if file.is_file()]
        found = [(str(file), file.stat()) for file in files if file.exists()]
        stamp = tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found)
        size = sum(stat.st_size for _, stat in found)
        problem = _problem(model, path, stamp)
    except Exception as error:  # of a damaged file, which must not take the list of models down
        problem = printable(f"{path} cannot be read ({type(error).__name__}: {error}).", 400)
    if problem and path.exists():  # else a dead link, which is the user's to mend
        command = download
    elif needed := model.base or model.begins_with:
        other = version_status(needed)
        if other.state != "ready":
            how = "is laid over" if model.base else "begins with an orbit by"
            problem, command = f"It {how} {needed}, which is {other.state}.", other.command
    state = "on disk" if problem else "ready"
    return VersionStatus(version, state, path, size, command, model.licence, page, problem)


def best_version() -> str:
    """The best version for photographs among those that are ready; DEFAULT_VERSION where none is."""
    return next((name for name in _BEST if version_status(name).state == "ready"), DEFAULT_VERSION)


@lru_cache(maxsize=64)
def _problem(model: Version, path: Path, stamp: tuple) -> str:
    """Why these files cannot be the version's weights, or "". `stamp` changes with the files: the cache's key."""
    try:
        shapes = _recognisable(path)
    except WeightsError as error:
        return str(error)
    fits = versions_of(shapes)
    if model.name not in fits:
        return f"{path} is not {model.name}: it fits {' or '.join(fits) or 'no known version'}."
    if not model.base and not any(FIRST_STAGE in name or name.startswith("vae") for name in shapes):
        return f"{path} holds the network alone; give it with --checkpoint, to be laid over whole weights."
    return ""


def recognise(path: str | Path) -> list[str]:
    """The versions whose weights these can be, by the network's inputs and the type of decoder; reads headers only.

    Raises WeightsError for files that cannot be read, and for quantised weights and other kinds of files that are
    known.
    """
    return versions_of(_recognisable(user_path(path)))


def _recognisable(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of weights that may be some version's."""
    stored, files = stored_tensors(path)
    for file in files:
        file.close()
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    dtypes = {name: tensor.dtype for name, tensor in stored.items()}
    problem = unusable(dtypes, [name for name in stored if name.startswith(UNET)])
    if problem or (problem := None if versions_of(shapes) else other_kind(list(shapes))):
        raise WeightsError(f"{path} {problem}")
    return shapes
