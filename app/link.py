"""Requests as query parameters of the page's address. Does not import Streamlit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgm import VideoRequest, all_fields, best_version


def request_from(address: Mapping[str, Any], base: VideoRequest | None = None) -> VideoRequest:
    """The request of query parameters, text or values; other fields are those of `base` or the version's defaults.

    Parameters that are no fields are ignored. Raises UserError where a value is wrong or its field belongs to another
    version, fit, sampler or guider.
    """
    fields = all_fields()
    version = str(address.get("version", base.version if base else best_version()))
    start = base if base and base.version == version else VideoRequest(version)
    return start.replace(
        **{
            name: fields[name].parse(value) if isinstance(value, str) else value
            for name, value in address.items()
            if name in fields
        }
    )


def address_of(request: VideoRequest, base: VideoRequest | None = None) -> dict[str, str]:
    """The query parameters for `request_from`: the values that differ from `base` or the version's defaults.

    Without `base`, they are empty for the page's initial settings, and otherwise include the version, since the initial
    one depends on the installed weights.
    """
    start = base if base and base.version == request.version else VideoRequest(request.version)
    choices, start_choices = request.choices(), start.choices()
    address = {
        name: field.text(getattr(request, name))
        for name, field in request.fields().items()
        if choices.get(name) != start_choices.get(name)
    }
    if request.version != base.version if base else address or request.version != best_version():
        address["version"] = request.version
    return address
