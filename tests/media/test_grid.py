"""Grids of clips: all in sync, each in its place, within bounds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

from sgm import ClipGrid, UserError, read_frames, write_video
from sgm.media import grid as module
from sgm.media import lettering


def clip(path: Path, levels: Sequence[int], fps: float, size: tuple[int, int] = (64, 48)) -> Path:
    """A clip of plain grey frames."""
    frames = np.stack([np.full((size[1], size[0], 3), level, np.uint8) for level in levels])
    return write_video(path, frames, fps)


def levels(grid: ClipGrid, row: int, column: int) -> list[int]:
    """The grey of a tile in each frame, beside its middle, where an empty one says so."""
    (x, y), (width, height) = grid._layout.corner(row, column), grid._layout.tile
    return [int(frame[y + height // 4, x + width // 4, 0]) for frame in grid]


def test_clips_of_other_rates_and_lengths_stay_in_sync(tmp_path: Path) -> None:
    slow = clip(tmp_path / "slow.mp4", [0, 100, 200], 5)  # 0.6 s
    fast = clip(tmp_path / "fast.mp4", [0, 50, 100, 150], 10)  # 0.4 s, whose end is held
    grid = ClipGrid([[slow, fast, None]])
    assert (len(grid), grid.fps) == (6, 10)
    assert levels(grid, 0, 0) == pytest.approx([0, 0, 100, 100, 200, 200], abs=3)
    assert levels(grid, 0, 1) == pytest.approx([0, 50, 100, 150, 150, 150], abs=3)
    assert set(levels(grid, 0, 2)) == {0xEE}  # an empty place
    (x, y), (width, height) = grid._layout.corner(0, 1), grid._layout.tile
    assert grid.picture().getpixel((x + width // 4, y + height // 4)) == pytest.approx((100,) * 3, abs=3)  # the middle
    written = write_video(tmp_path / "grid.mp4", grid, grid.fps, quick=True)
    frames, fps = read_frames(written)
    assert (frames.shape, fps) == (grid.shape, 10)
    assert np.abs(frames.astype(int) - np.stack(list(grid))).mean() < 2


def test_tiles_have_the_largest_size_and_smaller_clips_lie_within(tmp_path: Path) -> None:
    wide, tall = clip(tmp_path / "wide.mp4", [200], 5, (256, 64)), clip(tmp_path / "tall.mp4", [200], 5, (64, 256))
    grid = ClipGrid([[wide], [tall]])
    assert grid._layout.tile == (256, 256)
    (frame,) = grid
    for row, (inside, outside) in enumerate([((128, 100), (128, 40)), ((128, 30), (20, 128))]):
        x, y = grid._layout.corner(row, 0)
        assert frame[y + inside[1], x + inside[0], 0] == pytest.approx(200, abs=3)
        assert frame[y + outside[1], x + outside[0], 0] == 0


def test_labels_are_beside_their_clips_and_do_not_move_them(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4", [128], 5, (320, 192))
    named = ClipGrid([[path, path], [path, path]], ["seed 1", "seed 2"], ["steps 1", "a\nb"], title="Title")
    canvas = named._canvas()
    ink = canvas.min(axis=2) < 120
    for row, column in itertools.product(range(2), range(2)):
        (x, y), (width, height) = named._layout.corner(row, column), named._layout.tile
        assert (canvas[y : y + height, x : x + width] == 0).all()  # the clip's own place
        ink[y : y + height, x : x + width] = False
    for row in range(2):  # text left of each row, and above each column
        y = named._layout.corner(row, 0)[1]
        assert ink[y : y + 192, : named._layout.left].any()
        x = named._layout.corner(0, row)[0]
        assert ink[: named._layout.top, x : x + 320].any()
    captions = ClipGrid([[path, path], [path, None]], captions=[["one", "two"], ["three"]])
    assert set(levels(captions, 1, 1)) == {255}  # nothing stands where no caption is


def test_labels_have_all_letters_that_a_font_here_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fonts = clip(tmp_path / "clip.mp4", [128], 5, (320, 192)), Path(matplotlib.get_data_path(), "fonts", "ttf")
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [str(fonts / "STIXGeneral.ttf")])
    lettering._with_letters.cache_clear()
    have = {name: set(FT2Font(str(fonts / name)).get_charmap()) for name in ("DejaVuSans.ttf", "STIXGeneral.ttf")}
    assert have["DejaVuSans.ttf"] >= lettering._COMMON
    other = chr(min(have["STIXGeneral.ttf"] - have["DejaVuSans.ttf"]))
    for text, drawn, file in ((f"a {other}", f"a {other}", "STIXGeneral.ttf"), ("湖 1", "\\u6e56 1", "DejaVuSans.ttf")):
        shown, font = lettering.line(text, 20)
        assert isinstance(font, ImageFont.FreeTypeFont)
        assert (shown, Path(str(font.path)).name) == (drawn, file)
    assert ClipGrid([[path]], [other], ["湖\nb"], title="é").escaped == "湖"
    lettering._with_letters.cache_clear()


def test_a_grid_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WIDTH", 900)
    monkeypatch.setattr(module, "MAX_HEIGHT", 700)
    path = clip(tmp_path / "clip.mp4", [1, 2], 120, (320, 192))
    grid = ClipGrid([[path] * 6] * 6, ["a long label " * 20] * 6, ["another long label " * 20] * 6, title="x" * 999)
    assert grid.shape[1] <= 700
    assert grid.shape[2] <= 900
    assert grid.shape[1] % 2 == grid.shape[2] % 2 == 0
    long = clip(tmp_path / "long.mp4", [0] * 20, 1)
    assert len(ClipGrid([[path, long]])) == 800  # 20 s at 120 frames a second would be 2400


def test_a_file_that_is_no_clip_is_named(tmp_path: Path) -> None:
    (tmp_path / "note.mp4").write_text("no clip")
    with pytest.raises(UserError, match=r"note\.mp4"):
        ClipGrid([[tmp_path / "note.mp4"]])
