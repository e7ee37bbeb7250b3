"""A few pairs in a dataset, as tests of its writers and readers want them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from anomalydiffusion_core.dataset.photos import Photo, photo_of
from anomalydiffusion_core.export.mvtec import MVTecWriter
from anomalydiffusion_core.export.writer import ExportPair

MASK = np.zeros((6, 9), bool)
MASK[2:4, 3:7] = True


def pixels(shade: int) -> np.ndarray:
    return np.full((6, 9, 3), shade, np.uint8)


def write_pairs(
    root: Path, count: int, run: str = "r1", gray: bool = False, defect: str = "dent"
) -> list[dict[str, Any]]:
    writer = MVTecWriter(root)
    had = len(writer.rows)
    return [
        writer.write(
            ExportPair("bolt", Photo(pixels(had + i), gray), {defect: MASK}, {"run": run, "index": had + i})
        )
        for i in range(count)
    ]


def tree(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def write_mixed(root: Path, count: int) -> list[dict[str, Any]]:
    """Pairs of a dent and a crack that overlaps its right column."""
    crack = np.zeros_like(MASK)
    crack[0:3, 6:8] = True
    writer = MVTecWriter(root)
    photo = photo_of(np.full((6, 9), 40000, np.uint16))
    return [
        writer.write(ExportPair("bolt", photo, {"dent": MASK, "crack": crack}, {"run": "r1"}))
        for _ in range(count)
    ]
