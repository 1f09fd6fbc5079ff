"""Requests as addresses and as clips: query parameters of the page, settings in an MP4. Knows no Streamlit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgm import UserError, VideoRequest, all_fields, best_version, is_recipe, read_settings, request_of


def request_from(address: Mapping[str, Any], base: VideoRequest | None = None) -> VideoRequest:
    """The request of an address's parameters, text or values, over `base` or else the version's own values.

    What is no field at all is another's parameter, and ignored. Raises UserError where a value is wrong, or belongs to
    another version, fit, sampler or guider than the address's.
    """
    known = all_fields()
    version = str(address.get("version", base.version if base else best_version()))
    start = base if base and base.version == version else VideoRequest(version)
    return start.replace(
        **{
            name: known[name].parse(value) if isinstance(value, str) else value
            for name, value in address.items()
            if name in known
        }
    )


def address_of(request: VideoRequest, base: VideoRequest | None = None) -> dict[str, str]:
    """The parameters of which `request_from` makes the request again: what differs from `base`, or the version's own.

    Empty where all is as the page opens; else it names the version, since another may be the best one tomorrow.
    """
    start = base if base and base.version == request.version else VideoRequest(request.version)
    chosen, usual = request.choices(), start.choices()
    address = {
        name: field.text(getattr(request, name))
        for name, field in request.fields().items()
        if chosen.get(name) != usual.get(name)
    }
    if request.version != base.version if base else address or request.version != best_version():
        address["version"] = request.version
    return address


def request_of_clip(content: bytes, name: str) -> VideoRequest:
    """The request of the recipe in an MP4's content; `name` is what messages call the file.

    Raises UserError for what is no video, holds no recipe of ours, or a newer program's.
    """
    settings = read_settings(content)
    if settings is None or not is_recipe(settings):
        raise UserError(f"{name} holds no settings of ours: only clips that were made here do.")
    return request_of(settings)
