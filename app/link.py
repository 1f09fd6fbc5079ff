"""Requests as query parameters of the page's address. Does not import Streamlit."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, combinations
from typing import Any, NamedTuple

from sgm import UserError, VideoRequest, all_fields, best_version, request_class


def request_from(address: Mapping[str, Any], base: VideoRequest | None = None) -> VideoRequest:
    """The request of query parameters, text or values; other fields are those of `base` or the version's defaults.

    Parameters that are no fields are ignored. Raises UserError where a value is wrong or its field belongs to another
    version, fit, sampler or guider.
    """
    fields = all_fields()
    version = str(address.get("version", base.version if base else best_version()))
    start = base if base and base.version == version else request_class(version)(version)
    return start.replace(
        **{
            name: fields[name].parse(value) if isinstance(value, str) else value
            for name, value in address.items()
            if name in fields
        }
    )


class Taken(NamedTuple):
    """What could be taken of an address. names: of its fields. refused: a sentence for each of the others."""

    request: VideoRequest
    names: list[str]
    refused: list[str]


def taken_from(address: Mapping[str, Any], base: VideoRequest | None = None) -> Taken:
    """As `request_from`, but a parameter that is wrong is left out, so that the others are taken."""
    names: list[str] = []
    refused = {name: "" for name in ("version", *all_fields()) if name in address}
    while refused:
        # Some are right only together: a lowest and a highest scale, a kind of orbit and its list.
        for some in chain(combinations(refused, len(refused)), combinations(refused, 1), combinations(refused, 2)):
            try:
                request_from({name: address[name] for name in (*names, *some)}, base)
            except UserError as error:
                refused |= dict.fromkeys(some, str(error)) if len(some) == 1 else {}
            else:
                names += some
                refused = {name: why for name, why in refused.items() if name not in some}
                break
        else:
            break
    return Taken(request_from({name: address[name] for name in names}, base), names, list(refused.values()))


def address_of(request: VideoRequest, base: VideoRequest | None = None) -> dict[str, str]:
    """The query parameters for `request_from`: the values that differ from `base` or the version's defaults.

    Without `base`, they are empty for the page's initial settings, and otherwise include the version, since the initial
    one depends on the installed weights.
    """
    start = base if base and base.version == request.version else request_class(request.version)(request.version)
    choices, start_choices = request.choices(), start.choices()
    address = {
        name: field.text(getattr(request, name))
        for name, field in request.fields().items()
        if choices.get(name) != start_choices.get(name)
    }
    if request.version != base.version if base else address or request.version != best_version():
        address["version"] = request.version
    return address
