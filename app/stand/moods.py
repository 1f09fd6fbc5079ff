"""The three moods among which visitors choose, as settings of any version that moves a picture."""

from __future__ import annotations

import math
import random
from typing import Any

from app.presets import CALM, LIVELY
from sgm import VERSIONS, VideoRequest, all_fields, best_version

MOODS = ("calm", "lively", "surprise")
# What looks good: below these motion buckets hardly anything moves, and above them pictures tear; cameras that go out,
# up or down show much that is not in the picture.
_MOTIONS, _CAMERAS = (80, 190), ("auto", "zoom_in", "pan_left", "pan_right", "roll_left", "roll_right")
_chance = random.SystemRandom()


def request_of(mood: str, size: tuple[int, int], version: str = "") -> VideoRequest:
    """The request of a mood, for a picture of a size: of the best version that is ready, in the picture's shape.

    The seed is drawn anew each time, so nobody gets the film of the visitor before.
    """
    version = version or best_version()
    width, height = _nearest_size(version, size)
    seed = _chance.randrange(int(all_fields()["seed"].high))
    return VideoRequest.fitting(version, {"width": width, "height": height, "seed": seed} | _movement(mood))


def _movement(mood: str) -> dict[str, Any]:
    """Values of fields, of which each version takes those that it has."""
    if mood == "surprise":
        return {"motion_bucket": _chance.randint(*_MOTIONS), "camera": _chance.choice(_CAMERAS)}
    return {"calm": CALM | {"camera": "zoom_in"}, "lively": LIVELY | {"camera": "auto"}}[mood]


def _nearest_size(version: str, size: tuple[int, int]) -> tuple[int, int]:
    """The version's own size, upright or square, whichever has the shape nearest to (width, height).

    Phones' 3:4 lies between upright and square, and is upright.
    """
    model = VERSIONS[version]
    side = round(math.sqrt(model.width * model.height) / model.multiple) * model.multiple
    sizes = ((model.width, model.height), (model.height, model.width), (side, side))
    return min(sizes, key=lambda own: round(abs(math.log(own[0] / own[1] * size[1] / size[0])), 2))
