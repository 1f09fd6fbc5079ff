"""Sweeps: one clip for each combination of settings, in the order in which they are made and as a grid shows them."""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from sgm.errors import UserError, shown
from sgm.fields import Field, Named
from sgm.request import VideoRequest, ViewsRequest, all_fields, no_such_field
from sgm.versions import VERSIONS

MAX_CELLS = 1000  # unless more are asked for: a typing error shall not fill a night
MAX_ROWS = MAX_COLUMNS = 6  # of a page of a grid
_MOST_VALUES = 100_000  # of an axis
_VERSION = Field(
    "version",
    str,
    "Model version",
    "Which model makes the clip.",
    choices=lambda: {name: Named(version.title) for name, version in VERSIONS.items()},
)
# Fields, and with them their choices' options, on which the picture's embeddings do not depend.
_AFTER_CONDITIONING = ("steps", "decode_chunk", "sampler", "guider", "schedule", "lora")


def sweep_fields() -> dict[str, Field]:
    """What a sweep can vary, by name: the version, and every field of `all_fields`."""
    return {"version": _VERSION, **all_fields()}


@dataclass(frozen=True)
class Axis:
    """One setting that a sweep varies: the name of a field of `sweep_fields`, and its values in order.

    Raises UserError for an unknown name, a value out of the field's range, one that is there twice, and for none.
    """

    name: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        field = self.field
        if len(self.values) > _MOST_VALUES:
            raise UserError(f"{self.name} has more than the {_MOST_VALUES:,} values that can be varied: give fewer.")
        values = tuple(field.check(value) for value in self.values)
        if not values:
            raise UserError(f"{self.name} has no values: give some, as in {self.name}=A,B.")
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise UserError(f"{self.name} has the value {field.text(twice[0])} twice: give each value once.")
        object.__setattr__(self, "values", values)

    @classmethod
    def parse(cls, text: str) -> Axis:
        """An axis as people type it: steps=10,25,50; seed=1..4; steps=10..50..10; period=1/0.5,0.25 (two lists).

        Raises UserError as the class does, and for text of another form.
        """
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise UserError(f"What varies must be of the form NAME=VALUE,VALUE, as in steps=10,25; got {shown(text)}.")
        field = _field(name)
        if field.kind is tuple:
            return cls(name, tuple(field.parse(part) for part in values.split("/")))
        ranges = field.kind is not str or bool(field.choices)  # else names, which may have dots
        parts = (_range(field, part) if ranges and ".." in part else [field.parse(part)] for part in values.split(","))
        return cls(name, tuple(itertools.islice(itertools.chain.from_iterable(parts), _MOST_VALUES + 1)))

    @property
    def field(self) -> Field:
        return _field(self.name)

    def text(self, value: Any) -> str:
        """One of its values, as `parse` reads it, but for a LoRA with a comma in its name."""
        return self.field.argument(value)

    def label(self, value: Any) -> str:
        """One of its values with the axis's name, such as "steps 10"."""
        return f"{self.name} {self.field.text(value)}"

    def __str__(self) -> str:
        """The axis as `parse` reads it."""
        between = "/" if self.field.kind is tuple else ","
        return f"{self.name}={between.join(map(self.text, self.values))}"


def _field(name: str) -> Field:
    field = sweep_fields().get(name)
    if field is None:
        raise UserError(no_such_field(name))
    return field


def _range(field: Field, text: str) -> list[Any]:
    """The values of START..END or START..END..STEP, both ends included, one more than can be varied of too many.

    Raises UserError for another form.
    """
    form = f"{field.name} has the range {shown(text)}, but ranges are START..END or START..END..STEP, as in 10..50..10"
    try:
        start, end, *steps = (Decimal(part) for part in text.split(".."))
        step = steps[0] if steps else Decimal(1 if end >= start else -1)
        if len(steps) > 1 or not step or not all(number.is_finite() for number in (start, end, step)):
            raise ValueError
        span = (end - start) / step
    except (ArithmeticError, ValueError):
        raise UserError(f"{form}.") from None
    if field.kind is str or (field.kind is float and not steps):
        raise UserError(
            f"{form}: {field.name} is {'no number' if field.kind is str else 'no whole number: say a step'}."
        )
    if span < 0:
        raise UserError(f"{form}: its step must lead from {start} to {end}.")
    count = int(min(span, _MOST_VALUES)) + 1  # an int of all of them may have a million digits
    return [field.parse(str(start + i * step)) for i in range(count)]


@dataclass(frozen=True, eq=False)
class Cell:
    """One clip of a sweep. picture: one of the sweep's. values: the name of each axis -> this cell's value."""

    picture: Hashable
    values: Mapping[str, Any]
    request: VideoRequest

    def __str__(self) -> str:
        """Its values as people type them, such as "steps=10 seed=1"."""
        return " ".join(str(Axis(name, (value,))) for name, value in self.values.items())


def cells(
    base: VideoRequest,
    axes: Sequence[Axis],
    pictures: Sequence[Hashable] = (None,),
    fixed: Mapping[str, Any] | None = None,
    limit: int | None = MAX_CELLS,
) -> list[Cell]:
    """The cells of all combinations: the pictures outermost, the last axis innermost, each with its checked request.

    base: the request whose values are replaced; those at their defaults follow the cell's version, and those that the
    cell does not take are dropped (`VideoRequest.replace`). fixed: values that every cell must take. limit: the most
    cells; None for any number.
    Raises UserError, naming the cell, for a value that it does not take; for an axis that is there twice or is fixed,
    too, and for more cells than the limit.
    """
    fixed, names = fixed or {}, [axis.name for axis in axes]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{name} is varied twice: give all its values at once, as in {name}=A,B.")
        if name in fixed:
            raise UserError(f"{name} is both varied and set: leave out one of the two.")
    sizes = {"pictures": len(pictures)} | {axis.name: len(axis.values) for axis in axes}
    if limit is not None and (count := math.prod(sizes.values())) > limit:
        product = " × ".join(f"{size:,} {name}" for name, size in sizes.items() if size > 1)
        raise UserError(f"These are {count:,} clips ({product}), more than {limit:,}: vary less, or raise the limit.")
    combinations = itertools.product(*(axis.values for axis in axes))
    asked = [dict(zip(names, combination, strict=True)) for combination in combinations]
    requests = [_request(base, {**fixed, **values}, values) for values in asked]
    if views := next((request.version for request in requests if isinstance(request, ViewsRequest)), ""):
        raise UserError(f"{views} makes several views of a clip, of which there are no sweeps: use sgm sample.")
    return [Cell(picture, *both) for picture in pictures for both in zip(asked, requests, strict=True)]


def references_of(of: Iterable[Cell], values: Mapping[str, Any]) -> dict[Cell, Cell]:
    """Each cell -> the cell that it is compared with: the same, but for `values`; perhaps itself, or one of `of`.

    Cells whose references are equal share one. Raises UserError, naming the cell, for a value that it does not take,
    and for one that gives the reference another size or length.
    """
    of = list(of)
    known = {(cell.picture, cell.request): cell for cell in of}
    found = {}
    for cell in of:
        request = _request(cell.request, values, cell.values, "The reference of the cell")
        if (request.size, request.frames) != (cell.request.size, cell.request.frames):
            raise UserError(
                f"The reference of the cell {cell} has another size or length: take a setting that keeps both."
            )
        names = request.settings()  # without those that it has lost
        own = {name: value for name, value in {**cell.values, **values}.items() if name in names}
        found[cell] = known.setdefault((cell.picture, request), Cell(cell.picture, own, request))
    return found


def _request(base: VideoRequest, choices: Mapping[str, Any], values: Mapping[str, Any], what: str = "") -> VideoRequest:
    """A cell's request. Raises UserError that names the cell by its `values`."""
    try:
        return base.replace(**choices)
    except UserError as error:
        if not values:
            raise
        raise UserError(f"{what or 'The cell'} {Cell(None, values, base)} cannot be made: {error}") from None


def making_order(of: Iterable[Cell], compared: Mapping[Cell, Cell] | None = None) -> list[Cell]:
    """All cells and their references, each once, so that what one clip leaves loaded serves the next.

    Version by version; then picture by picture, references first; then those whose picture is shown to the model in
    the same way, so that its embeddings are known.
    """
    first = dict.fromkeys((compared or {}).values())
    every = list(dict.fromkeys([*first, *of]))
    later = _after_conditioning()

    def shown_alike(cell: Cell) -> str:
        return repr([entry for entry in cell.request.settings().items() if entry[0] not in later])

    def ranked(key: Callable[[Cell], Hashable]) -> Callable[[Cell], int]:
        ranks = {value: rank for rank, value in enumerate(dict.fromkeys(map(key, every)))}
        return lambda cell: ranks[key(cell)]

    version, picture = ranked(lambda cell: cell.request.version), ranked(lambda cell: cell.picture)
    alike = ranked(shown_alike)
    return sorted(every, key=lambda cell: (version(cell), picture(cell), cell not in first, alike(cell)))


def _after_conditioning() -> set[str]:
    """The fields on which the picture's embeddings do not depend."""
    choices = (all_fields()[name].choices for name in _AFTER_CONDITIONING)
    options = (choice.options.values() for chosen in choices if chosen for choice in chosen().values())
    return {*_AFTER_CONDITIONING, *(field.name for field in itertools.chain.from_iterable(options))}


class Page(NamedTuple):
    """One page of a grid. columns, rows: labels, [] where each cell has a caption instead.

    cells, captions: in rows; None where the last row has no more.
    """

    columns: list[str]
    rows: list[str]
    cells: list[list[Cell | None]]
    captions: list[list[str]]


def grid_pages(of: Sequence[Cell], axes: Sequence[Axis], pictures: Sequence[str] = ("",)) -> list[Page]:
    """The pages of a grid of `cells(...)`, of at most MAX_ROWS × MAX_COLUMNS cells.

    The last axis runs along the columns, the others down the rows; one that is alone fills rows like a text where it is
    longer than one. pictures: their names. What has one value only gets no label.
    """
    labels = [list(pictures), *([axis.label(value) for value in axis.values] for axis in axes)]
    labels = [names for names in labels if len(names) > 1]
    if len(labels) == 1 and len(of) > MAX_COLUMNS:
        return _wrapped(of, labels[0])
    *others, columns = labels or [[""]]
    rows = ["\n".join(names) for names in itertools.product(*others)]
    # Rows of one page belong together: the sizes of the blocks in which the outer axes stay the same.
    blocks = [1, *itertools.accumulate((len(names) for names in reversed(others)), operator.mul)]
    down, across = _per_page(len(rows), MAX_ROWS, blocks), _per_page(len(columns), MAX_COLUMNS, [1])
    corners = itertools.product(range(0, len(rows), down), range(0, len(columns), across))
    table = [of[start : start + len(columns)] for start in range(0, len(of), len(columns))]
    return [
        Page(
            columns[x : x + across], rows[y : y + down], [list(row[x : x + across]) for row in table[y : y + down]], []
        )
        for y, x in corners
    ]


def _per_page(count: int, most: int, blocks: Iterable[int]) -> int:
    """How many of `count` rows a page holds: whole blocks of the largest size that fits, about as many on each page."""
    block = max(size for size in blocks if size <= most)
    parts = math.ceil(count / block)
    return block * math.ceil(parts / math.ceil(parts / (most // block)))


def _wrapped(of: Sequence[Cell], captions: Sequence[str]) -> list[Page]:
    """The pages of cells that one axis makes, row after row."""
    across = min(MAX_COLUMNS, math.ceil(math.sqrt(len(of))))
    rows = [
        ([*of[start : start + across], *[None] * (start + across - len(of))], list(captions[start : start + across]))
        for start in range(0, len(of), across)
    ]
    return [Page([], [], *map(list, zip(*rows[y : y + MAX_ROWS], strict=True))) for y in range(0, len(rows), MAX_ROWS)]
