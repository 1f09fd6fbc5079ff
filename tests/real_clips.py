"""Clips as cameras and people leave them, made anew: cuts, uneven time stamps, turned, HDR, black, still, damaged."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

TICK = Fraction(1, 3000)  # seconds


def scene(seed: int, frames: int, step: float = 2, size: tuple[int, int] = (64, 112)) -> np.ndarray:
    """Soft noise that moves to the left by `step` pixels a frame, (frames, *size, 3)."""
    h, w = size
    noise = np.random.default_rng(seed).integers(0, 256, (h, w + round(step * frames), 3)).astype(np.float32)
    wall = np.clip(cv2.GaussianBlur(noise, (0, 0), 4) * 8 - 900, 0, 255).astype(np.uint8)
    return np.stack([wall[:, round(i * step) :][:, :w] for i in range(frames)])


def write_clip(
    path: Path, frames: np.ndarray, times: Sequence[float] | float = 30.0, codec: str = "libx264", **options: str
) -> Path:
    """Write frames at their times, or at so many a second."""
    ticks = times if isinstance(times, Sequence) else [i / times for i in range(len(frames))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options={"preset": "ultrafast", "crf": "18", **options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = TICK
        for time, pixels in zip(ticks, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time / TICK), TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path: Path) -> Path:
    """Have an mp4 say that it is shown turned by a quarter clockwise, as phones do of upright clips."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44  # the matrix: a, b, u, c, d, v
    for offset, value in ((0, 0), (4, 1 << 16), (12, (1 << 32) - (1 << 16)), (16, 0)):
        content[at + offset : at + offset + 4] = value.to_bytes(4, "big")
    path.write_bytes(content)
    return path
