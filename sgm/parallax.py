"""Figures of depth in a clip: how much more near things move than far ones, and how two layers hold together."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sgm.conditioning.camera import identity_rays, render
from sgm.conditioning.scene import Scene
from sgm.families.camera import CameraFamily
from sgm.families.image import Picture, to_pixels, to_uint8

_KEPT = 16 << 20  # bytes of a clip up to which its flows are kept, which take five times as much
_LEAST = 0.02  # difference of the layers' gains in the true render below which there is no parallax to be measured


@torch.inference_mode()
def depth_scores(frames: np.ndarray, picture: Picture) -> dict[str, float | None]:
    """`parallax` and `layered_hold` of a clip, by name; {} where it is no camera's, or between two pictures, or where
    its picture has no clear object.

    frames: uint8 (t, h, w, 3), made of the picture. Raises UserError where its object cannot be looked for.
    """
    request, family = picture.request, picture.request.family
    if not isinstance(family, CameraFamily) or request.bounded or len(frames) != request.frames:
        return {}
    large = picture.frame(scale=2)
    mask, truth, flat = _expected(large.tobytes(), large.size, tuple(map(tuple, family.path(request).tolist())))
    if frames.nbytes > _KEPT:
        _expected.cache_clear()
    if not mask.any():
        return {}
    return {"parallax": _parallax(_flows(frames), truth, flat, mask), "layered_hold": layered_hold(frames, mask)}


@lru_cache(maxsize=1)  # the clips of a sweep often have picture and camera in common
def _expected(
    content: bytes, size: tuple[int, int], positions: tuple[tuple[float, ...], ...]
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Where a picture's object is, (h, w), and the flows that a camera there sees of the scene and of the flat picture.

    content, size: of the picture, RGB, of twice the frames' size. The flows are none where there is no object.
    """
    large, path = Image.frombytes("RGB", size, content), torch.tensor(positions)
    scene, (width, height) = Scene.of(large), size
    mask = (F.avg_pool2d(scene.matte[:, :1], 2)[0, 0] > 0.5).numpy()
    if not mask.any():
        return mask, [], []
    truth = scene.deep(torch.ones(1), path[None], identity_rays(height // 16, width // 16)).film(path)
    return mask, _flows(to_uint8(truth)), _flows(to_uint8(render(to_pixels(large), path)))


def parallax(frames: np.ndarray, truth: np.ndarray, flat: np.ndarray, mask: np.ndarray) -> float | None:
    """Parallax of a clip over that of its scene's true render: 1 is as deep, 0 a flat picture.

    frames, truth, flat: uint8 (t, h, w, 3), the clip, and what the same camera sees of the scene with depth and of the
    flat picture. mask: (h, w), where the object is in the first frame. None where object or ring, its surroundings, are
    hardly seen, or the truth has no parallax along the move.
    """
    return _parallax(_flows(frames), _flows(truth), _flows(flat), mask)


def _parallax(
    moves: list[np.ndarray], truth: list[np.ndarray], flat: list[np.ndarray], mask: np.ndarray
) -> float | None:
    """As `parallax`, of the clips' dense optical flow (DIS): displacements (h, w, 2) from the first frame.

    A layer's *gain* is how much it moves along the camera's move: the least-squares factor of the flat clip's
    displacements. Parallax is the object's gain less that of its surroundings, a ring as wide as a tenth of the frame,
    over the same of the true render, frames weighted by how far they moved.
    """
    inside = cv2.erode(mask.astype(np.uint8), np.ones((5, 5))).astype(bool)
    near = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool)
    width = mask.shape[1] // 10 * 2 + 1
    ring = cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))) > 0
    regions = inside, ring & ~near
    if min(region.mean() for region in regions) < 0.005:
        return None
    found = true = 0.0
    for clip, true_flow, plane in zip(moves, truth, flat, strict=True):
        seen = _stays(plane) & _stays(true_flow)
        parts = [region & seen for region in regions]
        if min(part.mean() for part in parts) < 0.004:
            continue
        weight = float(np.square(plane[parts[0] | parts[1]]).sum())
        found += weight * (_gain(clip, plane, parts[0]) - _gain(clip, plane, parts[1]))
        true += weight * (_gain(true_flow, plane, parts[0]) - _gain(true_flow, plane, parts[1]))
    total = sum(float(np.square(plane[regions[0] | regions[1]]).sum()) for plane in flat)
    return found / true if true > _LEAST * total > 0 else None


def layered_hold(frames: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB of each later frame against the first one after the best smooth warp of object and surroundings each.

    As `hold` of a clip's scores, but the flow is blurred within each layer alone. Pixels that the first frame does not
    show are left out: those from which the flow leads out of the frame, and those at which the surroundings' own flow
    leads behind the object.
    """
    h, w = mask.shape
    pixels = _pixels(h, w)
    values = []
    for frame, flow in zip(frames[1:], _flows(frames, to_first=True), strict=True):
        layer = _at(mask.astype(np.float32), pixels + flow) > 0.5
        error, seen = np.zeros((h, w)), np.zeros((h, w), bool)
        for part in (layer, ~layer):
            points = pixels + _blurred(flow, part, w / 24)
            fits = part & _stays(points - pixels)
            if part is not layer:
                fits &= _at(mask.astype(np.float32), points) < 0.5
            error[fits] = np.square(_at(frames[0], points).astype(np.float64) - frame).mean(axis=-1)[fits]
            seen |= fits
        if seen.mean() > 0.2:
            values.append(min(10 * math.log10(255**2 / max(error[seen].mean(), 1e-9)), 99.0))
        else:
            values.append(0.0)
    return float(np.mean(values))


def _flows(clip: np.ndarray, to_first: bool = False) -> list[np.ndarray]:
    """Displacements (h, w, 2) in pixels from the first frame to each later one, or from these to the first."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip]
    flow: Any = None  # OpenCV's types do not know that it may be
    flows = []
    for later in grey[1:]:
        pair = (later, grey[0]) if to_first else (grey[0], later)
        flow = dis.calc(*pair, flow if flow is None else flow.copy())  # pyright: ignore[reportCallIssue, reportArgumentType]
        flows.append(flow)
    return flows


def _gain(flow: np.ndarray, plane: np.ndarray, part: np.ndarray) -> float:
    return float((flow[part] * plane[part]).sum() / max(float(np.square(plane[part]).sum()), 1e-6))


def _stays(flow: np.ndarray) -> np.ndarray:
    """Where displacements (h, w, 2) lead to points inside the frame."""
    h, w = flow.shape[:2]
    x, y = cv2.split(_pixels(h, w) + flow)
    return (x > 1) & (x < w - 2) & (y > 1) & (y < h - 2)


def _pixels(h: int, w: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)), axis=-1)


def _at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    return cv2.remap(image, points[..., 0], points[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _blurred(flow: np.ndarray, part: np.ndarray, sigma: float) -> np.ndarray:
    """The flow blurred over the pixels of `part` alone (normalized convolution)."""
    weight = part.astype(np.float32)[..., None]
    total = cv2.GaussianBlur(weight, (0, 0), sigma)[..., None]
    return (cv2.GaussianBlur(flow * weight, (0, 0), sigma) / np.maximum(total, 1e-4)).astype(np.float32)
