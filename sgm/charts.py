"""What a request will do, as curves: known before anything is computed."""

from __future__ import annotations

from contextlib import suppress

from sgm.diffusion.discretization import SCHEDULES
from sgm.errors import UserError
from sgm.request import VideoRequest


def curves(request: VideoRequest) -> tuple[list[float], list[float]]:
    """The sigma of each step and the guidance scale of each frame, for plots."""
    scales = request.build_guider().scales().expand(request.frames)
    return request.build_schedule()(request.steps, do_append_zero=False).tolist(), scales.tolist()


def guidance_curve(request: VideoRequest) -> list[float]:
    """The largest guidance scale of a frame at each step: 1 at noise levels at which the guider does not guide."""
    guider = request.build_guider()
    largest = float(guider.scales().max())
    return [largest if guider.guides(sigma) else 1.0 for sigma in curves(request)[0]]


def schedule_curves(request: VideoRequest) -> dict[str, list[float]]:
    """Schedule -> the sigma of each of the request's steps along it, the request's own first.

    Schedules that do not have so many steps are left out, and so is a list that nobody has chosen.
    """
    named = {request.schedule: curves(request)[0]}
    for name in SCHEDULES:
        with suppress(UserError):
            if name not in (*named, "custom"):
                named[name] = curves(request.replace(schedule=name, steps=request.steps))[0]
    return named
