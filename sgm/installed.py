"""The model version of a file of weights, and the versions that are installed. Only headers are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sgm.config import load_config
from sgm.formats.diffusers import FIRST_STAGE, UNET, is_temporal
from sgm.formats.files import WeightsError, open_tensors
from sgm.formats.folder import Folder
from sgm.versions import DEFAULT_VERSION, VERSIONS, Version

_LABELS = (f"{UNET}label_emb.0.0.weight", "label_emb.0.0.weight", "add_embedding.linear_1.weight")
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
        here = Path.cwd()
        path = self.path.relative_to(here) if self.path.is_relative_to(here) else self.path
        size = f"{self.size / 1e9:.2f} GB" if self.size >= 1e8 else f"{self.size / 1e6:.1f} MB"
        return f"{path}, {size}"


def version_status(version: str) -> VersionStatus:
    """Look for a version's weights and read their headers: fast enough for every redraw of a page."""
    model = VERSIONS[version]
    page = f"https://huggingface.co/{model.repo}" if model.repo else ""
    path = model.checkpoint_path
    if path is None:
        command = f"sgm download {version}" if model.repo else ""
        return VersionStatus(version, "missing", None, 0, command, model.licence, page, model.how_to_get)
    files = [file for file in ([path] if path.is_file() else sorted(path.glob("*/*"))) if file.is_file()]
    stamp = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    problem, command = _problem(model, path, stamp), ""
    if not problem and model.base:
        base = version_status(model.base)
        if base.state != "ready":
            problem, command = f"It is laid over {model.base}, which is {base.state}.", base.command
    size = sum(size for _, size, _ in stamp)
    state = "on disk" if problem else "ready"
    return VersionStatus(version, state, path, size, command, model.licence, page, problem)


def best_version() -> str:
    """The best version for photographs among those that are ready; DEFAULT_VERSION where none is."""
    return next((name for name in _BEST if version_status(name).state == "ready"), DEFAULT_VERSION)


@lru_cache(maxsize=64)
def _problem(model: Version, path: Path, stamp: tuple) -> str:
    """Why these files cannot be the version's weights, or "". `stamp` changes with the files: the cache's key."""
    try:
        fits = recognise(path)
    except WeightsError as error:
        return str(error)
    if model.name not in fits:
        return f"{path} is not {model.name}: it fits {' or '.join(fits) or 'no known version'}."
    if path.is_file() and not model.base:
        file = open_tensors(path)
        file.close()
        if not any(name.startswith(FIRST_STAGE) for name in file.layout):
            return f"{path} holds the network alone; give it with --checkpoint, to be laid over whole weights."
    return ""


def recognise(path: str | Path) -> list[str]:
    """The versions whose weights these can be, by the network's inputs and the type of decoder; reads headers only.

    Raises WeightsError for files that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        folder = Folder(path)
        shapes = {name: file.layout[name][1] for name, file in folder.parts["unet"].items()}
        names: Iterable[str] = folder.parts["vae"]
        folder.close()
    else:
        file = open_tensors(path)
        file.close()
        shapes = {name: shape for name, (_, shape) in file.layout.items()}
        names = [name for name in shapes if name.startswith(FIRST_STAGE)]
    label = next((shapes[name] for name in _LABELS if name in shapes), None)
    alone = not path.is_dir() and not list(names)  # a network alone has no decoder
    fingerprints = {name: _fingerprint(version) for name, version in VERSIONS.items()}
    return [
        n
        for n, (shape, temporal) in fingerprints.items()
        if shape == label and (alone or temporal == is_temporal(names))
    ]


@lru_cache
def _fingerprint(version: Version) -> tuple[tuple[int, int], bool]:
    """Shape of the network's `label_emb` weight, and whether the decoder is temporal."""
    params = load_config(version.config_path)["model"]["params"]
    network = params["network_config"]["params"]
    decoder = params["first_stage_config"]["params"].get("decoder_config", {}).get("target", "")
    return (4 * network["model_channels"], network["adm_in_channels"]), decoder.endswith("VideoDecoder")
