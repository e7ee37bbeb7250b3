"""Procedural industrial materials: each draws a full-frame surface of colour, relief and gloss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .noise import Rng, band, pixel_grid, smoothstep, spectral

COLOURS: dict[str, tuple[float, float, float]] = {
    "black": (0.09, 0.09, 0.10),
    "dark grey": (0.25, 0.25, 0.26),
    "grey": (0.48, 0.48, 0.48),
    "light grey": (0.70, 0.70, 0.69),
    "white": (0.90, 0.90, 0.88),
    "red": (0.62, 0.13, 0.11),
    "orange": (0.82, 0.42, 0.10),
    "brown": (0.38, 0.22, 0.13),
    "tan": (0.72, 0.55, 0.36),
    "yellow": (0.85, 0.74, 0.20),
    "green": (0.18, 0.45, 0.22),
    "blue": (0.16, 0.28, 0.58),
    "purple": (0.42, 0.22, 0.50),
    "pink": (0.85, 0.50, 0.58),
}


@dataclass
class Surface:
    """What light falls on: `albedo` (n, n, 3) in [0, 1], `height` (n, n) in pixels, `gloss` in [0, 1]; of a
    circuit board also `conductor` (n, n), 1 on copper.
    """

    albedo: np.ndarray
    height: np.ndarray
    gloss: float
    conductor: np.ndarray | None = None


def colour(rng: Rng, name: str, jitter: float = 0.05) -> np.ndarray:
    """The named colour (3,) with a little random tint, in [0, 1]."""
    base = np.asarray(COLOURS[name], dtype=np.float32)
    shade = np.float32(1 + rng.normal() * jitter * 2)
    return np.clip(base * shade + rng.normal(0, jitter * 0.5, 3).astype(np.float32), 0.02, 0.98)


def _rotated(rng: Rng, n: int, scale: float, upright: bool) -> tuple[np.ndarray, np.ndarray]:
    y, x = pixel_grid(n)
    angle = rng.normal() * 0.06 if upright else rng.uniform(0, np.pi)
    shift_y, shift_x = rng.uniform(0, 200, 2)
    c, s = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    return (y - n / 2) * c - (x - n / 2) * s + shift_y, (x - n / 2) * c + (y - n / 2) * s + shift_x


def _tinted(base: np.ndarray, field: np.ndarray) -> np.ndarray:
    return base[None, None, :] * (1 + field[..., None])


def brushed_metal(rng: Rng, n: int, scale: float, tint: np.ndarray) -> Surface:
    angle = rng.choice([0.0, np.pi / 2]) + rng.normal() * 0.15
    streaks = spectral(rng, n, 1.0, angle, stretch=25.0)
    sheen = spectral(rng, n, 3.0, angle, stretch=4.0)
    return Surface(_tinted(tint, 0.07 * streaks + 0.06 * sheen), 0.12 * streaks, 0.5)


def cast_metal(rng: Rng, n: int, scale: float, tint: np.ndarray) -> Surface:
    grain = band(rng, n, rng.uniform(4, 8) * scale, 0.6)
    slow = spectral(rng, n, 2.2)
    return Surface(_tinted(tint, 0.05 * slow + 0.03 * grain), 0.45 * grain + 0.8 * slow, 0.3)


def wood(rng: Rng, n: int, scale: float, tint: np.ndarray) -> Surface:
    angle = rng.choice([0.0, np.pi / 2]) + rng.normal() * 0.1
    y, x = pixel_grid(n)
    across = (y * np.cos(angle) - x * np.sin(angle)) / scale
    warp = spectral(rng, n, 2.6, angle, stretch=6.0)
    rings = np.sin(across * np.float32(2 * np.pi / rng.uniform(9, 18)) + 2.5 * warp)
    fibres = spectral(rng, n, 0.8, angle, stretch=18.0)
    return Surface(_tinted(tint, 0.16 * rings + 0.07 * fibres), 0.15 * fibres + 0.15 * rings, 0.15)


def fabric(rng: Rng, n: int, scale: float, tint: np.ndarray) -> Surface:
    v, u = _rotated(rng, n, scale, upright=True)
    period = np.float32(rng.uniform(7, 12))
    u, v = u / period + 0.04 * spectral(rng, n, 2.0), v / period + 0.04 * spectral(rng, n, 2.0)
    over = (np.floor(u) + np.floor(v)) % 2
    warp, weft = np.abs(np.sin(np.pi * u)), np.abs(np.sin(np.pi * v))
    height = np.where(over > 0, warp, weft)
    tone = np.where(over > 0, 1 + rng.uniform(-0.25, 0.25), 1.0)
    return Surface(tint * (tone * (0.62 + 0.4 * height))[..., None], 1.6 * height, 0.05)


def leather(rng: Rng, n: int, scale: float, tint: np.ndarray) -> Surface:
    cells = band(rng, n, rng.uniform(9, 15) * scale, 0.45)
    fine = band(rng, n, rng.uniform(4, 6) * scale, 0.5)
    creases = np.exp(-((cells / 0.28) ** 2))
    height = -1.3 * creases + 0.25 * fine
    tone = 0.05 * spectral(rng, n, 2.4) - 0.16 * creases + 0.03 * fine
    return Surface(_tinted(tint, tone), height, 0.3)


def tile(rng: Rng, n: int, scale: float, tint: np.ndarray) -> Surface:
    v, u = _rotated(rng, n, scale, upright=True)
    size = np.float32(rng.uniform(26, 60))
    row = np.floor(v / size)
    u = u + size * 0.5 * (row % 2) * rng.integers(0, 2)
    edge = np.minimum(np.abs((u / size) % 1 - 0.5), 1) * -1 + 0.5
    edge = np.minimum(edge, 0.5 - np.abs((v / size) % 1 - 0.5)) * size
    face = smoothstep(edge, 0.8, 2.4)
    ids = (row * 57 + np.floor(u / size) * 131) % 17 / 17 - 0.5
    marble = 0.06 * spectral(rng, n, 2.2) + 0.12 * ids * rng.uniform(0, 1)
    grout = colour(rng, rng.choice(["grey", "light grey", "dark grey"]))
    albedo = _tinted(tint, marble) * face[..., None] + grout * (1 - face[..., None])
    return Surface(albedo, 1.5 * face, 0.5)


def stone(rng: Rng, n: int, scale: float, tint: np.ndarray) -> Surface:
    albedo = _tinted(tint, 0.06 * spectral(rng, n, 2.0))
    for wavelength, cut in ((6.0, 1.0), (4.0, 1.2)):
        mineral = np.clip(tint * rng.uniform(0.35, 1.6), 0, 1)
        grains = smoothstep(band(rng, n, wavelength * scale, 0.5), cut - 0.2, cut + 0.2)
        albedo = albedo * (1 - grains[..., None]) + mineral * grains[..., None]
    return Surface(albedo, 0.2 * band(rng, n, 5 * scale, 0.6), 0.35)


def plastic(rng: Rng, n: int, scale: float, tint: np.ndarray) -> Surface:
    canvas = Image.new("L", (n, n))
    draw = ImageDraw.Draw(canvas)
    pitch = rng.uniform(22, 44) * scale
    style, ink = int(rng.integers(0, 4)), 255
    offset = rng.uniform(0, pitch, 2)
    for i in range(int(n / pitch) + 2):
        if style == 1:
            y = offset[0] + (i - 1) * pitch
            draw.rectangle((0, y, n, y + pitch * 0.3), fill=ink)
        for j in range(int(n / pitch) + 2):
            x, y = offset[1] + (j - 1) * pitch, offset[0] + (i - 1) * pitch
            if style == 2:
                draw.ellipse((x, y, x + pitch * 0.5, y + pitch * 0.5), fill=ink)
            elif style == 3:
                draw.rectangle((x, y, x + pitch * rng.uniform(0.2, 0.7), y + pitch * 0.25), fill=ink)
    printed = np.asarray(canvas.filter(ImageFilter.GaussianBlur(0.6)), dtype=np.float32)[..., None] / 255
    ink_colour = colour(rng, rng.choice(["white", "black", "blue", "red", "yellow"]))
    albedo = _tinted(tint, 0.015 * spectral(rng, n, 1.0)) * (1 - printed) + ink_colour * printed
    return Surface(albedo, 0.25 * spectral(rng, n, 3.0), 0.6)


def grid(rng: Rng, n: int, scale: float, tint: np.ndarray) -> Surface:
    v, u = _rotated(rng, n, scale, upright=bool(rng.integers(0, 2)))
    period = np.float32(rng.uniform(10, 22))
    wire = np.float32(rng.uniform(0.18, 0.32))
    du, dv = np.abs(u / period % 1 - 0.5), np.abs(v / period % 1 - 0.5)
    profile_u, profile_v = np.clip(1 - (du / wire) ** 2, 0, 1), np.clip(1 - (dv / wire) ** 2, 0, 1)
    height = np.sqrt(np.maximum(profile_u, profile_v))
    metal = smoothstep(height, 0.05, 0.4)[..., None]
    ground = colour(rng, rng.choice(["black", "dark grey", "light grey"]))
    albedo = _tinted(tint, 0.05 * spectral(rng, n, 1.0) + 0.2 * (height - 0.7)) * metal + ground * (1 - metal)
    return Surface(albedo, 1.8 * height, 0.5)


def carpet(rng: Rng, n: int, scale: float, tint: np.ndarray) -> Surface:
    tufts = band(rng, n, rng.uniform(3.5, 6) * scale, 0.45)
    slow = spectral(rng, n, 2.0)
    return Surface(_tinted(tint, 0.22 * tufts + 0.05 * slow), 0.6 * tufts, 0.0)


def rubber(rng: Rng, n: int, scale: float, tint: np.ndarray) -> Surface:
    v, _ = _rotated(rng, n, scale, upright=bool(rng.integers(0, 2)))
    period = rng.uniform(10, 26)
    ribs = smoothstep(np.sin(v * np.float32(2 * np.pi / period)), -0.4, 0.4)
    grain = band(rng, n, 4 * scale, 0.6)
    return Surface(_tinted(tint, 0.04 * grain + 0.12 * (ribs - 0.5)), 1.6 * ribs + 0.1 * grain, 0.2)


def circuit_board(rng: Rng, n: int, scale: float, tint: np.ndarray) -> Surface:
    canvas = Image.new("L", (2 * n, 2 * n))
    draw = ImageDraw.Draw(canvas)
    pitch = 2 * rng.uniform(11, 20) * scale
    cells = int(2 * n / pitch) + 2
    width = max(2, int(pitch * rng.uniform(0.25, 0.45)))
    holes = []
    for _ in range(int(cells * rng.uniform(0.8, 1.6))):
        x, y = rng.integers(-1, cells, 2) * pitch
        points = [(x, y)]
        for leg in range(int(rng.integers(2, 5))):
            run = int(rng.integers(-4, 5)) * pitch
            x, y = (x + run, y) if leg % 2 else (x, y + run)
            points.append((x, y))
        draw.line(points, fill=255, width=width, joint="curve")
        for px, py in (points[0], points[-1]):
            draw.ellipse((px - width, py - width, px + width, py + width), fill=255)
            holes.append((px, py))
    if rng.random() < 0.4:
        x, y = rng.uniform(0, 1.6 * n, 2)
        draw.rectangle((x, y, x + rng.uniform(0.3, 1.0) * n, y + rng.uniform(0.3, 1.0) * n), fill=255)
    for px, py in holes:
        draw.ellipse((px - width / 2, py - width / 2, px + width / 2, py + width / 2), fill=0)
    trace = np.asarray(canvas.reduce(2), dtype=np.float32)[..., None] / 255
    if rng.random() < 0.4:  # an inspection image: black and white
        dark, light = np.float32(rng.uniform(0, 0.06)), np.float32(rng.uniform(0.94, 1.0))
        low, high = (dark, light) if rng.random() < 0.5 else (light, dark)
        albedo = np.repeat(low + (high - low) * trace, 3, axis=2)
        return Surface(albedo, np.zeros((n, n), np.float32), 0.0, trace[..., 0])
    copper = np.clip(tint * 1.5 + 0.1, 0, 1) if rng.random() < 0.5 else colour(rng, "tan")
    albedo = _tinted(tint, 0.03 * spectral(rng, n, 1.0)) * (1 - trace) + copper * trace
    return Surface(albedo, trace[..., 0], 0.4, trace[..., 0])


def painted_metal(rng: Rng, n: int, scale: float, tint: np.ndarray) -> Surface:
    peel = band(rng, n, rng.uniform(7, 14) * scale, 0.6)
    return Surface(_tinted(tint, 0.03 * spectral(rng, n, 2.5)), 0.1 * peel, 0.8)


METALS = ("grey", "light grey", "dark grey", "tan")
ANY = tuple(COLOURS)
MATERIALS: dict[str, tuple[Callable[[Rng, int, float, np.ndarray], Surface], tuple[str, ...]]] = {
    "brushed metal": (brushed_metal, METALS),
    "cast metal": (cast_metal, METALS),
    "wood": (wood, ("brown", "tan", "orange", "light grey", "dark grey")),
    "woven fabric": (fabric, ANY),
    "leather": (leather, ("black", "brown", "tan", "red", "orange", "white", "green", "grey")),
    "tile": (tile, ("white", "light grey", "grey", "tan", "blue", "brown", "green")),
    "stone": (stone, ("grey", "light grey", "dark grey", "pink", "tan", "black")),
    "printed plastic": (plastic, ANY),
    "wire grid": (grid, METALS),
    "carpet": (carpet, ANY),
    "rubber": (rubber, ("black", "dark grey", "grey", "red", "blue")),
    "circuit board": (circuit_board, ("green", "blue", "black", "red", "white")),
    "painted metal": (painted_metal, ANY),
}
