"""The model versions: one row each, with what they were trained for and where their weights come from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_STABILITY = "Stability AI Community Licence"


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
    file: str = ""  # the weights' file there, where it is not called after the version
    base: str = ""  # the version over whose weights these are laid, where they are a network alone
    sampler: str = "euler_edm"
    motion_bucket: int = 127
    fit: str = "crop"  # how a picture is made to fit: "crop", "pad" or "object"
    sv3d: bool = False  # an orbit around an object rather than a moving picture
    camera: bool = False  # takes a camera move as a condition
    multiple: int = 64  # height and width must be multiples of this

    @property
    def config_path(self) -> Path:
        """The version's YAML."""
        return bundle() / "configs" / "inference" / f"{self.name}.yaml"

    @property
    def checkpoint_path(self) -> Path | None:
        """Where the weights lie, a file or a diffusers folder; None when they are missing.

        Looked for in `checkpoint_folders()`, under the version's name, or named as the hub's repository has them.
        """
        repo = (self.repo or "").rpartition("/")[2]
        files = [f"{self.name}.safetensors", f"{self.name}.ckpt", self.hub_file, f"{repo}/{self.hub_file}"]
        # A repository's folder of parts has the temporal decoder.
        folders = [self.name, *([] if self.name.endswith("image_decoder") else [repo])]
        for place in checkpoint_folders():
            paths = [place / name for name in files if (place / name).is_file()]
            paths += [place / name for name in folders if name and (place / name / "unet").is_dir()]
            if paths:
                return paths[0]
        return None

    @property
    def base_path(self) -> Path | None:
        """The weights over which a network alone is laid."""
        return VERSIONS[self.base or self.name].checkpoint_path

    @property
    def hub_file(self) -> str:
        """The weights' file in `repo`."""
        return self.file or f"{self.name}.safetensors"

    @property
    def how_to_get(self) -> str:
        """One line that says how to bring the missing weights."""
        if self.repo is None:
            return f"It ships with the project: restore checkpoints/{self.name}.safetensors, or install again."
        return (
            f"Accept the licence at huggingface.co/{self.repo}, then run `sgm download {self.name}`, or bring "
            f"{self.hub_file} from there yourself and put it at {self.home}"
        )

    @property
    def home(self) -> Path:
        """Where weights that one has already belong."""
        return checkpoint_folders()[0] / f"{self.name}.safetensors"


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
        name,
        title,
        21,
        576,
        576,
        50,
        7,
        "triangle",
        1.0,
        2.5,
        1e-5,
        _STABILITY,
        "stabilityai/sv3d",
        sv3d=True,
        fit="object",
    )


def _lcm() -> Version:
    """AnimateLCM-SVD: svd_xt's network, distilled to take a few steps. Settings: its authors'."""
    values = {name: getattr(_XT, name) for name in ("frames", "height", "width", "cond_aug")}
    return Version(
        "svd_xt_lcm",
        "SVD-XT, few steps (AnimateLCM)",
        **values,
        fps=8,
        motion_bucket=80,
        steps=4,
        guider="linear",
        min_guidance=1.0,
        max_guidance=1.2,
        licence=f"see its page; of its base svd_xt: {_STABILITY}",
        repo="wangfuyun/AnimateLCM-SVD-xt",
        file="AnimateLCM-SVD-xt-1.1.safetensors",
        base="svd_xt",
        sampler="lcm",
    )


_TINY = Version(
    "svd_tiny", "SVD tiny", 14, 192, 320, 6, 7, "linear", 1.0, 1.0, 0.02, "CC BY-SA 4.0", camera=True, multiple=32
)

_XT = _svd("svd_xt", "SVD-XT", 25, 30, (1.5, 3.0), "stable-video-diffusion-img2vid-xt")

VERSIONS: dict[str, Version] = {
    version.name: version
    for version in (
        _TINY,
        _svd("svd", "SVD", 14, 25, (1.0, 2.5), "stable-video-diffusion-img2vid"),
        _svd("svd_image_decoder", "SVD, image decoder", 14, 25, (1.0, 2.5), "stable-video-diffusion-img2vid"),
        _XT,
        _svd("svd_xt_image_decoder", "SVD-XT, image decoder", 25, 30, (1.5, 3.0), "stable-video-diffusion-img2vid-xt"),
        _svd("svd_xt_1_1", "SVD-XT 1.1", 25, 30, (1.5, 3.0), "stable-video-diffusion-img2vid-xt-1-1"),
        _lcm(),
        _sv3d("sv3d_u", "SV3D, orbit at eye level"),
        _sv3d("sv3d_p", "SV3D, chosen elevation"),
    )
}
DEFAULT_VERSION = "svd_tiny"
