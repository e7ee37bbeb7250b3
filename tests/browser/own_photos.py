"""A user's own dataset, drawn here: a brushed panel with dark spots and scratches, in MVTec's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NORMALS, TEST_NORMALS, PAIRS = 4, 2, 4  # photos without a defect, those that only measure, pairs of each type
CATEGORY, DEFECTS = "panel", ("scratch", "spot")


def write_own_photos(root: Path, size: tuple[int, int], mode: str) -> None:
    """Photos of `size` (width, height) in a mode of Pillow, "RGB" or "L"."""
    rng = np.random.default_rng(0)
    category = root / CATEGORY
    for part, count in (("train", NORMALS), ("test", TEST_NORMALS)):
        for i in range(count):
            _save(_surface(rng, size), mode, category / part / "good" / f"{i:03}.png")
    for defect in DEFECTS:
        for i in range(PAIRS):
            mask = _mask(rng, size, defect)
            photo = np.where(np.asarray(mask) > 0, 0.25, 1.0)[..., None] * _surface(rng, size)
            _save(photo, mode, category / "test" / defect / f"{i:03}.png")
            target = category / "ground_truth" / defect / f"{i:03}_mask.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            mask.save(target)


def _surface(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Brushed along the rows: (H,W,3) in [0,255]."""
    width, height = size
    stripes = rng.normal(0, 12, (height, 1, 1)) + rng.normal(0, 6, (height, width, 1))
    return np.clip(np.array([170, 150, 120]) + stripes, 0, 255)


def _mask(rng: np.random.Generator, size: tuple[int, int], defect: str) -> Image.Image:
    mask = Image.new("L", size)
    x, y = (int(rng.uniform(0.3, 0.7) * n) for n in size)
    reach = int(min(size) * rng.uniform(0.1, 0.2))
    if defect == "spot":
        ImageDraw.Draw(mask).ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
    else:
        ImageDraw.Draw(mask).line(
            (x - reach, y - reach, x + reach, y + reach // 2), fill=255, width=reach // 4
        )
    return mask


def _save(photo: np.ndarray, mode: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo.astype(np.uint8)).convert(mode).save(path)
