"""Random fields that procedural surfaces are made of: spectral noise, veins, blobs, strokes.

Every field is (n, n) float32 and depends on nothing but its arguments and the generator it is given.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft
from PIL import Image, ImageDraw

Rng = np.random.Generator


@lru_cache(maxsize=8)
def _frequencies(n: int) -> tuple[np.ndarray, np.ndarray]:
    fy = scipy.fft.fftfreq(n).astype(np.float32)[:, None]
    fx = scipy.fft.rfftfreq(n).astype(np.float32)[None, :]
    return fy, fx


@lru_cache(maxsize=8)
def pixel_grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel-centre coordinates (y, x), each (n, n) float32, in pixels."""
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) + 0.5
    return y, x


def spectral(rng: Rng, n: int, beta: float = 2.0, angle: float = 0.0, *, stretch: float = 1.0) -> np.ndarray:
    """Gaussian noise of power spectrum 1/f^beta, unit variance; `stretch` > 1 draws it out along `angle`."""
    fy, fx = _frequencies(n)
    along = fx * np.float32(np.cos(angle)) + fy * np.float32(np.sin(angle))
    across = fy * np.float32(np.cos(angle)) - fx * np.float32(np.sin(angle))
    radius2 = (along * stretch) ** 2 + across**2 + np.float32(0.25 / n**2)
    return _shape_noise(rng, n, radius2 ** np.float32(-beta / 4))


def band(rng: Rng, n: int, wavelength: float, width: float = 0.35) -> np.ndarray:
    """Gaussian noise around one wavelength (pixels), unit variance; `width` is relative."""
    fy, fx = _frequencies(n)
    radius = np.sqrt(fx**2 + fy**2)
    centre = 1.0 / wavelength
    return _shape_noise(rng, n, np.exp(-(((radius - centre) / (width * centre)) ** 2)))


def _shape_noise(rng: Rng, n: int, gain: np.ndarray) -> np.ndarray:
    white = np.asarray(scipy.fft.rfft2(rng.standard_normal((n, n), dtype=np.float32)))
    white[0, 0] = 0
    field = np.asarray(scipy.fft.irfft2(white * gain, s=(n, n)))
    return field / (field.std() + 1e-6)


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Cubic ramp from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def blob(
    rng: Rng,
    n: int,
    centre: tuple[float, float],
    radius: float,
    *,
    roughness: float = 0.2,
    aspect: float = 1.0,
    angle: float = 0.0,
    edge: float = 1.0,
) -> np.ndarray:
    """Alpha in [0, 1] of a rough ellipse; `centre` is (y, x) and `radius`, `edge` are pixels."""
    y, x = pixel_grid(n)
    dy, dx = y - centre[0], x - centre[1]
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / np.sqrt(aspect)
    v = (dy * np.cos(angle) - dx * np.sin(angle)) * np.sqrt(aspect)
    theta, rho = np.arctan2(v, u), np.hypot(u, v)
    outline = np.ones_like(rho)
    for k in range(2, 7):
        outline += roughness / k * rng.normal() * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
    return smoothstep(np.clip(outline, 0.3, 2.0) * radius - rho, -edge / 2, edge / 2).astype(np.float32)


def wandering_path(
    rng: Rng, start: tuple[float, float], length: float, angle: float, *, wander: float, step: float = 3.0
) -> list[tuple[float, float]]:
    """Points (x, y) of a path centred on `start` (y, x) whose direction drifts by `wander` radians a step."""
    points = [(0.0, 0.0)]
    for _ in range(max(2, int(length / step))):
        angle += rng.normal() * wander
        x, y = points[-1]
        points.append((x + step * float(np.cos(angle)), y + step * float(np.sin(angle))))
    mean_x, mean_y = np.mean(points, axis=0)
    return [(x - mean_x + start[1], y - mean_y + start[0]) for x, y in points]


def stroke(n: int, paths: list[list[tuple[float, float]]], widths: list[float]) -> np.ndarray:
    """Alpha in [0, 1] of polylines (x, y) drawn with the given widths in pixels, antialiased."""
    scale = 3
    canvas = Image.new("L", (n * scale, n * scale))
    draw = ImageDraw.Draw(canvas)
    for path, width in zip(paths, widths, strict=True):
        points = [(x * scale, y * scale) for x, y in path]
        draw.line(points, fill=255, width=max(2, round(width * scale)), joint="curve")
    return np.asarray(canvas.reduce(scale), dtype=np.float32) / 255
