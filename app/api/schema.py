"""What the documentation says of a request's body, and what programs are told of a field: both from its `Field`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgm import Field, default_of, takers

_TYPES = {int: "integer", float: "number", str: "string", tuple: "array"}


def schema(field: Field) -> dict[str, Any]:
    """A field as JSON Schema has it."""
    entry: dict[str, Any] = {"type": _TYPES[field.kind], "title": field.label, "description": field.help}
    if field.choices:
        return entry | {"enum": list(field.choices())}
    if field.kind is str:
        return entry
    bounds = {"minimum": field.low, "maximum": field.high}
    return entry | ({"items": {"type": "number"} | bounds} if field.kind is tuple else bounds)


def body(properties: Mapping[str, Any], picture: str = "", kinds: tuple[str, ...] = ("multipart/form-data",)) -> Any:
    """A route's `openapi_extra`: its body's values, of these content types. picture: a file that is required."""

    def content(kind: str) -> dict[str, Any]:
        file = {"format": "binary"} if kind.startswith("multipart") else {"description": "data:image/png;base64,…"}
        needed = {picture: {"type": "string"} | file} if picture else {}
        return {"schema": {"type": "object", "required": [*needed], "properties": {**needed, **properties}}}

    return {"requestBody": {"required": True, "content": {kind: content(kind) for kind in kinds}}}


def row(field: Field, version: str) -> dict[str, Any]:
    """A field for programs: its JSON Schema, who has it, its unit and step, and a version's default."""
    default = default_of(field, version)
    choices = field.choices() if field.choices else {}
    return {
        "name": field.name,
        **schema(field),
        "unit": field.unit,
        "step": field.step,
        "usual": field.usual,
        "default": list(default) if isinstance(default, tuple) else default,
        "of": takers(field.name) or "every version",
        "choices": {
            name: {"title": field.title(name), "fields": [option.name for option in choice.options.values()]}
            for name, choice in choices.items()
        },
    }
