"""Graphs of FFmpeg's filters."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import av.filter


@contextmanager
def filter_graph() -> Iterator[av.filter.Graph]:
    """A graph that is freed after use, with its files and memory, once nobody refers to it or to its filters.

    Since PyAV 19 graph and filters refer to each other, and Python's garbage collection, which would find that out some
    time, does not see the hundreds of megabytes that they hold.
    """
    graph = av.filter.Graph()
    try:
        yield graph
    finally:
        for held in gc.get_referents(graph):
            if isinstance(held, dict):
                held.clear()
