"""What the page's tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_reads() -> Iterator[None]:
    """imageio collects garbage whenever it closes a video: not among all modules, which takes a third of a second."""
    gc.freeze()
    yield
    gc.unfreeze()
