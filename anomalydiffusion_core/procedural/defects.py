"""Procedural defects: each marks a place of a surface and changes its colour, relief or outline there.

Every family returns the exact region it changed, alpha (n, n) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from .materials import Surface, colour
from .noise import Rng, blob, smoothstep, spectral, stroke, wandering_path


@dataclass
class Canvas:
    """The sample being drawn: its surface and `alpha` (n, n), 1 on the part (all ones for a texture)."""

    surface: Surface
    alpha: np.ndarray

    @property
    def n(self) -> int:
        return self.alpha.shape[0]


@dataclass(frozen=True)
class Spot:
    """Where a defect goes: its centre (y, x) and its half extent, in pixels."""

    centre: tuple[float, float]
    reach: float


def _paint(canvas: Canvas, alpha: np.ndarray, tint: np.ndarray | float) -> None:
    a = alpha[..., None]
    canvas.surface.albedo = canvas.surface.albedo * (1 - a) + np.float32(tint) * a


def _relieve(canvas: Canvas, change: np.ndarray) -> None:
    canvas.surface.height = canvas.surface.height + change


def scratch(rng: Rng, canvas: Canvas, spot: Spot, tint: np.ndarray) -> np.ndarray:
    angle, count = rng.uniform(0, np.pi), int(rng.choice([1, 1, 2, 3]))
    paths = [
        wandering_path(
            rng,
            (spot.centre[0] + rng.normal() * 3 * i, spot.centre[1] + rng.normal() * 3 * i),
            2 * spot.reach * rng.uniform(0.7, 1),
            angle + rng.normal() * 0.1,
            wander=0.03,
        )
        for i in range(count)
    ]
    line = stroke(canvas.n, paths, [rng.uniform(1.0, 1.6) + spot.reach / 28 for _ in paths])
    burr = np.clip(gaussian_filter(line, 1.2) - line, 0, 1)
    _paint(canvas, 0.85 * line, tint)
    _relieve(canvas, float(rng.uniform(0, 2)) * burr - 0.8 * line)
    return line


def crack(rng: Rng, canvas: Canvas, spot: Spot, tint: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, np.pi)
    trunk = wandering_path(rng, spot.centre, 2 * spot.reach, angle, wander=0.55)
    paths, widths = [trunk], [1.2 + spot.reach / 22]
    for _ in range(int(rng.integers(1, 4))):
        x, y = trunk[int(rng.integers(len(trunk)))]
        branch = wandering_path(
            rng, (y, x), spot.reach * 0.8, angle + rng.choice([-1, 1]) * rng.uniform(0.5, 1.2), wander=0.5
        )
        shift_x, shift_y = x - branch[0][0], y - branch[0][1]
        paths.append([(px + shift_x, py + shift_y) for px, py in branch])
        widths.append(widths[0] * 0.7)
    line = stroke(canvas.n, paths, widths)
    _paint(canvas, 0.9 * line, canvas.surface.albedo * 0.2)
    _relieve(canvas, -1.5 * line)
    return line


def dent(rng: Rng, canvas: Canvas, spot: Spot, tint: np.ndarray) -> np.ndarray:
    bowl = blob(
        rng,
        canvas.n,
        spot.centre,
        spot.reach * 0.8,
        roughness=0.08,
        aspect=rng.uniform(1, 1.6),
        angle=rng.uniform(0, np.pi),
        edge=spot.reach * 0.9,
    )
    _relieve(canvas, -spot.reach * rng.uniform(0.5, 0.8) * bowl)
    _paint(canvas, 0.2 * bowl, canvas.surface.albedo * 0.7)
    return smoothstep(bowl, 0.02, 0.12)


def hole(rng: Rng, canvas: Canvas, spot: Spot, tint: np.ndarray) -> np.ndarray:
    pit = blob(
        rng,
        canvas.n,
        spot.centre,
        spot.reach * 0.75,
        roughness=0.12,
        aspect=rng.uniform(1, 1.4),
        angle=rng.uniform(0, np.pi),
        edge=1.5,
    )
    rim = np.clip(gaussian_filter(pit, 1.3) * 2, 0, 1)
    _relieve(canvas, 1.5 * rim - 2.0 * pit)
    _paint(canvas, pit, 0.03)
    return np.maximum(pit, smoothstep(rim, 0.1, 0.5))


def stain(rng: Rng, canvas: Canvas, spot: Spot, tint: np.ndarray) -> np.ndarray:
    blot = blob(
        rng,
        canvas.n,
        spot.centre,
        spot.reach,
        roughness=0.3,
        aspect=rng.uniform(1, 2),
        angle=rng.uniform(0, np.pi),
        edge=spot.reach * 0.35,
    )
    body = blot * np.clip(rng.uniform(0.65, 0.9) + 0.08 * spectral(rng, canvas.n, 2.0), 0.3, 1)
    _paint(canvas, body, tint)
    return smoothstep(blot, 0.05, 0.2)


def contamination(rng: Rng, canvas: Canvas, spot: Spot, tint: np.ndarray) -> np.ndarray:
    specks = np.zeros((canvas.n, canvas.n), np.float32)
    for _ in range(int(rng.integers(4, 9))):
        where = (
            spot.centre[0] + rng.normal() * spot.reach * 0.45,
            spot.centre[1] + rng.normal() * spot.reach * 0.45,
        )
        speck = blob(
            rng,
            canvas.n,
            where,
            spot.reach * rng.uniform(0.12, 0.28) + 0.8,
            roughness=0.2,
            aspect=rng.uniform(1, 1.8),
            angle=rng.uniform(0, np.pi),
        )
        specks = np.maximum(specks, speck)
    _paint(canvas, 0.95 * specks, tint)
    _relieve(canvas, 2.0 * specks)
    return specks


def missing_part(rng: Rng, canvas: Canvas, spot: Spot, tint: np.ndarray) -> np.ndarray:
    chip = blob(
        rng,
        canvas.n,
        spot.centre,
        spot.reach * 0.9,
        roughness=0.5,
        aspect=rng.uniform(1, 1.8),
        angle=rng.uniform(0, np.pi),
        edge=1.2,
    )
    if canvas.alpha.min() < 0.5:
        bitten = chip * canvas.alpha
        canvas.alpha = canvas.alpha - bitten
        return bitten
    base = canvas.surface.albedo.mean((0, 1)) * rng.uniform(0.45, 0.7)
    _paint(canvas, chip, base * (1 + 0.05 * spectral(rng, canvas.n, 1.5)[..., None]))
    canvas.surface.height = canvas.surface.height * (1 - chip) - 2.5 * chip
    return chip


def fibre(rng: Rng, canvas: Canvas, spot: Spot, tint: np.ndarray) -> np.ndarray:
    path = wandering_path(rng, spot.centre, 3.2 * spot.reach, rng.uniform(0, 2 * np.pi), wander=0.28)
    line = stroke(canvas.n, [path], [rng.uniform(1.0, 1.8) + spot.reach / 40])
    shadow = gaussian_filter(np.roll(line, (1, 1), (0, 1)), 0.8)
    _paint(canvas, 0.3 * shadow, canvas.surface.albedo * 0.3)
    _paint(canvas, 0.95 * line, tint)
    return np.maximum(line, smoothstep(shadow, 0.3, 0.6))


def fold(rng: Rng, canvas: Canvas, spot: Spot, tint: np.ndarray) -> np.ndarray:
    """A ridge or a furrow, which light shows on one side and shadow on the other."""
    path = wandering_path(rng, spot.centre, 2.4 * spot.reach, rng.uniform(0, np.pi), wander=0.12)
    width = 1.5 + spot.reach * rng.uniform(0.1, 0.3)
    ridge = gaussian_filter(stroke(canvas.n, [path], [width]), 0.3 * width)
    _relieve(canvas, float(rng.choice([-1, 1]) * rng.uniform(0.6, 1.0)) * width * ridge)
    _paint(canvas, 0.25 * ridge, canvas.surface.albedo * rng.uniform(0.6, 1.3))
    return smoothstep(ridge, 0.05, 0.3)


def solder(rng: Rng, canvas: Canvas, spot: Spot, tint: np.ndarray) -> np.ndarray:
    """A drop of metal: a dome with a highlight at one side."""
    size = spot.reach * rng.uniform(0.5, 0.9)
    drop = blob(
        rng,
        canvas.n,
        spot.centre,
        size,
        roughness=0.15,
        aspect=rng.uniform(1, 1.5),
        angle=rng.uniform(0, np.pi),
        edge=size * 0.7,
    )
    outline = smoothstep(drop, 0.1, 0.3)
    shift, turn = 0.35 * size, rng.uniform(0, 2 * np.pi)
    lit = (spot.centre[0] + shift * np.sin(turn), spot.centre[1] + shift * np.cos(turn))
    highlight = blob(rng, canvas.n, lit, 0.25 * size + 0.5, edge=0.3 * size + 0.5)
    _paint(canvas, 0.95 * outline, tint)
    _paint(canvas, 0.9 * highlight * outline, 1.0)
    canvas.surface.height = canvas.surface.height * (1 - outline) + size * np.sqrt(drop)
    return outline


def misprint(rng: Rng, canvas: Canvas, spot: Spot, tint: np.ndarray) -> np.ndarray:
    """Marks of ink in a row, as of a stamp."""
    angle, marks = rng.uniform(0, 2 * np.pi), int(rng.integers(2, 6))
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    pitch, paths = 2 * spot.reach / marks, []
    for mark in range(marks):
        middle = np.array(spot.centre[::-1]) + (mark - (marks - 1) / 2) * pitch * along
        corners = rng.uniform(-0.5, 0.5, (int(rng.integers(2, 5)), 2)) * pitch * np.array([0.7, 1.4])
        paths.append([tuple(middle + x * along + y * across) for x, y in corners])
    line = stroke(canvas.n, paths, [1 + spot.reach / 18] * marks)
    _paint(canvas, rng.uniform(0.6, 0.95) * line, tint)
    return line


def thread(rng: Rng, canvas: Canvas, spot: Spot, tint: np.ndarray) -> np.ndarray:
    """A loose or pulled thread: nearly straight, raised, with a shadow beside it."""
    path = wandering_path(rng, spot.centre, 3 * spot.reach, rng.uniform(0, np.pi), wander=0.06)
    line = stroke(canvas.n, [path], [1.2 + spot.reach / 20])
    shadow = gaussian_filter(np.roll(line, (1, 1), (0, 1)), 0.8)
    _paint(canvas, 0.4 * shadow, canvas.surface.albedo * 0.3)
    _paint(canvas, 0.9 * line, tint)
    _relieve(canvas, 1.5 * line)
    return np.maximum(line, smoothstep(shadow, 0.3, 0.6))


LIGHT_OR_DARK = ("white", "light grey", "black", "dark grey")
VIVID = ("black", "white", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink")
DEFECTS: dict[str, tuple[Callable[[Rng, Canvas, Spot, np.ndarray], np.ndarray], tuple[str, ...]]] = {
    "scratch": (scratch, LIGHT_OR_DARK),
    "crack": (crack, ()),
    "dent": (dent, ()),
    "hole": (hole, ()),
    "stain": (stain, VIVID),
    "contamination": (contamination, VIVID),
    "missing part": (missing_part, ()),
    "fibre": (fibre, VIVID),
    "fold": (fold, ()),
    "solder": (solder, ("light grey", "white")),
    "misprint": (misprint, VIVID),
    "thread": (thread, VIVID),
}


def apply_defect(rng: Rng, canvas: Canvas, family: str, spot: Spot) -> tuple[np.ndarray, str]:
    """Draws a defect into `canvas`; returns its region (n, n) bool and its words ("red stain")."""
    draw, colours = DEFECTS[family]
    tint_name = str(rng.choice(colours)) if colours else ""
    tint = colour(rng, tint_name) if tint_name else np.zeros(3, np.float32)
    on_part = canvas.alpha > 0.5
    region = (draw(rng, canvas, spot, tint) > 0.3) & on_part
    return region, f"{tint_name} {family}".strip()
