"""A clip's settings in words. Does not import Streamlit."""

from __future__ import annotations

from sgm import VideoRequest


def summary(request: VideoRequest) -> str:
    """One line of a clip's settings: model, seed, the family's fields and some common fields, then others."""
    fields, unused = request.fields(), {"elevation"} if request.options.get("elevations") else set()
    usual = [field.name for field in request.family.fields if field.name not in unused]
    parts = [
        request.model.title,
        f"seed {request.seed}",
        *(_words(request, name) for name in usual),
        f"{request.steps} steps",
        fields["sampler"].title(request.sampler),
        f"{request.frames} frames at {request.fps} fps",
        f"{request.width} × {request.height}",
    ]
    said = {"seed", *usual, "steps", "sampler", "frames", "fps", "width", "height"}
    return " · ".join([*parts, *(_words(request, name) for name in request.choices() if name not in said)])


def varied(request: VideoRequest) -> str:
    """What differs from the version's own values, beside the seed, in words; "" for nothing."""
    return " · ".join(_words(request, name) for name in request.choices() if name != "seed")


def _words(request: VideoRequest, name: str) -> str:
    field = request.fields()[name]
    return f"{field.label.lower()} {field.title(getattr(request, name)).lower()}"
