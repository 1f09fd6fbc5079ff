"""A sweep's folder: where each cell's clip lies, which are there already, and the table of all."""

from __future__ import annotations

import csv
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from sgm.cli.batch import plain_stem
from sgm.cli.made import made_at
from sgm.errors import UserError, printable
from sgm.paths import exists, folded, is_file, numbered, refusals_explained, replacing

if TYPE_CHECKING:
    from PIL import Image

    from sgm import Axis, Cell

CLIPS, TABLE = "clips", "sweep.csv"
_LONGEST_NAME, _LONGEST_STEM = 180, 80  # bytes: of a clip's name without its suffix, of the picture's part of it
_MEASURES = ("file", "seconds", "evaluations")


class Pictures:
    """The pictures of a sweep, opened when they are needed; the latest one stays open.

    last: the last picture, of all cells that end at one.
    """

    def __init__(self, background_model: str, last: Image.Image | None = None) -> None:
        self._background_model, self._last = background_model, last
        self._latest: tuple[Path, bool, Image.Image] | None = None
        self._cut_last: Image.Image | None = None

    def of(self, cell: Cell) -> Image.Image:
        """A cell's picture; for a fit of "object" without its background. Raises PictureError."""
        from sgm import open_picture

        assert isinstance(cell.picture, Path)
        cut = cell.request.fit == "object"
        if self._latest is None or self._latest[:2] != (cell.picture, cut):
            image = open_picture(cell.picture, keep_alpha=cut)
            self._latest = cell.picture, cut, self._without_background(image, cell) if cut else image
        return self._latest[2]

    def last_of(self, cell: Cell) -> Image.Image | None:
        """A cell's last picture, likewise; None of a cell that ends at none."""
        if not cell.request.takes_last or self._last is None or cell.request.fit != "object":
            return self._last if cell.request.takes_last else None
        self._cut_last = self._cut_last or self._without_background(self._last, cell)
        return self._cut_last

    def shown(self, cell: Cell) -> dict[str, Image.Image]:
        """A cell's pictures as the model sees them, by their names in recipes. Raises PictureError."""
        from sgm import prepare_picture

        found = {"picture": self.of(cell), "last": self.last_of(cell)}
        return {name: prepare_picture(image, cell.request) for name, image in found.items() if image}

    def _without_background(self, image: Image.Image, cell: Cell) -> Image.Image:
        return cell.request.family.prepare(image, cell.request, self._background_model).image


class SweepFolder:
    """The clips of a sweep below `clips/`, and `sweep.csv`.

    Raises UserError for a folder that holds another sweep, also one of other pictures, or files of these names that no
    sweep made.
    """

    def __init__(self, out: Path, axes: Sequence[Axis], files: Iterable[Path], pictures: Pictures) -> None:
        self.out, self._pictures = out, pictures
        self._axes = {axis.name: axis for axis in axes}
        self._columns = ["picture", *self._axes, *_MEASURES]
        self._stems = _stems(files)
        self._rows: dict[Cell, dict[str, Any]] = {}
        self._known: dict[str, str] = {}
        self.read()

    def read(self) -> None:
        """Learn from the table, as it was left, what clips took. Raises UserError as the class does."""
        table = self.out / TABLE
        if not exists(table):
            if other := next((path for path in (self.grid(0, ".mp4"), self.grid(0, ".png")) if exists(path)), None):
                raise UserError(f"{other} is there, but no {TABLE} beside it: choose another folder, it would be lost.")
            return
        try:
            with refusals_explained(table), table.open(newline="", encoding="utf-8", errors="replace") as file:
                reader = csv.DictReader(file)
                same = (reader.fieldnames or [])[: len(self._columns)] == self._columns
                rows = list(reader) if same else []
        except csv.Error as error:
            raise UserError(f"{self.out} holds {table}, which is damaged ({error}): remove it.") from error
        if not same:
            raise UserError(f"{self.out} holds another sweep, as {table} says: choose another folder.")
        # By their names, wherever they lie now, also on Windows.
        pictures = {PureWindowsPath(row["picture"] or "").name for row in rows} - {""}
        if pictures and pictures.isdisjoint(PureWindowsPath(printable(path)).name for path in self._stems):
            names = printable(", ".join(sorted(pictures)), 200)
            raise UserError(
                f"{self.out} holds a sweep of {names}, as {table} says, which would be lost: choose another folder."
            )
        self._known = {row["file"]: row["seconds"] or "" for row in rows}

    def grid(self, page: int, suffix: str) -> Path:
        """The name of a page of the grid, from 0."""
        return self.out / f"grid{f'-{page + 1}' if page else ''}{suffix}"

    def write_picture(self, page: int, picture: Image.Image) -> None:
        """Write a page's picture. Raises UserError where it cannot be."""
        path = self.grid(page, ".png")
        with refusals_explained(path, "make room there or choose another place"), replacing(path) as temporary:
            picture.save(temporary, compress_level=3)  # in a third of the usual level's time, no larger

    def remove_pages(self, first: int) -> None:
        """Remove the grid's pages from a number on, from 0: an earlier run of this sweep had more."""
        for suffix in (".mp4", ".png"):
            pages = (self.grid(page, suffix) for page in itertools.count(first))
            for path in itertools.takewhile(is_file, pages):
                with refusals_explained(path, "remove it"):
                    path.unlink()

    def find(self, cell: Cell, reference: bool = False) -> tuple[Path, dict[str, Any] | None]:
        """Where a cell's clip lies, and its recipe; or where it is to be written, and None.

        A clip counts as made if it is whole and its recipe is the cell's, with the pictures as the model sees them.
        What else has its name stays: the clip then gets -2, -3, ...
        """
        from sgm import Smoothing

        first = self.out / CLIPS / f"{self._stem(cell, reference)}.mp4"
        for path in numbered(first):
            with refusals_explained(path):
                if not exists(path) or not path.stat().st_size:
                    return path, None
            settings, whole = made_at(path, cell.request, Smoothing(), lambda: self._pictures.shown(cell))
            if settings is not None:
                return path, settings if whole else None
        raise AssertionError

    def _stem(self, cell: Cell, reference: bool) -> str:
        """The name of a cell's clip, such as "lake_steps=10_seed=1"; a hash stands for what makes it too long."""
        assert isinstance(cell.picture, Path)
        words = str(cell).replace(" ", "_").replace(",", "+").replace(":", "-")
        stem = f"{'reference_' if reference else ''}{self._stems[cell.picture]}{words and '_'}{words}"
        if len(stem.encode()) <= _LONGEST_NAME:
            return stem
        return f"{plain_stem(stem, _LONGEST_NAME - 9)}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"

    def add(self, cell: Cell, path: Path | None, seconds: float | None, error: str) -> None:
        """Give a cell its row in the table. seconds: None for a clip that was made before, whose time is known."""
        file = path.relative_to(self.out).as_posix() if path else ""
        took = self._known.get(file, "") if seconds is None else f"{seconds:.2f}"
        values = {name: axis.text(cell.values[name]) for name, axis in self._axes.items()}
        measures = dict(zip(_MEASURES, (file, took, cell.request.evaluations), strict=True))
        self._rows[cell] = {"picture": printable(cell.picture), **values, **measures, "error": error}

    def add_scores(self, cell: Cell, scores: Mapping[str, float | None]) -> None:
        """Add figures to a cell's row, by column."""
        self._rows[cell] |= {name: "" if value is None else f"{value:.6g}" for name, value in scores.items()}

    def write(self, order: Sequence[Cell]) -> None:
        """Write the table, rows in that order, under a temporary name first. Raises UserError where it cannot be."""
        rows = [self._rows[cell] for cell in order if cell in self._rows]
        columns = dict.fromkeys(itertools.chain(self._columns, *rows))
        names = [*(name for name in columns if name != "error"), "error"]
        table = self.out / TABLE
        with refusals_explained(table, "close it elsewhere, or make room there"), replacing(table) as temporary:
            table.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(rows)


def _stems(files: Iterable[Path]) -> dict[Path, str]:
    """A name for each picture, of its file's stem, with -2, -3, ... where several have the same on some system."""
    stems: dict[Path, str] = {}
    taken: set[str] = set()
    for path in files:
        plain = plain_stem(path.stem, _LONGEST_STEM)
        names = itertools.chain([plain], (f"{plain}-{n}" for n in itertools.count(2)))
        stems[path] = next(name for name in names if folded(name) not in taken)
        taken.add(folded(stems[path]))
    return stems
