"""Field: one setting of a video request, with range, unit, label and help. Choice: one value of a setting of names.

Fields are defined beside the code that they set: a sampler's options in its class, the camera in its family.
`sgm.request` collects them for the command line, the page, links and recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np

from sgm.errors import UserError, shown


class Choice(Protocol):
    """One value of a field of names, such as a sampler. title: for people. options: its parameters' names -> fields."""

    @property
    def title(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Field]: ...


@dataclass(frozen=True)
class Named:
    """A choice without a class of its own."""

    title: str
    options: Mapping[str, Field] = field(default_factory=dict)


@dataclass(frozen=True)
class Field:
    """One setting. kind: int, float, str (one of `choices`) or tuple (of numbers).

    low, high: the range that is accepted. usual: the part of the range that a slider shows. step: the increment of a
    number field. default: None for the model version's own. unit: "pixels", "degrees" or "". help: one or two sentences
    for the page and the command line. choices: name -> choice, looked up at each use, since samplers and guiders may be
    added. aliases: other names -> names of choices.
    """

    name: str
    kind: type
    label: str
    help: str
    low: float = 0
    high: float = 1
    default: Any = None
    usual: tuple[float, float] | None = None
    step: float | None = None
    unit: str = ""
    choices: Callable[[], Mapping[str, Choice]] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)

    def check(self, value: Any) -> Any:
        """The value, converted to `kind`. Raises UserError, saying what was given and what was expected."""
        if self.choices is not None:
            choices = self.choices()
            value = self.aliases.get(value, value) if isinstance(value, str) else value
            if not isinstance(value, str) or value not in choices:
                raise UserError(f"{self.name} must be one of {', '.join(choices)}; got {shown(value)}.")
            return value
        if self.kind is tuple:
            return self._check_list(value)
        integer = self.kind is int
        if not is_number(value, integer) or not self.low <= value <= self.high:
            kind = "a whole number" if integer else "a number"
            raise UserError(f"{self.name} must be {kind} from {self.low:g} to {self._high}; got {shown(value)}.")
        return self.kind(value)

    def _check_list(self, values: Any) -> tuple[float, ...]:
        values = values.tolist() if isinstance(values, np.ndarray) else values
        if not isinstance(values, (list, tuple)):
            raise UserError(f"{self.name} must be a list of {self.unit or 'numbers'}; got {shown(values)}.")
        for i, value in enumerate(values, start=1):
            if not is_number(value) or not self.low <= value <= self.high:
                raise UserError(
                    f"{self.name} must be numbers from {self.low:g} to {self._high}{self.unit and ' '}{self.unit}; "
                    f"number {i} is {shown(value)}."
                )
        return tuple(float(value) for value in values)

    @property
    def _high(self) -> str:
        return str(self.high) if isinstance(self.high, int) else f"{self.high:g}"

    def parse(self, text: str) -> Any:
        """The value of a text, as `text` writes it or as people type it; its range is not checked.

        Lists: numbers separated by commas or white space. Raises UserError for text that is no number.
        """
        if self.kind is str:
            return text
        if self.kind is tuple:
            try:
                return tuple(float(word) for word in text.replace(",", " ").split())
            except ValueError as error:
                word = str(error).rpartition(": ")[2][1:-1]
                raise UserError(
                    f"{self.name} must be numbers with commas between, as in 0, 12.5, 30; got {shown(word)}."
                ) from None
        try:
            return self.kind(text)
        except ValueError:
            kind = "a whole number" if self.kind is int else "a number"
            raise UserError(f"{self.name} must be {kind}; got {shown(text)}.") from None

    def text(self, value: Any) -> str:
        """The value as text that `parse` reads back to the last digit."""
        if self.kind is tuple:
            return ", ".join(repr(float(number)).removesuffix(".0") for number in value)
        return repr(value).removesuffix(".0") if self.kind is float else str(value)

    def argument(self, value: Any) -> str:
        """The value as a command-line argument: as `text`, but lists have no spaces."""
        return self.text(value).replace(", ", ",") if self.kind is tuple else self.text(value)

    def title(self, value: Any) -> str:
        """The value for people: a choice's title, a number with its unit."""
        if self.choices is not None:
            choice = self.choices().get(str(value))
            return (choice.title if choice else "") or str(value).replace("_", " ").capitalize()
        return f"{self.text(value)}°" if self.unit == "degrees" else self.text(value)


def is_number(value: Any, integer: bool = False) -> bool:
    """Whether a value is a real number, or an integer, of Python or numpy, but not a bool."""
    return not isinstance(value, bool) and isinstance(value, Integral if integer else Real)
