"""Writes the tables of docs/recipe.md anew, from the table of fields: `python docs/recipe.py`.

`--check` writes nothing, and ends with 1 where the page is another.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().with_suffix(".md")
sys.path.insert(0, str(PAGE.parents[1]))

from sgm import VERSIONS, VIEW_VERSIONS, Field, VideoRequest, ViewsRequest, all_fields, takers  # noqa: E402

BEGIN, END = "<!-- Written by docs/recipe.py: begin -->", "<!-- end -->"
HEADINGS = {"": "What every version takes", "version": "What some versions take"}
FOLLOWING = {"decode_chunk": "as many as `frames`", "sigmas": "the version's, rounded"}  # by other fields' values


def page(text: str) -> str:
    """The page's text with the tables of today."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} needs the lines {BEGIN} and {END}, the tables between them.")
    return f"{before}{begin}\n\n" + "\n".join(tables()) + f"\n{end}{after}"


def tables() -> Iterator[str]:
    """The lines of all tables: the fields, those of one chooser together, then the versions' own values."""
    fields = all_fields()
    owners = {name: takers(name) for name in fields}
    for chooser in dict.fromkeys(text.partition(" ")[0] for text in owners.values()):
        mine = [field for name, field in fields.items() if owners[name].partition(" ")[0] == chooser]
        yield from (f"### {HEADINGS.get(chooser) or f'Options of `{chooser}`'}", "")
        columns = ["field", "on the page", *([f"{chooser}s"] if chooser else []), "values", "default", ""]
        rows = []
        for field in mine:
            of = re.sub(r"\b(?!and\b|or\b)\w+", r"`\g<0>`", owners[field.name].partition(" ")[2])
            rows.append(
                [f"`{field.name}`", field.label, *([of] if chooser else []), values(field), default(field), field.help]
            )
        yield from table(columns, rows)
    yield from ("### The versions' own values", "")
    yield from own_values([field for field in fields.values() if field.default is None and field.name not in FOLLOWING])


def own_values(fields: Iterable[Field]) -> Iterator[str]:
    """What a request holds where nothing is chosen; versions that agree share a column."""
    columns: dict[tuple[str, ...], list[str]] = {}
    fields = list(fields)
    for version in (*VERSIONS, *VIEW_VERSIONS):
        request = (ViewsRequest if version in VIEW_VERSIONS else VideoRequest)(version)
        own = request.fields()
        key = tuple(shown(field, getattr(request, field.name)) if field.name in own else "" for field in fields)
        columns.setdefault(key, []).append(f"`{version}`")
    rows = [[f"`{field.name}`", *(key[i] for key in columns)] for i, field in enumerate(fields)]
    yield from table(["", *(", ".join(names) for names in columns.values())], rows)


def values(field: Field) -> str:
    """What is accepted: the names, or the range and, where sliders show less of it, their part."""
    if field.choices:
        return ", ".join(f"`{name}`" for name in field.choices())
    if field.kind is str:
        return f"`NAME:STRENGTH`, several with ` + ` between; a strength: {field.low:g} to {field.high:g}"
    text = f"{number(field, field.low)} to {number(field, field.high)}"
    if field.kind is tuple:
        text = f"a list of numbers, {text}"
    if field.unit:
        text += f" {field.unit}"
    if field.usual and field.usual != (field.low, field.high):
        text += f"; usual: {number(field, field.usual[0])} to {number(field, field.usual[1])}"
    return text


def default(field: Field) -> str:
    if field.default is None:
        return FOLLOWING.get(field.name, "the version's, below")
    return shown(field, field.default)


def shown(field: Field, value: Any) -> str:
    """A value as the command line takes it."""
    text = field.text(value)
    return f"`{text}`" if field.choices else text or "empty"


def number(field: Field, value: float) -> str:
    return str(value) if field.kind is int else repr(float(value)).removesuffix(".0")


def table(columns: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """The lines of one table, and an empty one."""
    yield f"| {' | '.join(columns)} |".replace("  ", " ")
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        yield f"| {' | '.join(cells)} |".replace("|  |", "| |")
    yield ""


def main() -> None:
    text = PAGE.read_text("utf-8")
    if (new := page(text)) == text:
        return
    if "--check" in sys.argv:
        sys.exit(f"{PAGE.name} is not what the table of fields says: run python docs/recipe.py.")
    temporary = PAGE.with_suffix(".tmp")
    temporary.write_text(new, "utf-8", newline="\n")
    temporary.replace(PAGE)


if __name__ == "__main__":
    main()
