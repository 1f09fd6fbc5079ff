"""Making a sweep's clips, one after the other, with one engine loaded; then the grid of all."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgm.amounts import duration
from sgm.cli.batch import tell_failure
from sgm.cli.console import echo_result, echo_stderr, progress_bar
from sgm.cli.ends import tell_loop
from sgm.cli.folder import Pictures, SweepFolder
from sgm.errors import UserError
from sgm.process import collect_and_freeze, reuse_freed_memory, stand_back

if TYPE_CHECKING:
    from PIL import Image

    from sgm import Cell, Memo, Page


_AGAINST = ("psnr", "ssim", "xpsnr", "lpips")  # the scores that need a reference


class Countdown:
    """The time that work in parts takes: what was expected, corrected by what the finished parts took."""

    def __init__(self, expected: float, took: float = 0.0, instead_of: float = 0.0) -> None:
        """expected: seconds of all parts. took: seconds of earlier work, for which `instead_of` was expected."""
        self.expected, self._ahead = expected, expected
        self._took, self._instead_of = took, instead_of

    def finish(self, expected: float, took: float | None) -> None:
        """One part is done. took: its seconds; None for one that teaches nothing."""
        self._ahead -= expected
        if took is not None:
            self._took, self._instead_of = self._took + took, self._instead_of + expected

    def left(self, done: float = 0.0, since: float = 0.0) -> float:
        """Seconds left. done: expected seconds of the running part that are done; since: seconds that they took."""
        took, instead_of = self._took + since, self._instead_of + done
        return max(self._ahead - done, 0.0) * (took / instead_of if instead_of > 0.02 * self.expected else 1.0)

    def share(self, done: float = 0.0) -> float:
        """Share of all that is done, 0 to 1."""
        return 1 - max(self._ahead - done, 0.0) / self.expected if self.expected else 1.0


class Making:
    """The clips of a sweep, in their order. What is made already is only scored.

    places: each cell's file, and its recipe if it is made. compared: each cell's reference. price: seconds of a cell's
    clip and of loading its model that are expected. load: (version, on_progress) -> engine; its errors end the sweep.
    """

    def __init__(
        self,
        folder: SweepFolder,
        pictures: Pictures,
        order: Sequence[Cell],
        places: Mapping[Cell, tuple[Path, dict[str, Any] | None]],
        compared: Mapping[Cell, Cell],
        price: Callable[[Cell], tuple[float, float]],
        load: Callable[..., Any],
        low_memory: bool,
    ) -> None:
        self.folder, self.pictures, self.order, self.compared = folder, pictures, order, compared
        self.price, self.load, self.low_memory = price, load, low_memory
        self.made: dict[Cell, Path] = {}
        self._paths: dict[Cell, Path] = {}
        self.add_places(places)
        self._said: set[str] = set()  # failures, notes on memory, and pictures that may be the last one, too
        self._engine: Any = None
        self._memo: Memo | None = None
        todo = [cell for cell in order if cell not in self.made]
        loads = {cell.request.version: price(cell)[1] for cell in todo}
        self._countdown = Countdown(sum(price(cell)[0] for cell in todo) + sum(loads.values()))

    def add_places(self, places: Mapping[Cell, tuple[Path, dict[str, Any] | None]]) -> None:
        """Note cells' files, and their recipes where they are made."""
        self.made |= {cell: path for cell, (path, recipe) in places.items() if recipe is not None}
        self._paths |= {cell: path for cell, (path, _) in places.items()}

    @property
    def seconds(self) -> float:
        """Seconds that are expected to be left."""
        return self._countdown.left()

    def run(self, cells: Sequence[Cell]) -> None:
        """Make what is missing, and score all. cells: those with a row in the table. Scripts get each new clip's path.

        A clip is scored while the next one is made, in the time that this leaves: on a GPU, nearly all of it.
        """
        listed = set(cells)
        for cell in listed & self.made.keys():  # at once, lest a stop lose what the table says of them
            self.folder.add(cell, self.made[cell], None, "")
        scored: tuple[Cell, Future[dict[str, float | None]]] | None = None
        with progress_bar() as show:
            for number, cell in enumerate(self.order, 1):
                seconds, error = None, ""
                if cell in self.made:
                    share = self._countdown.share() if self.seconds else number / len(self.order)
                    show(f"score {number}/{len(self.order)}", share)
                else:
                    seconds, error = self._attempt(cell, show)
                if cell not in listed:
                    continue
                self.folder.add(cell, self.made.get(cell), seconds, error)
                if scored:
                    self.folder.add_scores(scored[0], scored[1].result())
                self._write(cells)
                scored = (cell, in_own_thread(self._scores, cell, self._picture(cell))) if cell in self.made else None
            if scored:
                self.folder.add_scores(scored[0], scored[1].result())
            self.folder.write(cells)

    def _write(self, cells: Sequence[Cell]) -> None:
        """Write the table so far; where another program holds it, as Excel does on Windows, the next clip's does."""
        try:
            self.folder.write(cells)
        except UserError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
            if str(error) not in self._said:
                self._said.add(str(error))
                echo_stderr(f"{error} It is tried again with the next clip.")

    def _attempt(self, cell: Cell, show: Callable[..., None]) -> tuple[float | None, str]:
        """Make a cell's clip. -> its seconds, or None and why it was not made. Raises the error of a full disk."""
        number = f"{len(self.made) + 1}/{len(self.order)}"
        expected = self.price(cell)[0]
        self._load(cell, show)
        start = time.perf_counter()

        def follow(progress: Any) -> None:
            if progress.note and progress.note not in self._said:
                self._said.add(progress.note)
                echo_stderr(progress.note)
            done, since = progress.fraction * expected, time.perf_counter() - start
            text = f"{number} {progress.phase} {progress.step}/{progress.total}"
            show(text, self._countdown.share(done), self._countdown.left(done, since))

        try:
            self._make(cell, follow)
        except Exception as error:
            self._countdown.finish(expected, None)
            sentence = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            if sentence not in self._said:  # a picture that is gone fails all of its cells
                tell_failure(error, f"{cell.picture} {cell}".strip())
            self._said.add(sentence)
            return None, sentence
        seconds = time.perf_counter() - start
        self._countdown.finish(expected, seconds)
        if not sys.stderr.isatty():
            left = self._countdown.left()
            ahead = f", {duration(left)} left" if left > 0.5 else ""
            echo_stderr(f"{number} {cell}: {seconds:.1f} s{ahead}")
        return seconds, ""

    def _load(self, cell: Cell, show: Callable[..., None]) -> None:
        """Load the cell's model, unless it is."""
        version, expected = cell.request.version, self.price(cell)[1]
        if self._engine is not None and self._engine.version == version:
            return
        from sgm import Memo

        self._engine = self._memo = None  # unload first: two models at once may not fit
        collect_and_freeze()
        start = time.perf_counter()

        def on_progress(share: float) -> None:
            done = share * expected
            show(f"load {version}", self._countdown.share(done), self._countdown.left(done))

        self._engine = self.load(version, on_progress=on_progress)
        self._memo = Memo(self._engine)
        self._countdown.finish(expected, None)
        if (seconds := time.perf_counter() - start) > 5:
            echo_stderr(f"The weights of {version} took {seconds:.0f} s to load.")

    def _make(self, cell: Cell, follow: Callable[[Any], None]) -> None:
        from sgm import generate, write_video

        picture, last, path = self.pictures.of(cell), self.pictures.last_of(cell), self._paths[cell]
        if last and str(cell.picture) not in self._said:
            self._said.add(str(cell.picture))
            tell_loop(cell.request, picture, last, Path(str(cell.picture)).name)
        options = {"low_memory": self.low_memory, "memo": self._memo, "last": last}
        with reuse_freed_memory():
            clip = generate(self._engine, cell.request, picture, follow, **options)
        clip = clip.unmarked()  # its file is what is scored
        write_video(path, clip.frames, clip.fps, clip.settings)
        self.made[cell] = path
        if not sys.stdout.isatty():  # there, the bar would be in its line
            echo_result(path)

    def _picture(self, cell: Cell) -> Image.Image | None:
        """A cell's picture; None where its file has gone meanwhile."""
        try:
            return self.pictures.of(cell)
        except UserError:
            return None

    def _scores(self, cell: Cell, picture: Image.Image | None) -> dict[str, float | None]:
        """The scores of a clip that is made, by column: of its file, as `sgm score` has them."""
        from sgm import read_frames, score_clip

        reference = self.compared.get(cell)
        path = self.made.get(reference) if reference else None
        try:
            frames, other = read_frames(self.made[cell])[0], read_frames(path)[0] if path else None
            scores = score_clip(frames, picture, other, cell.request)
        except UserError as error:  # somebody took the file away; other clips have scores
            echo_stderr(f"{self.made[cell]} has no scores: {error}")
            return {}
        against = {f"reference_{name}": scores.pop(name) for name in _AGAINST}
        return {**scores, **against} if self.compared else scores

    def draw(self, pages: Sequence[Page], title: str) -> None:
        """Write the pages of the grid, as videos and as pictures, and print their paths."""
        from sgm import ClipGrid, write_video

        for number, page in enumerate(pages):
            clips = [[self.made.get(cell) if cell else None for cell in row] for row in page.cells]
            if not any(path for row in clips for path in row):
                continue
            of = f" · page {number + 1} of {len(pages)}" if len(pages) > 1 else ""
            with progress_bar() as show:
                drawn = partial(_show_drawn, show, f"grid {number + 1}/{len(pages)}")
                grid = ClipGrid(clips, page.columns, page.rows, page.captions, title + of, drawn)
                if (letters := grid.escaped) and letters not in self._said:
                    self._said.add(letters)
                    echo_stderr(f"No font here has {letters}: labels show escapes. Install one, as Noto Sans CJK.")
                write_video(self.folder.grid(number, ".mp4"), grid, grid.fps, quick=True)
                self.folder.write_picture(number, grid.picture())
            for suffix in (".mp4", ".png"):
                echo_result(self.folder.grid(number, suffix))
        self.folder.remove_pages(len(pages))


def in_own_thread(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """The result to come of a call in a thread of its own, which is not waited for where an error ends the work.

    It takes the time that others leave, and torch computes in it alone: where there are more OpenMP threads than cores,
    the network's sleep at each layer's end, instead of spinning, and a clip takes 1.1 times as long.
    """
    import torch

    threads = torch.get_num_threads()  # which asking makes the calling thread's own

    def alone() -> Any:
        stand_back()
        torch.set_num_threads(1)
        try:
            return function(*arguments)
        finally:
            torch.set_num_threads(threads)  # with which other threads begin

    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(alone)
    finally:
        pool.shutdown(wait=False)


def _show_drawn(show: Callable[..., None], text: str, done: int, of: int) -> None:
    show(text, done / of)
