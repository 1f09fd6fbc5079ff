"""UserError: the error whose message is shown to the user as it is, and how values and names appear in messages."""

from __future__ import annotations

import re
import reprlib
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LONGEST_MESSAGE = 2000  # characters
_STEERING = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories of control characters, surrogates, line separators
_BIDI = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # writing direction


def printable(text: object, limit: int = 200) -> str:
    """A name from outside in one line of at most `limit` characters, without what would steer a terminal.

    Control characters, line breaks, marks of writing direction and lone surrogates become escapes such as \\x1b.
    """
    line = str(text)
    if len(line) > limit:
        line = f"{line[: limit * 2 // 3]}…{line[-limit // 4 :]}"
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _STEERING or char in _BIDI else char
        for char in line
    )


class UserError(ValueError):
    """An error that the user can fix; the message says what was given, what was expected and what to do.

    The message is made `printable`: the names in it may come from anywhere. exit_code: the command line's, if it is
    another than that of every error.
    """

    exit_code: int | None = None

    def __init__(self, message: object) -> None:
        super().__init__(printable(message, _LONGEST_MESSAGE))


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 2


def shown(value: Any) -> str:
    """A value as messages show it: its repr, shortened where that is long, as a file from elsewhere may make it."""
    try:
        return _short.repr(value)
    except ValueError:  # Python writes no more than some thousand digits of an int
        return f"a number of {value.bit_length()} bits"


def reason_of(error: Exception) -> str:
    """Why something from outside could not be read, in a few words for a message, without Python's own terms."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, UnicodeError):
        return "it is no text in UTF-8"
    if isinstance(error, (TypeError, AttributeError, LookupError)):
        return "something in it is missing, or of another kind than expected"
    words = re.split(r"; use sys\.| See https:", " ".join(str(error).split()))[0]  # advice for programmers
    return printable(words.rstrip("."), 200) or "it is of another kind"


@contextmanager
def enough_memory(
    advice: str = "take fewer frames or a smaller size, or decode fewer frames at once",
) -> Iterator[None]:
    """Context manager or decorator that raises UserError where memory runs out inside. advice: what helps, in words."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = str(error)
        # Only for CUDA has torch an error class of its own.
        if not (isinstance(error, MemoryError) or "out of memory" in message or "DefaultCPUAllocator" in message):
            raise
        raise UserError(f"This needs more memory than there is. Close other programs, {advice}.") from error
