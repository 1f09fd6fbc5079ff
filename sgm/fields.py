"""Field: one setting of a video request, with its range, unit, label and help. Choice: one value of a named setting.

A field's row stands where what it sets is defined: a sampler's options in its class, a camera's in its family.
`sgm.request` gathers them; the command line, the page, links and recipes read them there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np

from sgm.errors import UserError, shown


class Choice(Protocol):
    """One value of a field of names. title: for people. options: parameter name -> field, for this value alone."""

    @property
    def title(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Field]: ...


@dataclass(frozen=True)
class Named:
    """A choice that is nothing but its name, its title and its options."""

    title: str
    options: Mapping[str, Field] = field(default_factory=dict)


@dataclass(frozen=True)
class Field:
    """One setting. kind: int, float, str (one of `choices`) or tuple (of numbers).

    low, high: what is accepted. usual: the part of it that a slider shows. step: a number field's. default None: the
    model version's own. unit: "frames", "pixels", "degrees" ...; help: one or two sentences for the page and the
    command line. choices: name -> choice, looked up at each use, since samplers and guiders may be added.
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

    def check(self, value: Any) -> Any:
        """The value as its kind. Raises UserError, saying what was given and what was expected."""
        if self.choices is not None:
            known = self.choices()
            if not isinstance(value, str) or value not in known:
                raise UserError(f"{self.name} must be one of {', '.join(known)}; got {shown(value)}.")
            return value
        if self.kind is tuple:
            return self._check_list(value)
        whole = self.kind is int
        if not is_number(value, whole) or not self.low <= value <= self.high:
            kind = "a whole number" if whole else "a number"
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
        """The value that a text means, as `text` writes it or as people type it; not yet checked for its range.

        Lists: numbers with commas, spaces or lines between. Raises UserError for what is no number.
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

    def title(self, value: Any) -> str:
        """The value for people: a choice's title, a number with its unit."""
        if self.choices is not None:
            known = self.choices().get(str(value))
            return (known.title if known else "") or str(value).replace("_", " ").capitalize()
        return f"{self.text(value)}°" if self.unit == "degrees" else self.text(value)


def is_number(value: Any, whole: bool = False) -> bool:
    """Whether a value is a real number, or a whole one: Python's own or numpy's, but no truth value."""
    return not isinstance(value, bool) and isinstance(value, Integral if whole else Real)
