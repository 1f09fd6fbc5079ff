"""Amounts as text for people: times and sizes of files."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A time, about as exact as an estimate: "8 s", "1 min 20 s", "12 min", "2 h 30 min", "14 h"."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours >= 10:
        return f"{round(seconds / 3600)} h"
    return f"{minutes} min" if not hours else f"{hours} h {minutes} min" if minutes else f"{hours} h"


def file_size(size: int) -> str:
    """A number of bytes: "8.2 MB", "4.50 GB"."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
