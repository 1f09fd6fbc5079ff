"""The model versions: one row each, with what they were trained for and where their weights come from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_STABILITY = "Stability AI Community Licence (accept it on the model's page first)"


@dataclass(frozen=True)
class Version:
    """One model version. Sizes: pixels; `cond_aug`: standard deviation of the noise on the conditioning picture."""

    name: str
    title: str
    frames: int
    height: int
    width: int
    steps: int
    fps: int
    guider: str
    min_guidance: float
    max_guidance: float
    cond_aug: float
    licence: str
    repo: str | None = None  # Hugging Face repository; None: the weights ship with the project
    sv3d: bool = False  # an orbit around an object rather than a moving picture
    camera: bool = False  # takes a camera move as a condition
    multiple: int = 64  # height and width must be multiples of this

    @property
    def config_path(self) -> Path:
        """The version's YAML."""
        return bundle() / "configs" / "inference" / f"{self.name}.yaml"

    @property
    def checkpoint_path(self) -> Path | None:
        """Where the weights lie, or None when they are missing. The folders looked at: `checkpoint_folders()`."""
        paths = (folder / f"{self.name}.safetensors" for folder in checkpoint_folders())
        return next((path for path in paths if path.is_file()), None)

    @property
    def how_to_get(self) -> str:
        """One line that says how to bring the missing weights."""
        if self.repo is None:
            return f"It ships with the project: restore checkpoints/{self.name}.safetensors, or install again."
        path = checkpoint_folders()[0] / f"{self.name}.safetensors"
        return f"Download {self.name}.safetensors from huggingface.co/{self.repo} and put it at {path}"


def bundle() -> Path:
    """The folder that holds `configs/`, `checkpoints/` and `app/`: inside a wheel, or the checkout's root."""
    inside = _HERE / "_bundle"
    return inside if inside.is_dir() else _HERE.parent


def checkpoint_folders() -> list[Path]:
    """Where weights are looked for, in order: `$SGM_CHECKPOINTS`, `./checkpoints`, the project's own folder."""
    named = os.environ.get("SGM_CHECKPOINTS")
    folders = [Path(named)] if named else []
    folders += [Path("checkpoints").resolve(), bundle() / "checkpoints"]
    return list(dict.fromkeys(folders))


def _svd(name: str, title: str, frames: int, steps: int, guidance: tuple[float, float], repo: str) -> Version:
    repo = f"stabilityai/{repo}"
    return Version(name, title, frames, 576, 1024, steps, 7, "linear", *guidance, 0.02, _STABILITY, repo)


def _sv3d(name: str, title: str) -> Version:
    return Version(
        name, title, 21, 576, 576, 50, 7, "triangle", 1.0, 2.5, 1e-5, _STABILITY, "stabilityai/sv3d", sv3d=True
    )


_TINY = Version(
    "svd_tiny", "SVD tiny", 14, 192, 320, 6, 7, "linear", 1.0, 1.0, 0.02, "CC BY-SA 4.0", camera=True, multiple=32
)

VERSIONS: dict[str, Version] = {
    version.name: version
    for version in (
        _TINY,
        _svd("svd", "SVD", 14, 25, (1.0, 2.5), "stable-video-diffusion-img2vid"),
        _svd("svd_image_decoder", "SVD, image decoder", 14, 25, (1.0, 2.5), "stable-video-diffusion-img2vid"),
        _svd("svd_xt", "SVD-XT", 25, 30, (1.5, 3.0), "stable-video-diffusion-img2vid-xt"),
        _svd("svd_xt_image_decoder", "SVD-XT, image decoder", 25, 30, (1.5, 3.0), "stable-video-diffusion-img2vid-xt"),
        _svd("svd_xt_1_1", "SVD-XT 1.1", 25, 30, (1.5, 3.0), "stable-video-diffusion-img2vid-xt-1-1"),
        _sv3d("sv3d_u", "SV3D, orbit at eye level"),
        _sv3d("sv3d_p", "SV3D, orbit at a chosen elevation"),
    )
}
DEFAULT_VERSION = "svd_tiny"
