"""Silhouettes and relief of single parts on a plain ground: flat stampings and turned parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from .noise import Rng, pixel_grid, smoothstep


@dataclass
class Part:
    """`alpha` (n, n) in [0, 1], 1 on the part; `height` (n, n) in pixels."""

    alpha: np.ndarray
    height: np.ndarray


def _stamped(n: int, outline: Callable[[ImageDraw.ImageDraw, float], None], bevel: float) -> Part:
    """A flat part: `outline` draws it into a 2x canvas whose centre is (n, n) and whose unit is 2 pixels."""
    canvas = Image.new("L", (2 * n, 2 * n))
    outline(ImageDraw.Draw(canvas), float(n))
    alpha = np.asarray(canvas.reduce(2), dtype=np.float32) / 255
    depth = np.minimum(np.asarray(distance_transform_edt(alpha > 0.5), dtype=np.float32) / bevel, 1)
    return Part(alpha, bevel * 0.7 * np.sqrt(depth))


def _polygon(centre: float, radius: float, corners: int, turn: float) -> list[tuple[float, float]]:
    angles = turn + np.arange(corners) * (2 * np.pi / corners)
    return [(centre + radius * float(np.cos(a)), centre + radius * float(np.sin(a))) for a in angles]


def _disc(draw: ImageDraw.ImageDraw, c: float, radius: float, fill: int = 255) -> None:
    draw.ellipse((c - radius, c - radius, c + radius, c + radius), fill=fill)


def washer(rng: Rng, n: int) -> Part:
    outer = rng.uniform(0.65, 0.9)
    inner = outer * rng.uniform(0.35, 0.6)

    def outline(draw: ImageDraw.ImageDraw, c: float) -> None:
        _disc(draw, c, outer * c)
        _disc(draw, c, inner * c, 0)

    return _stamped(n, outline, n * rng.uniform(0.02, 0.06))


def cap(rng: Rng, n: int) -> Part:
    radius = rng.uniform(0.6, 0.9)
    return _stamped(n, lambda draw, c: _disc(draw, c, radius * c), n * rng.uniform(0.05, 0.3))


def nut(rng: Rng, n: int) -> Part:
    radius, turn, bore = rng.uniform(0.65, 0.9), rng.uniform(0, np.pi), rng.uniform(0.45, 0.6)

    def outline(draw: ImageDraw.ImageDraw, c: float) -> None:
        draw.polygon(_polygon(c, radius * c, 6, turn), fill=255)
        _disc(draw, c, radius * bore * c, 0)

    return _stamped(n, outline, n * 0.05)


def gear(rng: Rng, n: int) -> Part:
    teeth, radius, turn = int(rng.integers(9, 20)), rng.uniform(0.7, 0.9), rng.uniform(0, np.pi)
    bore = rng.uniform(0.15, 0.45)

    def outline(draw: ImageDraw.ImageDraw, c: float) -> None:
        a = np.linspace(0, 2 * np.pi, teeth * 12, endpoint=False)
        r = radius * c * (0.9 + 0.1 * np.clip(2.5 * np.sin(teeth * a), -1, 1))
        draw.polygon(
            [(c + ri * np.cos(ai + turn), c + ri * np.sin(ai + turn)) for ai, ri in zip(a, r, strict=True)],
            fill=255,
        )
        _disc(draw, c, radius * bore * c, 0)

    return _stamped(n, outline, n * 0.03)


def plate(rng: Rng, n: int) -> Part:
    half_w, half_h = rng.uniform(0.55, 0.88), rng.uniform(0.4, 0.88)
    corner, holes = rng.uniform(0.02, 0.2), int(rng.integers(0, 2))

    def outline(draw: ImageDraw.ImageDraw, c: float) -> None:
        draw.rounded_rectangle(
            (c - half_w * c, c - half_h * c, c + half_w * c, c + half_h * c), corner * c, fill=255
        )
        for sx in (-1, 1) if holes else ():
            for sy in (-1, 1):
                x, y, r = c + sx * half_w * c * 0.72, c + sy * half_h * c * 0.72, c * 0.07
                draw.ellipse((x - r, y - r, x + r, y + r), fill=0)

    return _stamped(n, outline, n * rng.uniform(0.02, 0.06))


def _revolved(
    rng: Rng, n: int, half_length: float, half_width: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Part:
    """A part of revolution: `half_width(t, v)` in pixels along the axis, t in [-1, 1]."""
    y, x = pixel_grid(n)
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (x - n / 2) * c + (y - n / 2) * s, (y - n / 2) * c - (x - n / 2) * s
    t = u / half_length
    width = np.where(np.abs(t) <= 1, half_width(t, v), 0)
    alpha = smoothstep(width - np.abs(v), -0.5, 0.5) * smoothstep(half_length - np.abs(u), -0.5, 0.5)
    return Part(alpha.astype(np.float32), np.sqrt(np.clip(width**2 - v**2, 0, None)).astype(np.float32))


def screw(rng: Rng, n: int) -> Part:
    half_length, shank = n * rng.uniform(0.36, 0.46), n * rng.uniform(0.035, 0.055)
    pitch, thread_from = rng.uniform(14, 22), rng.uniform(-0.3, 0.0)

    def half_width(t: np.ndarray, v: np.ndarray) -> np.ndarray:
        head = shank * np.clip(2.4 - (t + 1) * 8, 1, 2.4)
        phase = t * pitch * np.pi + v / shank * 0.9
        thread = shank * (0.95 + 0.38 * np.abs(np.sin(phase / 2 * 1.6)) ** 0.7)
        tip = np.clip((1 - t) * 6, 0.05, 1)
        return np.where(t < thread_from, head, thread * tip)

    return _revolved(rng, n, half_length, half_width)


def bolt(rng: Rng, n: int) -> Part:
    half_length, shank = n * rng.uniform(0.32, 0.44), n * rng.uniform(0.06, 0.1)
    head_end = rng.uniform(-0.7, -0.5)
    pitch = rng.uniform(18, 30)

    def half_width(t: np.ndarray, v: np.ndarray) -> np.ndarray:
        thread = shank * (1 + 0.07 * np.sin(t * pitch * np.pi + v / shank * 0.5))
        return np.where(t < head_end, shank * 1.9, thread)

    return _revolved(rng, n, half_length, half_width)


def capsule(rng: Rng, n: int) -> Part:
    half_length = n * rng.uniform(0.34, 0.45)
    radius = half_length * rng.uniform(0.3, 0.8)

    def half_width(t: np.ndarray, v: np.ndarray) -> np.ndarray:
        overshoot = np.clip(np.abs(t) * half_length - (half_length - radius), 0, radius)
        return np.sqrt(np.maximum(radius**2 - overshoot**2, 0))

    return _revolved(rng, n, half_length, half_width)


OBJECTS: dict[str, Callable[[Rng, int], Part]] = {
    "washer": washer,
    "cap": cap,
    "nut": nut,
    "gear": gear,
    "plate": plate,
    "screw": screw,
    "bolt": bolt,
    "capsule": capsule,
}
