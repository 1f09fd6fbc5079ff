"""The table of model versions: the values they were trained for, and where their weights come from."""

from __future__ import annotations

import logging
import os
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sgm.errors import UserError, printable
from sgm.paths import is_file, is_folder, user_path

logger = logging.getLogger(__name__)

_HERE = Path(__file__).resolve().parent
_STABILITY = "Stability AI Community Licence"
_SIZES = ((1024, 576), (576, 1024), (768, 768))  # of Stability's own image-to-video service


@dataclass(frozen=True)
class Version:
    """One model version. height, width: pixels. cond_aug: standard deviation of the conditioning picture's noise."""

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
    file: str = ""  # the weights' file in the repository, if its name is not the version's
    base: str = ""  # the version whose weights supply the rest, if the file holds the network alone
    sampler: str = "euler_edm"
    motion_bucket: int = 127
    fit: str = "crop"  # how a picture is brought to the clip's shape: "crop", "pad" or "object"
    family: str = "image"  # name in `sgm.families.FAMILIES`: its settings and conditioning
    num_views: int = 1  # views of a clip that the network makes at once, at each of `times` times
    times: int = 0
    begins_with: str = ""  # the version with whose orbit of the clip's first frame it begins
    image_frame_ratio: float = 0.9  # of an object that is cut out: its share of the frame
    sigma_max: float = 0.0  # of the noise schedule; 0: its YAML's
    multiple: int = 64  # height and width must be multiples of this
    # GPU memory of activations, bytes in half precision: for each latent while sampling, for each pixel while decoding.
    latent_bytes: int = 6460
    pixel_bytes: int = 256
    sizes: tuple[tuple[int, int], ...] = ()  # (width, height) that suit the network, if not its own alone
    least: int = 0  # pixels of either side; clips with fewer fall apart

    def size_note(self, width: int, height: int) -> str:
        """A sentence about a size at which clips fall apart; "" for others."""
        if min(width, height) >= self.least:
            return ""
        own = f"{self.width}×{self.height}"
        return (
            f"At {width}×{height} {self.title}'s clips lose form and colour: give each side {self.least} pixels or "
            f"more; its own size is {own}."
        )

    @property
    def config_path(self) -> Path:
        """The version's YAML."""
        return bundle() / "configs" / "inference" / f"{self.name}.yaml"

    @property
    def checkpoint_path(self) -> Path | None:
        """Path of the weights, a file or a diffusers folder; None when they are missing.

        They are looked for in `checkpoint_folders()`, under the version's name or as named in the hub's repository.
        """
        repo = (self.repo or "").rpartition("/")[2]
        files = [f"{self.name}.safetensors", f"{self.name}.ckpt", self.hub_file, f"{repo}/{self.hub_file}"]
        # The diffusers folder in a repository has the temporal decoder.
        folders = [self.name, *([] if self.name.endswith("image_decoder") else [repo])]
        dead: list[Path] = []  # links to what is gone, which are only taken where nothing else is found
        for folder in checkpoint_folders():
            paths = [folder / name for name in files if _is(is_file, folder, name)]
            paths += [folder / name for name in folders if name and _is(is_folder, folder, f"{name}/unet")]
            if paths:
                return paths[0]
            dead += [folder / name for name in files if os.path.islink(folder / name)]
        return dead[0] if dead else None

    @property
    def base_path(self) -> Path | None:
        """Path of the weights that supply the rest where a file holds the network alone."""
        return VERSIONS[self.base].checkpoint_path if self.base else self.checkpoint_path

    @property
    def hub_file(self) -> str:
        """The name of the weights' file in `repo`."""
        return self.file or f"{self.name}.safetensors"

    @property
    def how_to_get(self) -> str:
        """One line that says how to get the missing weights."""
        if self.repo is None:
            return f"It ships with the project: restore checkpoints/{self.name}.safetensors, or install again."
        return (
            f"Accept the licence at huggingface.co/{self.repo}, then run `sgm download {self.name}`, or bring "
            f"{self.hub_file} from there yourself and put it at {self.home}"
        )

    @property
    def home(self) -> Path:
        """The path at which the user should put weights that were downloaded elsewhere."""
        return checkpoint_folders()[0] / f"{self.name}.safetensors"


def bundle() -> Path:
    """The folder that holds `configs/`, `checkpoints/` and `app/`: inside a wheel, or the checkout's root."""
    inside = _HERE / "_bundle"
    return inside if inside.is_dir() else _HERE.parent


def checkpoint_folders() -> list[Path]:
    """Folders in which weights are looked for, in order: `$SGM_CHECKPOINTS`, `./checkpoints`, the project's own."""
    folders = []
    for name in (os.environ.get("SGM_CHECKPOINTS", "").strip(), "checkpoints"):
        try:
            folders += [user_path(name).absolute()] if name else []
        except (UserError, OSError) as error:  # an unknown home; a current folder that is gone
            _warn_once(name, str(error))
    return list(dict.fromkeys([*folders, bundle() / "checkpoints"]))


def _is(kind: Callable[[Path], bool], folder: Path, name: str) -> bool:
    """Whether what lies in a folder is of a kind; not where that cannot be known, which is said once a folder."""
    try:
        return kind(folder / name)
    except UserError as error:
        if not os.path.islink(folder / name):  # else a loop of links
            _warn_once(str(folder), getattr(error.__cause__, "strerror", None) or str(error))
        return False


@lru_cache
def _warn_once(folder: str, reason: str) -> None:
    logger.warning("%s", printable(f"{folder} is passed over when weights are looked for ({reason}).", 600))


def _svd(name: str, title: str, repo: str, *, frames: int, steps: int, guidance: tuple[float, float]) -> Version:
    return Version(
        name=name,
        title=title,
        frames=frames,
        height=576,
        width=1024,
        steps=steps,
        fps=7,
        guider="linear",
        min_guidance=guidance[0],
        max_guidance=guidance[1],
        cond_aug=0.02,
        licence=_STABILITY,
        repo=f"stabilityai/stable-video-diffusion-{repo}",
        sizes=_SIZES,
    )


def _sv3d(name: str, title: str, family: str) -> Version:
    return Version(
        name=name,
        title=title,
        frames=21,
        height=576,
        width=576,
        steps=50,
        fps=7,
        guider="triangle",
        min_guidance=1.0,
        max_guidance=2.5,
        cond_aug=1e-5,
        licence=_STABILITY,
        repo="stabilityai/sv3d",
        fit="object",
        family=family,
    )


def _sv4d(name: str, title: str, repo: str, *, views: int, times: int, steps: int, **others) -> Version:
    return Version(
        name=name,
        title=title,
        frames=21,
        height=576,
        width=576,
        steps=steps,
        fps=10,
        cond_aug=1e-5,
        licence=_STABILITY,
        repo=f"stabilityai/{repo}",
        fit="object",
        family=f"{name.partition('_')[0]} views",
        num_views=views,
        times=times,
        sigma_max=700.0,  # the YAMLs say 500 and other guidance, which never ran: this is the authors' program's
        **others,
    )


_14 = {"frames": 14, "steps": 25, "guidance": (1.0, 2.5)}
_25 = {"frames": 25, "steps": 30, "guidance": (1.5, 3.0)}

# Those that turn a picture into a clip.
VERSIONS: dict[str, Version] = {
    version.name: version
    for version in (
        Version(
            name="svd_tiny",
            title="SVD tiny",
            frames=14,
            height=256,
            width=448,
            steps=6,
            fps=7,
            guider="linear",
            min_guidance=1.0,
            max_guidance=1.0,
            cond_aug=0.02,
            licence="CC BY-SA 4.0",
            family="camera",
            multiple=32,
            latent_bytes=3910,
            pixel_bytes=64,
            sizes=((448, 256), (256, 448), (320, 192), (192, 320)),
            least=96,
        ),
        _svd("svd", "SVD", "img2vid", **_14),
        _svd("svd_image_decoder", "SVD, image decoder", "img2vid", **_14),
        _svd("svd_xt", "SVD-XT", "img2vid-xt", **_25),
        _svd("svd_xt_image_decoder", "SVD-XT, image decoder", "img2vid-xt", **_25),
        _svd("svd_xt_1_1", "SVD-XT 1.1", "img2vid-xt-1-1", **_25),
        Version(  # svd_xt's network, distilled to take a few steps; settings: its authors'
            name="svd_xt_lcm",
            title="SVD-XT, few steps (AnimateLCM)",
            frames=25,
            height=576,
            width=1024,
            steps=4,
            fps=8,
            guider="linear",
            min_guidance=1.0,
            max_guidance=1.2,
            cond_aug=0.02,
            licence=f"see its page; of its base svd_xt: {_STABILITY}",
            repo="wangfuyun/AnimateLCM-SVD-xt",
            file="AnimateLCM-SVD-xt-1.1.safetensors",
            base="svd_xt",
            sampler="lcm",
            motion_bucket=80,
            sizes=_SIZES,
        ),
        _sv3d("sv3d_u", "SV3D, orbit at eye level", "orbit"),
        _sv3d("sv3d_p", "SV3D, chosen elevation", "elevated orbit"),
    )
}
# Those that take a clip of an object and make clips of it from other sides.
VIEW_VERSIONS: dict[str, Version] = {
    version.name: version
    for version in (
        _sv4d(
            "sv4d",
            "SV4D, 8 views",
            "sv4d",
            views=8,
            times=5,
            steps=20,
            guider="spatiotemporal",
            min_guidance=1.0,
            max_guidance=2.0,
            begins_with="sv3d_u",
            image_frame_ratio=0.917,
        ),
        _sv4d(
            "sv4d2",
            "SV4D 2.0, 4 views",
            "sv4d2.0",
            views=4,
            times=12,
            steps=50,
            guider="linear",
            min_guidance=1.0,
            max_guidance=2.0,
        ),
        _sv4d(
            "sv4d2_8views",
            "SV4D 2.0, 8 views",
            "sv4d2.0",
            views=8,
            times=5,
            steps=50,
            guider="spatiotemporal",
            min_guidance=1.5,
            max_guidance=2.5,
        ),
    )
}
ALL_VERSIONS: Mapping[str, Version] = ChainMap(VIEW_VERSIONS, VERSIONS)  # the latter first
DEFAULT_VERSION = "svd_tiny"
