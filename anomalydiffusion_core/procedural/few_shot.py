"""The demo's own few-shot dataset: materials the base has seen, with defect types that it has not.

Two categories in MVTec's layout: leather with burns and ink, brushed metal with rust and weld spatter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from ..dataset.photos import write_png
from .defects import Canvas, Spot
from .materials import MATERIALS, colour
from .noise import Rng, band, blob, stroke
from .scenes import light_and_photograph


def burn(rng: Rng, canvas: Canvas, spot: Spot) -> np.ndarray:
    """A charred spot inside a brown halo."""
    halo = blob(
        rng,
        canvas.n,
        spot.centre,
        spot.reach,
        roughness=0.12,
        aspect=rng.uniform(1, 1.3),
        angle=rng.uniform(0, np.pi),
        edge=spot.reach * 0.6,
    )
    core = blob(
        rng,
        canvas.n,
        spot.centre,
        spot.reach * 0.55,
        roughness=0.2,
        aspect=1.0,
        angle=0.0,
        edge=spot.reach * 0.2,
    )
    _tint(canvas, 0.75 * halo, np.array([0.30, 0.16, 0.06]))
    _tint(canvas, 0.95 * core, np.array([0.03, 0.03, 0.03]))
    return halo > 0.15


def ink(rng: Rng, canvas: Canvas, spot: Spot) -> np.ndarray:
    """A blue marker zigzag."""
    angle = rng.uniform(0, np.pi)
    points = [
        (
            spot.centre[1]
            + spot.reach * ((i - 2) * 0.45 * np.cos(angle) + (0.5 if i % 2 else -0.5) * np.sin(angle)),
            spot.centre[0]
            + spot.reach * ((i - 2) * 0.45 * np.sin(angle) - (0.5 if i % 2 else -0.5) * np.cos(angle)),
        )
        for i in range(5)
    ]
    line = stroke(canvas.n, [points], [canvas.n * rng.uniform(0.022, 0.032)])
    _tint(canvas, 0.85 * line, np.array([0.08, 0.12, 0.55]))
    return line > 0.3


def rust(rng: Rng, canvas: Canvas, spot: Spot) -> np.ndarray:
    """An orange-brown, mottled, pitted patch."""
    patch = blob(
        rng,
        canvas.n,
        spot.centre,
        spot.reach,
        roughness=0.45,
        aspect=rng.uniform(1, 1.8),
        angle=rng.uniform(0, np.pi),
        edge=spot.reach * 0.15,
    )
    mottle = band(rng, canvas.n, canvas.n / 24, 0.6)
    tint = np.array([0.50, 0.24, 0.08]) * (1 + 0.35 * mottle[..., None])
    _tint(canvas, 0.92 * patch, tint)
    canvas.surface.height = canvas.surface.height + 0.8 * mottle * patch
    return patch > 0.3


def weld_spatter(rng: Rng, canvas: Canvas, spot: Spot) -> np.ndarray:
    """A few bright beads, each with a dark heat ring."""
    region = np.zeros((canvas.n, canvas.n), bool)
    for _ in range(int(rng.integers(2, 5))):
        where = (
            spot.centre[0] + rng.normal() * spot.reach * 0.5,
            spot.centre[1] + rng.normal() * spot.reach * 0.5,
        )
        radius = canvas.n * rng.uniform(0.025, 0.04)
        ring = blob(rng, canvas.n, where, radius * 1.7, roughness=0.05, edge=radius * 0.6)
        bead = blob(rng, canvas.n, where, radius, roughness=0.08)
        _tint(canvas, 0.7 * ring, np.array([0.10, 0.09, 0.12]))
        _tint(canvas, 0.9 * bead, np.array([0.95, 0.93, 0.85]))
        canvas.surface.height = canvas.surface.height + gaussian_filter(bead, 1) * 2.5
        region |= ring > 0.15
    return region


def _tint(canvas: Canvas, alpha: np.ndarray, tint: np.ndarray) -> None:
    a = alpha[..., None]
    canvas.surface.albedo = (canvas.surface.albedo * (1 - a) + tint * a).astype(np.float32)


FewShotDefect = Callable[[Rng, Canvas, Spot], np.ndarray]
CATEGORIES: dict[str, tuple[str, str, dict[str, FewShotDefect]]] = {
    "leather": ("leather", "tan", {"burn": burn, "ink": ink}),
    "metal": ("brushed metal", "light grey", {"rust": rust, "weld_spatter": weld_spatter}),
}


def draw_pair(
    category: str, defect: str | None, index: int, size: int, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Photo (n,n,3) uint8 and mask (n,n) bool; `defect` None draws a good part."""
    material, tint_name, defects = CATEGORIES[category]
    number = 0 if defect is None else 1 + list(defects).index(defect)
    rng = np.random.default_rng((seed, list(CATEGORIES).index(category), number, index))
    draw, _ = MATERIALS[material]
    scale = (size / 128) ** 0.5
    canvas = Canvas(draw(rng, size, scale, colour(rng, tint_name, 0.02)), np.ones((size, size), np.float32))
    mask = np.zeros((size, size), bool)
    if defect is not None:
        reach = size * rng.uniform(0.10, 0.16)
        centre = (float(rng.uniform(0.2, 0.8) * size), float(rng.uniform(0.2, 0.8) * size))
        mask = defects[defect](rng, canvas, Spot(centre, reach))
    return light_and_photograph(rng, canvas, grey_cameras=0), mask


def write_few_shot_dataset(
    root: Path, size: int, pairs: int = 10, normals: int = 24, *, seed: int = 0, test_normals: int = 8
) -> None:
    """Writes the demo's dataset in MVTec's layout; files that exist already are left as they are."""
    for category, (_, _, defects) in CATEGORIES.items():
        folder = root / category
        for part, count, first in (("train", normals, 0), ("test", test_normals, normals)):
            for index in range(count):
                photo, _ = draw_pair(category, None, first + index, size, seed=seed)
                _write(folder / part / "good" / f"{index:03d}.png", photo)
        for defect in defects:
            for index in range(pairs):
                image, mask = draw_pair(category, defect, index, size, seed=seed)
                _write(folder / "test" / defect / f"{index:03d}.png", image)
                _write(
                    folder / "ground_truth" / defect / f"{index:03d}_mask.png", mask.astype(np.uint8) * 255
                )


def _write(path: Path, pixels: np.ndarray) -> None:
    if not path.exists():
        write_png(Image.fromarray(pixels), path)
