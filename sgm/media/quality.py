"""Measures of pictures: their detail, and how near one is to another, by PSNR, SSIM and FFmpeg's XPSNR."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import cv2
import numpy as np

from sgm.media.filters import filter_graph

HIGHEST_PSNR = 99.0  # dB, of equal pictures, too, whose PSNR has no number
FREEZE, BLACK, BLACK_SHARE = 0.001, 0.1, 0.98  # the defaults of FFmpeg's freezedetect and blackdetect
_SIGMA, _RADIUS = 1.5, 5  # pixels, of the window of Wang et al.
_SMALLEST_XPSNR = 64 * 64  # pixels; below half of it, the filter's blocks have no size, and it ends the process
_TICK = Fraction(1, 25)  # seconds; the filter does not look at it
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def is_black(grey: np.ndarray) -> bool:
    """Whether a frame, uint8 (h, w), is black: BLACK_SHARE of its pixels darker than BLACK of the range."""
    return bool(np.mean(grey < BLACK * 255) >= BLACK_SHARE)


def stands_still(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two frames, uint8 (h, w), are the same: their mean absolute difference is at most FREEZE of the range."""
    return bool(cv2.absdiff(a, b).mean() <= FREEZE * 255)


def psnr(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """PSNR in dB of two RGB pictures, uint8 (h, w, 3), where the mask is 1."""
    count = 3 * (a[..., 0].size if mask is None else np.count_nonzero(mask))
    error = cv2.norm(a, b, cv2.NORM_L2SQR, mask) / count
    return min(10 * math.log10(255**2 / error), HIGHEST_PSNR) if error else HIGHEST_PSNR


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two grey pictures, uint8 (h, w), at most 1 (Wang et al. 2004, equation 13).

    Mean over the pixels whose window lies inside, over all of a picture that is smaller than the window.
    """

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (2 * _RADIUS + 1, 2 * _RADIUS + 1), _SIGMA)

    x, y = a.astype(np.float32), b.astype(np.float32)
    mx, my = mean(x), mean(y)
    vx, vy, covariance = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    index = (2 * mx * my + _C1) * (2 * covariance + _C2) / ((mx * mx + my * my + _C1) * (vx + vy + _C2))
    inside = index[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
    return float((inside if inside.size else index).mean(dtype=np.float64))


def xpsnr(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> list[float] | None:
    """XPSNR in dB of each frame of two grey clips, uint8 (h, w) each; `inf` of equal frames.

    None without the filter, and of smaller frames than it can stand. FFmpeg's filter, after Helmrich et al. 2020
    (doi:10.1109/ICASSP40776.2020.9054089).
    """
    h, w = a[0].shape
    if "xpsnr" not in av.filter.filters_available or h * w < _SMALLEST_XPSNR:
        return None
    with tempfile.TemporaryDirectory(prefix="sgm-video-") as folder:
        written = Path(folder, "xpsnr.txt")
        _write_xpsnr(written, a, b)
        return [float(value) for value in re.findall(r"XPSNR y: *(\S+)", written.read_text())]


def _write_xpsnr(path: Path, a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> None:
    """A function of its own, at whose end nothing refers to the filters, so that the file is closed."""
    h, w = a[0].shape
    with filter_graph() as graph:
        sources = [graph.add_buffer(width=w, height=h, format=av.VideoFormat("gray"), time_base=_TICK) for _ in "ab"]
        measure, sink = graph.add("xpsnr", stats_file=str(path)), graph.add("buffersink")
        for number, source in enumerate(sources):
            source.link_to(measure, 0, number)
        measure.link_to(sink)
        graph.configure()
        for time, pair in enumerate(zip(a, b, strict=True)):
            for source, pixels in zip(sources, pair, strict=True):
                frame = av.VideoFrame.from_ndarray(pixels, format="gray")
                frame.pts, frame.time_base = time, _TICK
                source.push(frame)
            sink.pull()


def detail(grey: np.ndarray) -> float:
    """Mean energy of what a Gaussian blur of 1.5 pixels takes away."""
    values = grey.astype(np.float32)
    return float(np.mean((values - cv2.GaussianBlur(values, (0, 0), 1.5)) ** 2))


def gradient(grey: np.ndarray) -> float:
    """Standard deviation of the Sobel gradient's length, without the outermost pixels."""
    x, y = (cv2.Sobel(grey, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    return float(cv2.magnitude(x, y)[1:-1, 1:-1].std()) if min(grey.shape) > 2 else 0.0
