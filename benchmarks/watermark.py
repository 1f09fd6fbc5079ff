"""How the watermark fares: what it costs, what survives, and false alarms, on a folder of photographs.

Clips are photographs panned over, 14 frames, in our own H.264. Last line: `ratio R`, the seconds of marking over
those of a svd_tiny job, made in turns. See docs/provenance.md.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from sgm import (
    VideoRequest,
    embed_watermark,
    encode_video,
    generate,
    load_engine,
    open_picture,
    read_frames,
    read_watermark,
)

BITS = np.array([bit == "1" for bit in f"{0xB3EC907BB19E:048b}"])
RECIPE = {"version": "svd_tiny", "sgm": {"format": 1, "watermark": True}}
FRAMES = 14
SAMPLES = Path(__file__).resolve().parent.parent / "app" / "samples"


def panned(path: Path, width: int, height: int) -> np.ndarray:
    """A clip that moves over a photograph, (FRAMES, height, width, 3)."""
    picture = open_picture(path)
    scale = max((width + 2 * FRAMES) / picture.width, (height + FRAMES) / picture.height)
    pixels = np.asarray(picture.resize((round(picture.width * scale) + 1, round(picture.height * scale) + 1)))
    return np.stack([pixels[i : i + height, 2 * i : 2 * i + width] for i in range(FRAMES)])


def encoded(frames: np.ndarray, crf: int) -> np.ndarray:
    """The frames after another H.264."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=7, options={"crf": str(crf)})
        stream.height, stream.width = (side // 2 * 2 for side in frames.shape[1:3])
        stream.pix_fmt = "yuv420p"
        for frame in frames[:, : stream.height, : stream.width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return read_frames(file.getvalue())[0]


def scaled(frames: np.ndarray, share: float) -> np.ndarray:
    width, height = round(frames.shape[2] * share), round(frames.shape[1] * share)
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


def cropped(frames: np.ndarray, share: float) -> np.ndarray:
    y, x = (round(side * share / 2) for side in frames.shape[1:3])
    return frames[:, y : frames.shape[1] - y, x : frames.shape[2] - x]


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as written": lambda frames: frames,
    "encoded again, crf 18": lambda frames: encoded(frames, 18),
    "encoded again, crf 23": lambda frames: encoded(frames, 23),
    "encoded again, crf 28": lambda frames: encoded(frames, 28),
    "75 %": lambda frames: scaled(frames, 0.75),
    "75 %, crf 18": lambda frames: encoded(scaled(frames, 0.75), 18),
    "50 %": lambda frames: scaled(frames, 0.5),
    "cropped by 5 %": lambda frames: cropped(frames, 0.05),
    "cropped by 5 %, crf 18": lambda frames: encoded(cropped(frames, 0.05), 18),
}


def survival(photographs: Sequence[Path], width: int, height: int) -> None:
    bits: dict[str, list[int]] = {}
    verdicts: dict[str, list[str]] = {}
    noise, theirs = [], []
    for path in photographs:
        frames = panned(path, width, height)
        marked = np.stack([embed_watermark(frame) for frame in frames])
        noise.append(10 * np.log10(255**2 / np.mean((marked.astype(float) - frames) ** 2)))
        written = read_frames(encode_video(frames, 7, RECIPE))[0]
        theirs.append(_package(written))
        for name, change in CHANGES.items():
            reading = read_watermark(change(written))
            bits.setdefault(name, []).append(reading.matched)
            verdicts.setdefault(name, []).append(reading.verdict)
    print(f"{width}×{height}, {len(photographs)} photographs: PSNR {min(noise):.1f} to {max(noise):.1f} dB")
    print(f"  imwatermark, bits of 48: {theirs}")
    for name, said in verdicts.items():
        counts = ", ".join(f"{said.count(verdict)} {verdict}" for verdict in ("marked", "likely", "no"))
        print(f"  {name:<24} {counts}; bits {min(bits[name])} to {max(bits[name])}", flush=True)


def _package(frames: np.ndarray) -> int | None:
    """The bits that invisible-watermark reads; None where it is not installed, or refuses so small a frame."""
    try:
        from imwatermark.maxDct import EmbedMaxDct  # its WatermarkDecoder refuses less than 65,536 pixels  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    reader = EmbedMaxDct([0] * 48, wmLen=48)
    reader_votes = []
    for frame in frames:
        import cv2
        import pywt  # pyright: ignore[reportMissingImports]

        u = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV)[..., 1]
        band, _ = pywt.dwt2(u[: u.shape[0] // 4 * 4, : u.shape[1] // 4 * 4], "haar")
        reader_votes.append([np.mean(votes) for votes in reader.decode_frame(band, 36, [[] for _ in range(48)])])
    return int(np.sum((np.mean(reader_votes, axis=0) > 0.5) == BITS))


def false_alarms(photographs: Sequence[Path]) -> None:
    readings = []
    for path in photographs:
        picture = open_picture(path)
        picture.thumbnail((1024, 1024))
        readings.append((read_watermark([np.asarray(picture)]), path.name))
    alarms = [name for reading, name in readings if reading.verdict != "no"]
    nearest = min(readings, key=lambda pair: pair[0].chance)
    print(f"{len(readings)} photographs without it: {len(alarms)} false alarms {alarms}")
    print(f"  nearest: {nearest[1]}, {nearest[0].matched} bits, chance {nearest[0].chance:.2g}")


def cost(turns: int) -> float:
    """Seconds of marking over those of the rest of a svd_tiny job."""
    engine, picture = load_engine("svd_tiny"), open_picture(SAMPLES / "lake.jpg")
    ratios = []
    for _ in range(turns):
        start = time.perf_counter()
        clip = generate(engine, VideoRequest("svd_tiny"), picture)
        encode_video(clip.frames, clip.fps)
        middle = time.perf_counter()
        for frame in clip.frames:
            embed_watermark(frame)
        ratios.append((time.perf_counter() - middle) / (middle - start))
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", nargs="?", type=Path, default=SAMPLES, help="a folder")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.photographs.iterdir() if path.suffix.lower() in (".jpg", ".png", ".webp"))
    for size in ((320, 192), (1024, 576)):
        survival(paths[:: max(1, len(paths) // 10)][:10], *size)
    false_alarms(paths)
    print(f"ratio {cost(arguments.turns):.4f}")


if __name__ == "__main__":
    main()
