"""Likeness of two pictures, or of two clips, to the eye: SSIM, and XPSNR by FFmpeg's filter."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import cv2
import numpy as np

_SIGMA, _RADIUS = 1.5, 5  # pixels, of the window of Wang et al.
_TICK = Fraction(1, 25)  # seconds; the filter does not look at it
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


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
    """XPSNR in dB of each frame of two grey clips, uint8 (h, w) each; `inf` of equal frames. None without the filter.

    FFmpeg's filter, after Helmrich et al. 2020 (doi:10.1109/ICASSP40776.2020.9054089).
    """
    if "xpsnr" not in av.filter.filters_available:
        return None
    h, w = a[0].shape
    with tempfile.TemporaryDirectory(prefix="sgm-video-") as folder:
        written = Path(folder, "xpsnr.txt")
        graph = av.filter.Graph()
        sources = [graph.add_buffer(width=w, height=h, format=av.VideoFormat("gray"), time_base=_TICK) for _ in "ab"]
        measure, sink = graph.add("xpsnr", stats_file=str(written)), graph.add("buffersink")
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
        del graph, sources, measure, sink  # which closes the file
        return [float(value) for value in re.findall(r"XPSNR y: *(\S+)", written.read_text())]
