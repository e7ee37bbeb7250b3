"""Masks as files: folders of them read, invented ones written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..dataset.photos import list_images, read_mask, write_png
from ..export.mvtec import DIGITS

OVERVIEW = "overview.png"
SHOWN = 10  # masks of each type in the overview
FRAME = 96  # grey level of the line around each


def read_mask_folder(folder: Path, category: str, defect: str) -> list[np.ndarray]:
    """Masks of one type: `<folder>/<category>/<defect>/*`, `<folder>/<defect>/*` or `<folder>/*`.

    Raises ValueError when there are none or one is unusable.
    """
    for candidate in (folder / category / defect, folder / defect, folder):
        paths = list_images(candidate)
        if paths:
            return [read_mask(path) for path in paths]
    raise ValueError(
        f"{folder} holds no masks for {category}/{defect}: expected {folder / category / defect}."
    )


def write_masks(masks: dict[str, list[np.ndarray]], out: Path) -> None:
    """Writes masks (S,S) bool by defect type as `<out>/<category>/<defect>/NNNNN_mask.png`, and one picture
    of the first of each.
    """
    pictures = {name: [mask.astype(np.uint8) * 255 for mask in group] for name, group in masks.items()}
    for name, group in pictures.items():
        for number, picture in enumerate(group):
            write_png(Image.fromarray(picture), out / name / f"{number:0{DIGITS}d}_mask.png")
    rows = [
        np.concatenate([np.pad(picture, 1, constant_values=FRAME) for picture in group[:SHOWN]], 1)
        for group in pictures.values()
    ]
    write_png(Image.fromarray(np.concatenate(rows)), out / OVERVIEW)
