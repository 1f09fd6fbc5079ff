"""What the stand says, in the languages of `texts.yaml`. Does not import Streamlit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

Say = Callable[..., str]  # (key, **values) -> text


@cache
def table() -> dict[str, dict[str, str]]:
    """key -> language -> text."""
    path = Path(__file__).with_name("texts.yaml")
    return OmegaConf.to_container(OmegaConf.create(path.read_text("utf-8")))  # pyright: ignore[reportReturnType]


def languages() -> dict[str, str]:
    """The languages by their codes, each named in itself; the first one is spoken where no other is asked for."""
    return table()["name"]


def language_of(asked: str | None) -> str:
    """The first language spoken here of those that are asked for, as in "fr-CH, de;q=0.7", in their order."""
    codes = [part.partition(";")[0].strip().lower().partition("-")[0] for part in (asked or "").split(",")]
    return next((code for code in codes if code in languages()), next(iter(languages())))


def speaker(language: str) -> Say:
    """A function that says things in a language, with values in the places of their {names}."""
    return lambda key, **values: table()[key][language].format(**values)


def duration(say: Say, seconds: float) -> str:
    """About how long, for people who wait."""
    return say("seconds", n=max(5, 5 * round(seconds / 5))) if seconds < 90 else say("minutes", n=round(seconds / 60))
