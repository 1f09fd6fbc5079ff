"""How long a clip takes, typically: measured figures of ours, for prices before anything has run."""

from __future__ import annotations

import numpy as np

from sgm.request import VideoRequest, ViewsRequest

# Device and model -> phase -> (a, b): of one core of a processor, and of an H100. Sampling: (a, b) of one evaluation.
_TINY_CPU = {
    "load": (1.0, 0.0),
    "encode": (0.15, 1.1e-6),
    "sample": (0.04, 1.06e-6),
    "decode": (0.02, 3.3e-6),
    "save": (0.02, 2.2e-7),
}
_SVD_GPU = {
    "load": (8.0, 0.0),
    "encode": (0.15, 1e-7),
    "sample": (0.045, 1.12e-8),
    "decode": (0.03, 3.3e-8),
    "save": (0.1, 1.5e-7),
}
_MEASURED = {
    ("cpu", "svd_tiny"): _TINY_CPU,
    ("cpu", "svd"): {phase: (30 * a, 15 * b) for phase, (a, b) in _TINY_CPU.items()},
    ("cuda", "svd_tiny"): {phase: (a, b / 10) for phase, (a, b) in _SVD_GPU.items()},
    ("cuda", "svd"): _SVD_GPU,
}
_SHALLOW = 0.25  # the network's shallow blocks, of an evaluation's time


def typical_seconds(request: VideoRequest, device: str, cores: int = 1) -> dict[str, tuple[float, float]]:
    """Phase ("load", "encode", "sample", "decode", "save") of a clip -> seconds, in two parts: add them up.

    The first part is the same for any size and length, the second one grows with pixels and frames; both grow with the
    evaluations of the network. device: torch's type of device. cores: used by a clip on a processor.
    """
    model = "svd_tiny" if request.version == "svd_tiny" else "svd"
    figures = _MEASURED["cuda" if device == "cuda" else "cpu", model]
    speed = 1.0 if device == "cuda" else min(cores, 8) ** -0.6
    works = {phase: _work(request, phase) for phase in figures}
    seconds = {phase: (speed * a * works[phase][0], speed * b * works[phase][1]) for phase, (a, b) in figures.items()}
    return _of_views(request, seconds, device, cores) if isinstance(request, ViewsRequest) else seconds


def _of_views(
    request: ViewsRequest, of_pass: dict[str, tuple[float, float]], device: str, cores: int
) -> dict[str, tuple[float, float]]:
    """The seconds of a clip's views: sampling has within what goes between its passes, and before them an orbit.

    An evaluation costs about one of SVD-XT's for as many latent pixels, and the camera and motion blocks a bit more,
    which is not measured.
    """
    seconds = {phase: np.array(parts) for phase, parts in of_pass.items()}
    passes, clips = len(request.family.passes(request)), 2 * (2 + request.model.num_views)  # the grid counts as all
    seconds["sample"] = passes * seconds["sample"] + (passes - 1) * (seconds["encode"] + seconds["decode"])
    if request.first:
        orbit = typical_seconds(request.first, device, cores)
        seconds["sample"] += sum(np.array(orbit[phase]) for phase in ("load", "encode", "sample", "decode"))
    seconds["save"] *= (clips, clips * request.frames / request.rows)
    return {phase: (float(fixed), float(growing)) for phase, (fixed, growing) in seconds.items()}


def _work(request: VideoRequest, phase: str) -> tuple[float, float]:
    """What `a` and `b` of a phase are multiplied by."""
    pixels = float(request.height * request.width)
    if phase == "sample":
        whole = 1 / request.speed_of.cache_interval
        share = whole + (1 - whole) * _SHALLOW
        halves = request.evaluations + request.guided_evaluations
        return share * request.evaluations, share * halves * pixels * request.rows
    if phase == "encode" and "camera" not in request.options and not isinstance(request, ViewsRequest):
        return 1.0, pixels
    if phase == "encode" and request.options.get("depth"):  # the object is found, the scene rendered
        return 4.0, 1.6 * pixels * request.frames
    return 1.0, pixels * request.rows
