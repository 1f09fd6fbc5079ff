"""Damaged copies of files, the same ones in each run."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence


def damaged(contents: Sequence[bytes], count: int) -> Iterator[bytes]:
    """`count` copies, cut short, with a gap, or with wrong bytes, often near the start, where sizes are."""
    draw = random.Random(5)
    for number in range(count):
        content = bytearray(contents[number % len(contents)])
        at, how = draw.randrange(len(content)), draw.random()
        if how < 0.25:
            del content[at:]
        elif how < 0.4:
            del content[at : at + draw.randrange(1, 200)]
        else:
            for _ in range(draw.choice((1, 3, 10, 40))):
                length = draw.choice((len(content), min(400, len(content))))
                content[draw.randrange(length)] = draw.choice((0, 255, draw.randrange(256)))
        yield bytes(content)
