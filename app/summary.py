"""A clip's settings in words, and the search among them. Does not import Streamlit."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from app.jobs import Job
from sgm import GUIDERS, SAMPLERS, SCHEDULES, SPEEDS, VideoRequest, all_fields, made_by

_SEED = "seed"
_CHOSEN = {"sampler": SAMPLERS, "guider": GUIDERS, "schedule": SCHEDULES, "speed": SPEEDS}
_LABELS = {"seed": "seed", "motion": "motion_bucket", "steps": "steps", "frames": "frames", "fps": "fps"}
# "seed 5", "motion: 127", "steps=6": a number that belongs to its word.
_LABELLED = re.compile(rf"\b({'|'.join(_LABELS)})\s*[:=]?\s*(\d{{1,20}})\b")
_SIZE = re.compile(r"(?<=\d)\s*[x×]\s*(?=\d)")  # 320 × 192


def summary(request: VideoRequest) -> str:
    """One line of a clip's settings: model, seed, what its family asks, steps, sampler, length and size, then `varied`.

    Where the seed has drawn the camera's way, that is said.
    """
    fields, choices = request.fields(), request.choices()
    unsaid = "depth" if "depth" not in choices else ""  # a number that tells nothing where it is the usual one
    usual = [f.name for f in request.family.fields if f.name != unsaid and not _without_effect(request, f.name)]
    usual = [name for name in usual if getattr(request, name) != ()]
    parts = [
        request.model.title,
        f"seed {request.seed}",
        *(_words(request, name) for name in usual),
        f"{request.steps} steps" if request.steps != 1 else "1 step",
        fields["sampler"].title(request.sampler),
        f"{request.frames} {'frames' if request.frames != 1 else 'frame'} at {request.fps} fps",
        f"{request.width} × {request.height}",
    ]
    said = {_SEED, *usual, "steps", "sampler", "frames", "fps", "width", "height"}
    drawn = [f"camera drawn: {way}"] if (way := request.family.drawn(request)) else []
    return " · ".join([*parts, *(_words(request, name) for name in choices if name not in said), *drawn])


def varied(request: VideoRequest, seed_known: bool = True) -> str:
    """What differs from the version's own values, beside the seed, and what the seed drew, in words; "" for nothing."""
    way = request.family.drawn(request) if seed_known else ""
    drawn = [f"camera {way}"] if way else []
    return " · ".join([*drawn, *(_words(request, name) for name in request.choices() if name != _SEED)])


def differing(jobs: Sequence[Job]) -> list[tuple[str, list[str]]]:
    """What differs between clips, and only that: titles, each with a text for each clip ("–" where it has none).

    Picture and model first, then settings in the order of the fields, then what made the clips.
    """
    made = [made_by(job.settings) for job in jobs]
    rows: dict[str, list[str]] = {
        "Picture": _pictures(jobs, made),
        "Model": [job.request.model.title for job in jobs],
    }
    for name, field in all_fields().items():
        rows[field.label] = [_title(job.request, name) for job in jobs]
    rows["Camera drawn"] = [job.request.family.drawn(job.request) for job in jobs]
    for title, key in (("Program", "program"), ("torch", "torch"), ("Device", "device"), ("dtype", "dtype")):
        rows[title] = [mark.get(key, "") for mark in made]
    weights = [mark["weights"] for mark in made]
    rows["Weights"] = [f"{some.get('name', '')} {some.get('sha256', '')[:8]}".strip() for some in weights]
    return [(title, [text or "–" for text in texts]) for title, texts in rows.items() if len(set(texts)) > 1]


def told_apart(jobs: Sequence[Job]) -> list[str]:
    """For each of some clips, one line of the pictures and settings by which it differs from the others."""
    lines: list[list[str]] = [[job.name] if len({other.name for other in jobs}) > 1 else [] for job in jobs]
    if len({job.request.version for job in jobs}) > 1:
        lines = [[*line, job.request.model.title] for line, job in zip(lines, jobs, strict=True)]
    for name, field in all_fields().items():
        values = [_title(job.request, name) for job in jobs]
        if len({*values} - {""}) > 1:  # not what some clips lack, as other samplers' options
            for line, job, value in zip(lines, jobs, values, strict=True):
                line += [value if field.choices else _words(job.request, name)] if value else []
    return [" · ".join(line) for line in lines]


def matches(job: Job, query: str) -> bool:
    """Whether a job has all words of a query in its name, model, date, size, sampler and other choices.

    Numbers count as a whole, and "seed 5", "motion 60", "12 steps" or "steps 12" are that number and no other's.
    """
    query = _SIZE.sub("x", query.lower())
    query = re.sub(r"\b(\d+) (steps|frames|fps)\b", r"\2 \1", query)
    for label, number in _LABELLED.findall(query):
        if getattr(job.request, _LABELS[label], None) != int(number):
            return False
    words, tokens, name = _LABELLED.sub(" ", query).split(), _tokens(job.id, job.created, job.request), job.name.lower()
    numbers = re.findall(r"\d+", name)

    def is_there(word: str) -> bool:
        if word in tokens or word in numbers:
            return True
        if any(char.isdigit() for char in word):  # as a whole, or the first parts of a date
            return (not word.isdecimal() and word in name) or any(token.startswith(f"{word}-") for token in tokens)
        return word in name or any(token.startswith(word) for token in tokens)

    return all(map(is_there, words))


@lru_cache(maxsize=4096)
def _tokens(job_id: str, created: float, request: VideoRequest) -> frozenset[str]:
    """The words by which a job is found, beside its name."""
    date = time.localtime(created)
    titles = (request.model.title, *(chosen[getattr(request, name)].title for name, chosen in _CHOSEN.items()))
    texts = (value for value in request.settings().values() if isinstance(value, str))
    words = (
        *titles,
        *texts,
        *(text.replace("_", " ") for text in (request.options.get("camera"), request.family.drawn(request)) if text),
        time.strftime("%Y-%m-%d %d %b %B %Y %H:%M", date),
        str(date.tm_mday),
        f"{request.width}x{request.height}",
        *(f"{label} {getattr(request, name, '')}" for label, name in _LABELS.items()),
        job_id,
        job_id.rpartition("-")[2],
    )
    return frozenset(re.split(r"[\s,·()]+", " ".join(words).lower()))


def _words(request: VideoRequest, name: str) -> str:
    """A field and its value, such as "motion 127"."""
    field, value = request.fields()[name], getattr(request, name)
    if isinstance(value, tuple) and len(value) > 4:
        return f"{field.label.lower()} of {len(value)} numbers"
    return f"{field.label.lower()} {field.title(value).lower()}"


def _title(request: VideoRequest, name: str) -> str:
    """A field's value for people; "" where the request has no such field, or it has no effect."""
    has = name in request.fields() and not _without_effect(request, name)
    return request.fields()[name].title(getattr(request, name)) if has else ""


def _pictures(jobs: Sequence[Job], made: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the clips' pictures; with hashes, where pictures of one name that were fitted alike differ."""
    names, marks = [job.name for job in jobs], [mark.get("picture", "") for mark in made]
    fits = {tuple(_title(job.request, name) for name in ("width", "height", "fit", "crop_x", "crop_y")) for job in jobs}
    if len({*names}) > 1 or len(fits) > 1:
        return names
    return [f"{name} ({mark[:8]})" for name, mark in zip(names, marks, strict=True)]


def _without_effect(request: VideoRequest, name: str) -> bool:
    """Whether other settings leave one without a meaning: a list the elevation, a last picture the drawn camera."""
    if name == "camera":
        return request.takes_last and request.options[name] == "auto"
    return name == "elevation" and bool(request.options.get("elevations"))
