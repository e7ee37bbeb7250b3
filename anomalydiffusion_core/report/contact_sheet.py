"""Contact sheets of pairs: normal photo, mask, generated photo and what changed, one column per pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..dataset.photos import Photo, read_mask, read_photo
from ..dataset.windows import Box
from ..gate.scores import change

THUMBNAIL = 128  # pixels
CLOSE_UP = 4 * THUMBNAIL  # photos with a longer side than this are shown around their defect


@dataclass(frozen=True)
class ShownPair:
    """A pair and the normal photo it was made on, as their files hold them."""

    normal: Photo
    photo: Photo
    mask: np.ndarray  # (H,W) bool

    def changed_outside(self) -> int:
        """How many pixels outside the mask differ, at the files' own depth where both have the same."""
        before, after = self.normal.samples, self.photo.samples
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            before, after = self.normal.pixels, self.photo.pixels
        differs = before != after
        return int((differs.any(-1) if differs.ndim == 3 else differs)[~self.mask].sum())

    def column(self) -> np.ndarray:
        """(4T,T,3) uint8, T being THUMBNAIL and a pixel of border on each side: the four tiles."""
        box = close_up(self.mask) if max(self.mask.shape) > CLOSE_UP else np.s_[:, :]
        normal, image = self.normal.pixels[box], self.photo.pixels[box]
        amplified = np.clip(change(normal, image) * 2, 0, 255).astype(np.uint8)
        tiles = [normal, self.mask[box].astype(np.uint8) * 255, image, amplified]
        return np.concatenate([_thumbnail(tile) for tile in tiles])


def read_shown(root: Path, row: dict[str, Any], image: Path, mask: Path) -> ShownPair:
    """The pair of a manifest row, whose normal photo is named from `root`.

    Raises ValueError naming a file that cannot be read, or whose size differs.
    """
    normal = read_photo(root / row["normal"])
    photo = read_photo(image, normal.white)
    if photo.size != normal.size:
        raise ValueError(f"{image} has another size than {root / row['normal']}, on which it was made.")
    return ShownPair(normal, photo, read_mask(mask, photo.size))


def close_up(mask: np.ndarray) -> Box:
    """A square of THUMBNAIL to CLOSE_UP pixels around what mask (H,W) marks, twice as long, cut to the photo.

    Of what is longer than CLOSE_UP, it shows the middle.
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    extent = 1 + max(rows[-1] - rows[0], columns[-1] - columns[0])
    side = int(np.clip(2 * extent, THUMBNAIL, CLOSE_UP))
    middle = np.array([rows[0] + rows[-1], columns[0] + columns[-1]]) // 2
    if extent > side:  # the middle of a bent or scattered defect may lie off it
        marked = np.argwhere(mask)
        middle = marked[np.abs(marked - middle).sum(-1).argmin()]
    starts = [
        max(0, min(int(at) - side // 2, length - side)) for at, length in zip(middle, mask.shape, strict=True)
    ]
    return np.s_[starts[0] : starts[0] + side, starts[1] : starts[1] + side]


def sheet(columns: list[np.ndarray]) -> Image.Image:
    """Columns side by side."""
    return Image.fromarray(np.concatenate(columns, axis=1))


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    image = ImageOps.pad(
        Image.fromarray(pixels).convert("RGB"), (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS
    )
    return np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0)))
