"""Learned measures, LPIPS and FVD, by packages of their authors or near them, where these are installed."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sgm.errors import UserError, reason_of

_SHORTEST_FVD = 10  # frames; I3D makes nothing of fewer
_LPIPS_BATCH = 8  # frames


def lpips_missing() -> str:
    """Why LPIPS cannot be had here, in a sentence; "" where it can."""
    if find_spec("lpips") is None:
        return "LPIPS is left out, since its package is not installed: python -m pip install lpips"
    from torchvision.models import AlexNet_Weights

    weights = Path(torch.hub.get_dir(), "checkpoints", Path(AlexNet_Weights.IMAGENET1K_V1.url).name)
    if weights.is_file():
        return ""
    return f'LPIPS is left out, since {weights} is missing; this fetches it: python -c "import lpips; lpips.LPIPS()"'


def lpips(a: np.ndarray, b: np.ndarray) -> float | None:
    """LPIPS by AlexNet (Zhang et al. 2018, arXiv:1801.03924): mean over frames, uint8 (t, h, w, 3). None if missing."""
    if lpips_missing():
        return None

    def batches(frames: np.ndarray) -> Iterable[torch.Tensor]:
        return (part.permute(0, 3, 1, 2) / 127.5 - 1 for part in torch.from_numpy(frames).split(_LPIPS_BATCH))

    with torch.inference_mode():
        distances = [_lpips_network()(x, y).flatten() for x, y in zip(batches(a), batches(b), strict=True)]
    return float(torch.cat(distances).mean())


@cache
def _lpips_network() -> Any:
    import lpips  # pyright: ignore[reportMissingImports]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision as it used to be
        return lpips.LPIPS(net="alex", verbose=False)


def fvd_missing() -> str:
    """Why FVD cannot be had here, in a sentence; "" where it can."""
    return "" if find_spec("cdfvd") else "FVD needs cd-fvd, which is not installed: python -m pip install cd-fvd"


def fvd(clips: Iterable[np.ndarray], real: Iterable[np.ndarray], frames: int) -> float:
    """Fréchet video distance of clips to real ones (Unterthiner et al. 2018, arXiv:1812.01717), by cd-fvd, I3D.

    clips, real: uint8 (t, h, w, 3) each, of any size, of which the first `frames` frames count; at least two of each,
    hundreds for a figure that means something. cd-fvd fetches I3D's weights when it is first used. Raises UserError
    where that fails, or for too few clips or frames.
    """
    if frames < _SHORTEST_FVD:
        raise UserError(f"FVD needs clips of at least {_SHORTEST_FVD} frames; the shortest here has {frames}.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with contextlib.redirect_stdout(sys.stderr):  # where it says what it loads
        from cdfvd.fvd import cdfvd  # pyright: ignore[reportMissingImports]

        try:
            measure = cdfvd("i3d", n_real="full", n_fake="full", device=device)
        except OSError as error:  # of requests, too
            raise UserError(f"I3D's weights, which FVD needs, cannot be fetched ({reason_of(error)}).") from error
        for clip in clips:
            measure.add_fake_stats(clip[None, :frames])
        for clip in real:
            measure.add_real_stats(clip[None, :frames])
        if min(measure.fake_stats.num_items, measure.real_stats.num_items) < 2:
            raise UserError("FVD needs at least two clips and two real ones.")
        return max(float(measure.compute_fvd_from_stats()), 0.0)  # equal ones round to less
