"""The page's sample clip for SV4D, a toy penguin that walks on the spot: `python docs/sample_clip.py` renders it anew.

Sphere tracing (Hart 1996, doi:10.1007/s003710050084) of a few ellipsoids, on a transparent background.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

FRAMES, SIDE, FINE = 21, 448, 2  # FINE squared rays a pixel
NAVY, WHITE, ORANGE, BLACK, RED = (
    (0.13, 0.2, 0.36),
    (0.95, 0.94, 0.9),
    (0.95, 0.55, 0.12),
    (0.02,) * 3,
    (0.75, 0.12, 0.1),
)
Array = np.ndarray


def _of(values: object) -> Array:
    return np.asarray(values, np.float32)


def parts(phase: float) -> list[tuple[tuple[float, ...], tuple[float, ...], float, tuple[float, ...]]]:
    """Centre, radii, lean (radians, in the plane of the picture's x and y) and colour of each ellipsoid."""
    sway, flap = math.sin(phase), 0.45 + 0.35 * math.sin(2 * phase)
    bob, lean = 0.05 * abs(math.sin(phase)), 0.12 * sway
    left, right = 0.16 * max(sway, 0), 0.16 * max(-sway, 0)
    x = 0.1 * sway
    head = x - 0.6 * lean
    return [
        ((x, bob, 0), (0.52, 0.72, 0.46), lean, NAVY),
        ((x, bob - 0.06, 0.13), (0.42, 0.58, 0.37), lean, WHITE),
        ((head, bob + 0.78, 0.02), (0.37, 0.34, 0.35), lean, NAVY),
        ((head - 0.13, bob + 0.77, 0.2), (0.17, 0.2, 0.18), lean, WHITE),
        ((head + 0.13, bob + 0.77, 0.2), (0.17, 0.2, 0.18), lean, WHITE),
        ((head - 0.12, bob + 0.83, 0.345), (0.045, 0.06, 0.045), lean, BLACK),
        ((head + 0.12, bob + 0.83, 0.345), (0.045, 0.06, 0.045), lean, BLACK),
        ((head, bob + 0.7, 0.4), (0.1, 0.06, 0.18), lean, ORANGE),
        ((x - 0.3 * lean, bob + 0.5, 0.02), (0.36, 0.1, 0.34), lean, RED),
        ((x - 0.55 - 0.2 * flap, bob + 0.1 + 0.12 * flap, 0), (0.1, 0.4, 0.19), lean - flap, NAVY),
        ((x + 0.55 + 0.2 * flap, bob + 0.1 + 0.12 * flap, 0), (0.1, 0.4, 0.19), lean + flap, NAVY),
        ((-0.22, left - 0.72, 0.18), (0.19, 0.08, 0.27), 0, ORANGE),
        ((0.22, right - 0.72, 0.18), (0.19, 0.08, 0.27), 0, ORANGE),
        ((x, bob - 0.5, -0.42), (0.14, 0.1, 0.22), lean, NAVY),
    ]


def distances(points: Array, phase: float) -> Array:
    """About the distance of points (n, 3) to each ellipsoid, (parts, n)."""
    found = []
    for centre, radii, lean, _ in parts(phase):
        x, y, z = (points - _of(centre)).T
        c, s = math.cos(lean), math.sin(lean)
        local = np.stack([c * x + s * y, c * y - s * x, z]) / _of(radii)[:, None]
        inner = np.linalg.norm(local, axis=0)
        found.append(inner * (inner - 1) / np.maximum(np.linalg.norm(local / _of(radii)[:, None], axis=0), 1e-6))
    return np.stack(found)


def frame(number: int) -> Image.Image:
    """One frame, RGBA: seen from 25 degrees aside and 10 above."""
    phase, n = 4 * math.pi * number / FRAMES, SIDE * FINE
    side, up = math.radians(25), math.radians(10)
    forward = -_of([math.sin(side) * math.cos(up), math.sin(up), math.cos(side) * math.cos(up)])
    right = _of([math.cos(side), 0, -math.sin(side)])
    across, down = np.meshgrid(*2 * [(np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1])
    plane = across.reshape(-1, 1) * right + down.reshape(-1, 1) * np.cross(right, forward) * -1
    rays = forward * 4.5 + 1.35 * plane
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    eye = _of([0, 0.12, 0]) - 4.5 * forward
    depth, alive = np.full(n * n, 3.0, np.float32), np.arange(n * n)
    for _ in range(40):
        step = distances(eye + depth[alive, None] * rays[alive], phase).min(axis=0)
        depth[alive] += 0.9 * step
        alive = alive[(step > 1e-3) & (depth[alive] < 6)]
    hit = np.flatnonzero(depth < 6)
    points, small = eye + depth[hit, None] * rays[hit], np.eye(3, dtype=np.float32) * 2e-3
    normals = np.stack([(distances(points + d, phase).min(0) - distances(points - d, phase).min(0)) for d in small], 1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    light = _of([-0.45, 0.75, 0.5])
    shine = np.maximum((normals * (light - forward) / np.linalg.norm(light - forward)).sum(1), 0)[:, None] ** 40
    colours = _of([colour for *_, colour in parts(phase)])[distances(points, phase).argmin(axis=0)]
    lit = colours * (0.42 + 0.62 * np.maximum(normals @ light, 0)[:, None]) + 0.22 * shine
    rgba = np.zeros((n * n, 4), np.float32)
    rgba[hit] = np.concatenate([lit.clip(0, 1), np.ones((len(hit), 1), np.float32)], axis=1)
    small_rgba = rgba.reshape(SIDE, FINE, SIDE, FINE, 4).mean(axis=(1, 3))
    small_rgba[..., :3] /= np.maximum(small_rgba[..., 3:], 1e-6)  # colours without the background's part
    return Image.fromarray((255 * small_rgba).round().astype(np.uint8))


if __name__ == "__main__":
    target = Path(__file__).parents[1] / "app" / "clips" / "penguin.webp"
    target.parent.mkdir(exist_ok=True)
    frames = [frame(number) for number in range(FRAMES)]
    frames[0].save(target, save_all=True, append_images=frames[1:], duration=100, loop=0, quality=85, method=6)
    print(target, target.stat().st_size)
