"""Lines of text on pictures: in a font that has their letters, or with escapes for those that none has."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

_COMMON = frozenset((*range(0x21, 0x7F), *range(0xA1, 0x180)))  # Latin letters, which the usual font has
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def line(text: str, size: int, width: float = math.inf) -> tuple[str, Font]:
    """A line of text as it can be drawn, at most `width` pixels wide, and its font.

    Where it was longer, it has an ellipsis in its middle; a letter that no font here has becomes its escape, "\\u6e56".
    """
    lacking = _lacking(text)
    path = _with_letters(lacking) if lacking else None
    text = text if path else "".join(f"\\u{ord(char):04x}" if char in lacking else char for char in text)
    font = _font(size, path)
    keep, shown = len(text), text
    while keep > 1 and font.getlength(shown) > width:
        keep -= 1
        shown = f"{text[: math.ceil(keep / 2)]}…{text[len(text) - keep // 2 :]}"
    return shown, font


def escaped(texts: Iterable[str]) -> str:
    """The letters of texts that `line` shows as escapes."""
    lacking = {_lacking(text) for text in texts}
    return "".join(sorted(set().union(*(letters for letters in lacking if letters and not _with_letters(letters)))))


@cache
def _usual() -> Path:
    """DejaVu Sans, which comes with matplotlib: Pillow's own font has the letters of ASCII only."""
    package = find_spec("matplotlib")  # whose import takes a while
    assert package
    assert package.origin
    return Path(package.origin).parent.joinpath("mpl-data", "fonts", "ttf", "DejaVuSans.ttf")


@cache
def _font(size: int, path: Path | None) -> Font:
    try:
        return ImageFont.truetype(path or _usual(), size)
    except OSError:
        return ImageFont.load_default(size)


def _lacking(text: str) -> frozenset[str]:
    """The letters that the usual font lacks."""
    rare = {char for char in text if not char.isspace() and ord(char) not in _COMMON}
    return frozenset(char for char in rare if ord(char) not in _letters(_usual()))


@cache
def _with_letters(letters: frozenset[str]) -> Path | None:
    """A font of this computer that has these letters and those of ASCII."""
    from matplotlib.font_manager import findSystemFonts

    wanted = {*map(ord, letters), *range(0x21, 0x7F)}
    return next((path for path in sorted(map(Path, findSystemFonts())) if wanted <= _letters(path)), None)


@cache
def _letters(path: Path) -> frozenset[int]:
    """The letters that a font has, as code points."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError):  # bitmaps, and damaged files
        return frozenset()
