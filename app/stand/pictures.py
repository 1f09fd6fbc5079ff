"""The pictures that the host offers, with their titles. Does not import Streamlit."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omegaconf import OmegaConf
from PIL import Image

from sgm import PictureError, UserError, files_of, open_picture, printable
from sgm.paths import exists, is_file

_SAMPLES = Path(__file__).parents[1] / "samples"
_TITLES = "titles.yaml"
_SIDE, _SMALL_SIDE = 2048, 720  # pixels


@dataclass(frozen=True)
class HostPicture:
    """A picture and its titles: language -> text; "" stands for all languages."""

    path: Path
    titles: dict[str, str]

    def title(self, language: str) -> str:
        """Its title in a language or, without that, in another."""
        return str(self.titles.get(language) or next(iter(self.titles.values())))

    def open(self) -> Image.Image:
        """The picture, upright. Raises PictureError where it has been deleted meanwhile."""
        return at_most(open_picture(self.path))

    @cached_property
    def small(self) -> bytes:
        """A JPEG for the page's buttons. Raises PictureError."""
        file = io.BytesIO()
        image = self.open().convert("RGB")
        image.thumbnail((_SMALL_SIDE, _SMALL_SIDE))
        image.save(file, "JPEG", quality=82)
        return file.getvalue()


def at_most(image: Image.Image) -> Image.Image:
    """The picture, or a smaller one: no model sees more, and it is stored with each film."""
    if max(image.size) <= _SIDE:
        return image
    image = image.copy()
    image.thumbnail((_SIDE, _SIDE))
    return image


def host_pictures(folder: Path | None, say: Callable[[str], object]) -> list[HostPicture]:
    """The pictures of a folder, by their files' names; None for the app's samples.

    Titles are the files' names, unless `titles.yaml` has others. Which files are left out is said in one line. Raises
    UserError where none is left, and for a wrong titles.yaml.
    """
    where, left_out = folder or _SAMPLES, []
    titles = _titles(where / _TITLES)
    pictures = []
    for path in files_of(where, "picture", left_out.append):
        given = titles.get(path.name, path.stem.replace("_", " "))
        picture = HostPicture(path, given if isinstance(given, dict) else {"": given})
        try:
            if folder:
                _ = picture.small  # which is needed soon, and finds what is damaged
            pictures.append(picture)
        except PictureError as error:
            left_out.append(str(error))
    if not pictures:
        raise UserError(f"{where} holds no pictures that can be read. {' '.join(left_out)}")
    if left_out:
        say(" ".join(left_out))
    return pictures


def _titles(path: Path) -> dict[str, str | dict[str, str]]:
    if not exists(path):
        return {}
    try:
        assert is_file(path)  # a pipe would be waited for
        titles = OmegaConf.to_container(OmegaConf.create(path.read_text("utf-8")), resolve=False)
        assert isinstance(titles, dict)
        for title in titles.values():
            texts = list(title.values()) if isinstance(title, dict) else [title]
            assert texts
            assert all(isinstance(text, (str, int, float)) for text in texts)
    except Exception as error:  # YAML has many kinds
        raise UserError(
            f"{printable(path)} must give titles, a file a line, such as `lake.jpg: A lake`, or one for each language, "
            "such as `lake.jpg: {en: A lake, de: Ein See}`."
        ) from error
    return titles  # pyright: ignore[reportReturnType]
