"""Grids: clips side by side, all in sync, with labelled rows and columns, as a video's frames and as a picture."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from sgm.media.lettering import escaped, line
from sgm.media.reading import MAX_FRAMES, Video, open_video

MAX_WIDTH, MAX_HEIGHT = 3840, 2160  # of a grid, pixels: what players decode everywhere
_SMALLEST = 192  # pixels of a tile's width, so that its label can be read
_PAPER, _INK, _QUIET, _EMPTY, _BARS = "#ffffff", "#1d2b2a", "#5c6b6a", "#eef1f0", "#000000"
Source = str | Path | bytes  # a clip's file, or its content


class _Length(NamedTuple):
    """What a clip's file says of it."""

    frames: int
    fps: float
    width: int
    height: int

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


class _Layout(NamedTuple):
    """Pixels of a grid: of a tile, of the margin at the left and at the top, of a caption and of a gap; of the text."""

    tile: tuple[int, int]
    left: int
    top: int
    caption: int
    gap: int
    text: int
    size: tuple[int, int]

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """The top left of a tile, x and y."""
        width, height = self.tile
        return self.left + column * (width + self.gap), self.top + row * (
            height + self.caption + self.gap
        ) + self.caption


class ClipGrid:
    """Clips in rows and columns, in sync, as frames for `write_video`: iterating makes them one by one, from the files.

    clips: rows of files; None is an empty place, or a clip that failed. columns, rows: their labels, or none; captions:
    instead of these, one label above each clip. title: one line above all.
    The grid lasts as long as its longest clip, at the highest of the frame rates; the last frame of one that ends
    earlier is held. All tiles are of the largest clip's size; smaller clips are scaled to lie within, on black. The
    grid is scaled down to at most MAX_WIDTH × MAX_HEIGHT pixels and has at most 800 frames. Memory: one frame of each.
    Raises UserError for a file that cannot be read.
    """

    ndim, dtype = 4, np.dtype(np.uint8)

    def __init__(
        self,
        clips: Sequence[Sequence[Source | None]],
        columns: Sequence[str] = (),
        rows: Sequence[str] = (),
        captions: Sequence[Sequence[str]] = (),
        title: str = "",
        on_frame: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        self.clips, self.columns, self.rows, self.captions, self.title = clips, columns, rows, captions, title
        self.on_frame = on_frame  # called with the number of frames that are made, and of all
        lengths = [_length(clip) for row in clips for clip in row if clip is not None]
        self._lengths = lengths
        seconds = max((length.seconds for length in lengths), default=1.0)
        self.fps = min(max((length.fps for length in lengths), default=1.0), MAX_FRAMES / seconds)
        self._layout = self._laid_out()
        count = max(1, math.floor(seconds * self.fps + 1e-6))
        self.shape = count, self._layout.size[1], self._layout.size[0], 3

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def escaped(self) -> str:
        """The letters of labels that no font of this computer has: they are drawn as escapes, "\\u6e56"."""
        return escaped([*self.columns, *self.rows, *itertools.chain(*self.captions), self.title])

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames, uint8 (H, W, 3). Each is a new array."""
        canvas = self._canvas()
        with contextlib.ExitStack() as stack:
            players = [self._player(stack, *place) for place in self._places()]
            for number in range(len(self)):
                for (x, y), player in players:
                    _paste(canvas, x, y, player.at(number / self.fps))
                yield canvas.copy()
                self.on_frame(number + 1, len(self))

    def picture(self) -> Image.Image:
        """The middle frame of each clip, in RGB."""
        canvas = self._canvas()
        for place, length in zip(self._places(), self._lengths, strict=True):
            with contextlib.ExitStack() as stack:
                (x, y), player = self._player(stack, *place)
                _paste(canvas, x, y, player.at(length.frames // 2 / length.fps))
        return Image.fromarray(canvas)

    def _player(
        self, stack: contextlib.ExitStack, corner: tuple[int, int], clip: Source
    ) -> tuple[tuple[int, int], _Player]:
        """The corner of a clip's frames in the grid, and its player."""
        player = _Player(stack.enter_context(open_video(clip)), self._layout.tile)
        return (corner[0] + player.corner[0], corner[1] + player.corner[1]), player

    def _places(self) -> list[tuple[tuple[int, int], Source]]:
        """Each clip with its tile's corner."""
        table = [(self._layout.corner(i, j), clip) for i, row in enumerate(self.clips) for j, clip in enumerate(row)]
        return [(corner, clip) for corner, clip in table if clip is not None]

    def _laid_out(self) -> _Layout:
        """The largest layout within the bounds, tiles of the largest clip's size at most."""
        width = max((length.width for length in self._lengths), default=320)
        height = max((length.height for length in self._lengths), default=192)
        scale = max(1.0, _SMALLEST / width)
        while True:
            layout = self._scaled(max(2, round(scale * width)), max(2, round(scale * height)))
            over = max(layout.size[0] / MAX_WIDTH, layout.size[1] / MAX_HEIGHT)
            if over <= 1 or min(layout.tile) == 2:
                return layout
            scale *= min(0.995, 1 / over)

    def _scaled(self, width: int, height: int) -> _Layout:
        text = round(min(max(14, width / 18), 30))
        gap, height_of_line = max(4, text // 3), round(1.5 * text)
        lines = [line(part, text) for label in self.rows for part in label.split("\n")]
        wide = max((font.getlength(shown) for shown, font in lines), default=0)
        left = min(math.ceil(wide) + text, max(width, 12 * text)) if any(self.rows) else 0
        caption = height_of_line if self.captions else 0
        top = (round(1.9 * text) if self.title else 0) + (height_of_line if any(self.columns) else 0)
        across, down = max(map(len, self.clips)), len(self.clips)
        size = left + gap + across * (width + gap), top + gap + down * (height + caption + gap)
        even = size[0] + size[0] % 2, size[1] + size[1] % 2
        return _Layout((width, height), left + gap, top + gap, caption, gap, text, even)

    def _canvas(self) -> np.ndarray:
        """The grid without its clips: labels, and empty places."""
        layout, (width, height) = self._layout, self._layout.tile
        image = Image.new("RGB", layout.size, _PAPER)
        draw = ImageDraw.Draw(image)

        def write(x: float, y: float, label: str, most: float, anchor: str, colour: str = _INK) -> None:
            shown, font = line(label, layout.text, most)
            draw.text((x, y), shown, colour, font, anchor)

        if self.title:
            write(layout.left, layout.text, self.title, layout.size[0] - 2 * layout.gap, "lm", _QUIET)
        for j, label in enumerate(self.columns):
            x, y = layout.corner(0, j)[0] + width / 2, layout.top - layout.gap - 0.6 * layout.text
            write(x, y, label, width, "mm")
        for i, label in enumerate(self.rows):
            lines = label.split("\n")
            y = layout.corner(i, 0)[1] + height / 2 - 0.65 * layout.text * (len(lines) - 1)
            for part in lines:
                write(layout.left - 0.6 * layout.text, y, part, layout.left - layout.text, "rm")
                y += 1.3 * layout.text
        for i, row in enumerate(self.clips):
            for j, clip in enumerate(row):
                x, y = layout.corner(i, j)
                caption = self.captions[i][j] if self.captions and j < len(self.captions[i]) else ""
                write(x, y - 0.6 * layout.text, caption, width, "lm")
                if clip is not None:
                    draw.rectangle((x, y, x + width - 1, y + height - 1), _BARS)
                elif caption or not self.captions:  # not the places behind the last caption
                    draw.rectangle((x, y, x + width - 1, y + height - 1), _EMPTY)
                    write(x + width / 2, y + height / 2, "no clip", width, "mm", _QUIET)
        return np.array(image)


class _Player:
    """A clip's frames, scaled to lie within a tile, as time goes on. corner: of the frames within the tile, x and y."""

    def __init__(self, video: Video, tile: tuple[int, int]) -> None:
        scale = min(side / own for side, own in zip(tile, video.size, strict=True))
        width, height = (max(1, round(scale * own)) for own in video.size)
        self.corner = (tile[0] - width) // 2, (tile[1] - height) // 2
        self._fps, self._frames = video.fps, video.frames((width, height))
        self._number, self._pixels = -1, np.zeros((0, 0, 3), np.uint8)

    def at(self, seconds: float) -> np.ndarray:
        """The frame that is shown then, the last one after its end: times must not fall."""
        while self._number < math.floor(seconds * self._fps + 1e-6):
            self._number += 1
            self._pixels = next(self._frames, self._pixels)
        return self._pixels


def _length(clip: Source) -> _Length:
    with open_video(clip) as video:
        return _Length(len(video), video.fps, *video.size)


def _paste(canvas: np.ndarray, x: int, y: int, pixels: np.ndarray) -> None:
    canvas[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
