"""Scores: figures of a finished clip, of how it moves and holds, and of how near it is to a picture or another clip."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from sgm.conditioning.camera import MOTION_AT_127, motion_bucket
from sgm.errors import UserError
from sgm.learned import lpips
from sgm.media.quality import (
    BLACK,
    BLACK_SHARE,
    FREEZE,
    HIGHEST_PSNR,
    detail,
    gradient,
    is_black,
    psnr,
    ssim,
    stands_still,
    xpsnr,
)
from sgm.parallax import depth_scores

if TYPE_CHECKING:
    from sgm.request import VideoRequest

Scores = dict[str, float | None]  # name -> figure, in the order of SCORES; None where it is not known


class Score(NamedTuple):
    """What one figure is. title: a few letters, for the head of a column. better: "higher", "lower" or "".

    digits: that are worth showing, behind the point.
    """

    title: str
    unit: str
    better: str
    digits: int
    meaning: str


_HARDLY_SEEN = 0.2  # share of the pixels that a warp must reach for `hold`
_SMALLEST_FLOW = 16  # pixels of either side, of which OpenCV's DIS makes something

# Name -> what it is. Pixels are 0 to 255; grey is BT.601's luma over the full range. Where two frames are compared, the
# mean over all such pairs is given, but for si and ti.
SCORES: dict[str, Score] = {
    "frame0": Score(
        "frame0",
        "dB",
        "higher",
        2,
        "PSNR of the first frame against the picture as the model saw it: is this still the picture that was given? "
        f"{HIGHEST_PSNR:g} where they are equal, as for every PSNR here.",
    ),
    "hold": Score(
        "hold",
        "dB",
        "higher",
        2,
        "PSNR of each later frame against the first one, after the best smooth warp: dense optical flow (DIS), blurred "
        "by 1/24 of the width, where it stays inside the picture. Does the scene hold together while it moves? Mush is "
        f"under 20; 0 where less than {_HARDLY_SEEN:.0%} of the picture is left to be seen.",
    ),
    "motion": Score(
        "motion",
        "% of the width a frame",
        "",
        3,
        "Mean displacement from one frame to the next, by the flow of hold: the difference of two frames' flows to the "
        "first.",
    ),
    "motion_bucket": Score(
        "bucket",
        "",
        "",
        0,
        f"The motion bucket that this motion amounts to, by the definition that svd_tiny is trained with: 127 is "
        f"{MOTION_AT_127:g} % of the width a frame, in proportion. How Stability measured motion for SVD's buckets was "
        "not published.",
    ),
    "jerk": Score(
        "jerk",
        "",
        "lower",
        2,
        "How unevenly it moves: the change of displacement from frame to frame over the displacement. 0 is perfectly "
        "even. An empty sky raises it, since flow follows unseen noise there.",
    ),
    "detail_jerk": Score(
        "jerk2",
        "",
        "lower",
        2,
        "As jerk, where there is detail: each pixel counts by the square of its gradient of brightness (Sobel), the "
        "inverse of the variance that noise gives its flow. An empty sky does not count.",
    ),
    "sharpness": Score(
        "sharp",
        "",
        "higher",
        2,
        "Energy of fine detail of the later frames over the first frame's. Detail is grey without its Gaussian blur of "
        "1.5 pixels. 1 keeps all of it; more is new detail, or noise.",
    ),
    "flicker": Score(
        "flicker",
        "levels of 255",
        "lower",
        2,
        "Mean absolute difference of a frame and the one before it, warped by the flow of hold: what changes without "
        "moving. As the warping error of Lai et al. 2018 (arXiv:1808.00449). A steady pan has about 0.6, a zoom 1.8.",
    ),
    "parallax": Score(
        "parallax",
        "",
        "",
        2,
        "Of a clip of svd_tiny whose picture has a clear object: how much more the object moves than its surroundings, "
        "along the camera's move, over the same of a true render of the scene that its picture's depth is guessed as. "
        "1: as deep; 0: flat.",
    ),
    "layered_hold": Score(
        "hold2",
        "dB",
        "higher",
        2,
        "As hold, with a warp of its own for object and surroundings, where a clip has parallax.",
    ),
    "si": Score(
        "SI",
        "levels of 255",
        "",
        1,
        "Spatial information (ITU-T P.910): the largest over the frames of the standard deviation of the Sobel "
        "gradient.",
    ),
    "ti": Score(
        "TI",
        "levels of 255",
        "",
        1,
        "Temporal information (ITU-T P.910): the largest over the frames of the standard deviation of the difference "
        "to the frame before.",
    ),
    "frozen": Score(
        "frozen",
        "frames",
        "lower",
        0,
        f"Frames that stand still: their mean absolute difference to the one before is at most {FREEZE:.1%} of the "
        "range, as FFmpeg's freezedetect has it.",
    ),
    "black": Score(
        "black",
        "frames",
        "lower",
        0,
        f"Black frames: {BLACK_SHARE:.0%} of the pixels or more are darker than {BLACK:.0%} of the range, as "
        "FFmpeg's blackdetect has it.",
    ),
    "psnr": Score("PSNR", "dB", "higher", 2, "PSNR of each frame against the reference's, of red, green and blue."),
    "ssim": Score(
        "SSIM",
        "",
        "higher",
        4,
        "Structural similarity of each frame to the reference's (Wang et al. 2004, doi:10.1109/TIP.2003.819861), grey, "
        "window of 1.5 pixels' standard deviation. 1 is equal.",
    ),
    "xpsnr": Score(
        "XPSNR",
        "dB",
        "higher",
        2,
        "PSNR of each frame against the reference's, weighted by what the eye sees (Helmrich et al. 2020, "
        "doi:10.1109/ICASSP40776.2020.9054089), grey, by FFmpeg's filter.",
    ),
    "lpips": Score(
        "LPIPS",
        "",
        "lower",
        3,
        "Learned perceptual distance of each frame to the reference's (Zhang et al. 2018, arXiv:1801.03924), AlexNet. "
        "Needs the package lpips, and AlexNet's weights in torch's cache.",
    ),
}


def score_clip(
    frames: np.ndarray,
    picture: Image.Image | np.ndarray | None = None,
    reference: np.ndarray | None = None,
    request: VideoRequest | None = None,
) -> Scores:
    """The figures of a clip by name, each of them explained in SCORES; None for those that cannot be known.

    frames: uint8 RGB (t, h, w, 3). picture: as the model saw it (see `prepare_picture`), of the frames' size, or, with
    the `request` that the clip was made by, an image as it was given; `frame0` needs it, `parallax` and `layered_hold`
    both. reference: the frames of another clip, of the same shape; `psnr`, `ssim`, `xpsnr` and `lpips` need it.
    Raises UserError where sizes or lengths differ, and as `generate` does for the picture; ValueError for no uint8
    frames.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"Frames must be uint8 of shape (t, h, w, 3), not {frames.dtype} of shape {frames.shape}.")
    scores: Scores = dict.fromkeys(SCORES)
    frames = np.ascontiguousarray(frames)  # as OpenCV takes them
    grey = _grey(frames)
    if picture is not None:
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        made_of = None if request is None else request.family.prepare(image, request)
        shown = np.asarray(made_of.frame() if made_of else image)
        scores["frame0"] = psnr(frames[0], _of_size(shown, frames))
        scores |= depth_scores(frames, made_of) if made_of else {}
    scores |= _of_motion(frames, grey)
    scores |= _of_frames(grey)
    if reference is not None:
        if reference.shape != frames.shape:
            raise UserError(
                f"The clip has {_size(frames)}, the reference {_size(reference)}: give one of the same length and size."
            )
        scores |= _against(frames, grey, reference)
    return scores


def _of_motion(frames: np.ndarray, grey: list[np.ndarray]) -> Scores:
    """What dense optical flow tells: hold, motion, both jerks, flicker. {} of a single frame, and of too small ones."""
    h, w = grey[0].shape
    if min(h, w) < _SMALLEST_FLOW:
        return {}
    pixels = np.stack(np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)), axis=-1)
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    hold, flicker, speeds, changes = [], [], [], []
    before, velocity = np.zeros((h, w, 2), np.float32), None
    flow: Any = None  # OpenCV's types do not know that it may be
    for now, then, frame in zip(grey[1:], grey, frames[1:], strict=False):
        # From this frame back to the first one, so that the first one can be sampled at this one's pixels.
        flow = dis.calc(now, grey[0], flow)
        smooth = cv2.GaussianBlur(flow, (0, 0), w / 24)
        warped, seen = _warp(frames[0], pixels + smooth)
        hold.append(psnr(warped, frame, seen) if seen.mean() > _HARDLY_SEEN else 0.0)
        last, velocity = velocity, smooth - before
        # To the frame before: the point of the first frame that a pixel shows lay `step` away then.
        step = smooth - _warp(before, pixels + velocity)[0]
        warped, seen = _warp(then, pixels + step)
        if seen.any():
            flicker.append(cv2.norm(warped, now, cv2.NORM_L1, seen) / np.count_nonzero(seen))
        slopes = np.stack([cv2.Sobel(now, cv2.CV_32F, *order) for order in ((1, 0), (0, 1))])
        weights = np.square(slopes).sum(axis=0) + 1e-6  # of a flat frame, all pixels count alike
        speeds.append(_lengths(velocity, weights))
        if last is not None:
            changes.append(_lengths(velocity - last, weights))
        before = smooth
    if not speeds:
        return {}
    speed = np.mean(speeds, axis=0)
    motion = 100 * float(speed[0]) / w
    jerk, detail_jerk = (np.mean(changes, axis=0) / np.maximum(speed, 1e-6)).tolist() if changes else (None, None)
    return {
        "hold": float(np.mean(hold)),
        "motion": motion,
        "motion_bucket": float(motion_bucket(motion)),
        "jerk": jerk,
        "detail_jerk": detail_jerk,
        "flicker": float(np.mean(flicker)) if flicker else None,
    }


def _of_frames(grey: list[np.ndarray]) -> Scores:
    """What brightness tells: sharpness, si, ti, frozen, black."""
    black = sum(map(is_black, grey))
    scores: Scores = {"si": max(map(gradient, grey)), "black": float(black)}
    if len(grey) == 1:
        return scores
    energy = [detail(frame) for frame in grey]
    return scores | {
        "sharpness": float(np.mean(energy[1:]) / max(energy[0], 1e-6)),
        "ti": max(float(np.std(b.astype(np.float32) - a)) for a, b in pairwise(grey)),
        "frozen": float(sum(stands_still(a, b) for a, b in pairwise(grey))),
    }


def _against(frames: np.ndarray, grey: list[np.ndarray], reference: np.ndarray) -> Scores:
    """What a reference tells: psnr, ssim, xpsnr, lpips."""
    other = _grey(reference)
    weighted = xpsnr(grey, other)
    return {
        "psnr": float(np.mean([psnr(a, b) for a, b in zip(frames, reference, strict=True)])),
        "ssim": float(np.mean([ssim(a, b) for a, b in zip(grey, other, strict=True)])),
        "xpsnr": float(np.mean([min(value, HIGHEST_PSNR) for value in weighted])) if weighted else None,
        "lpips": lpips(frames, reference),
    }


def _grey(frames: np.ndarray) -> list[np.ndarray]:
    """BT.601's luma, uint8 (h, w), of each frame."""
    return [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]


def _warp(image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image sampled at points (h, w, 2), and a mask (h, w), 1 where these lie inside it."""
    x, y = cv2.split(points)
    h, w = x.shape
    seen = (x > 1) & (x < w - 2) & (y > 1) & (y < h - 2)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR), seen.view(np.uint8)


def _lengths(vectors: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Mean length of vectors (h, w, 2), and the mean weighted by (h, w)."""
    lengths = cv2.magnitude(*cv2.split(vectors))
    return float(lengths.mean()), float(np.average(lengths, weights=weights))


def _of_size(picture: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The picture, if it has the frames' shape. Raises UserError for another."""
    if picture.shape != frames.shape[1:]:
        raise UserError(
            f"The picture has the shape {picture.shape}, the clip's frames {frames.shape[1:]}: give it as the model "
            "saw it, in RGB and of the frames' size."
        )
    return picture


def _size(frames: np.ndarray) -> str:
    count = "1 frame" if len(frames) == 1 else f"{len(frames)} frames"
    return f"{count} of {frames.shape[2]}×{frames.shape[1]} pixels"
