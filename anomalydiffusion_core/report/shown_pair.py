"""A pair as a page shows it: the defect with its surroundings enlarged, and the whole photo."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from scipy.ndimage import binary_dilation, gaussian_filter

from ..dataset.layout import picture_file
from ..dataset.photos import Photo, read_mask, read_photo
from ..dataset.windows import Box
from ..gate.fidelity import MaskFidelity, mask_fidelity
from ..gate.scores import change

TILE = 208  # pixels per side of each picture in a strip
CONTEXT = 1.5  # a close-up is so many times as long as its defect
LEAST = TILE // 4  # pixels of the photo that a close-up shows at least: it enlarges by 4 at most
DETAIL = TILE // 3  # and that a detail shows: it enlarges by 3
GAP = 4  # pixels between them
OUTLINE = (255, 0, 200)  # a colour that hardly a surface has
WHOLE = 480  # longer side of a whole photo
CLOSE_QUALITY, WHOLE_QUALITY = 82, 60  # of JPEG, which is written ten times as fast as WebP of the same size


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

    def tiles(self, box: Box) -> list[np.ndarray]:
        """Three (TILE,TILE,3) uint8 of what lies in `box`: before, with the mask outlined, after."""
        before, after = tile(self.normal.pixels[box]), tile(self.photo.pixels[box])
        return [before, outlined(after, self.mask[box]), after]

    def fidelity(self) -> MaskFidelity:
        """How exactly the mask says what changed in the close-up."""
        box = self.close_up()
        return mask_fidelity(self.normal.levels()[box], self.photo.levels()[box], self.mask[box])

    def close_up(self) -> Box:
        """A square around the whole mask."""
        return around(self.mask)

    def detail(self) -> Box | None:
        """The square of DETAIL pixels inside the mask that changed most, where the close-up enlarges less
        than twice; else None.
        """
        box = self.close_up()
        if max(s.stop - s.start for s in box) <= TILE // 2:
            return None
        marked = change(self.normal.pixels[box], self.photo.pixels[box]) * self.mask[box]
        most = np.unravel_index(gaussian_filter(marked, DETAIL / 4, mode="constant").argmax(), marked.shape)
        rows, columns = (int(at) + s.start for at, s in zip(most, box, strict=True))
        return square((rows, columns), DETAIL, self.mask.shape)

    def whole(self) -> Image.Image:
        """The photo with the defect, its longer side WHOLE pixels at most."""
        image = Image.fromarray(self.photo.pixels)
        image.thumbnail((WHOLE, WHOLE), Image.Resampling.LANCZOS)
        return image

    def place(self) -> list[float]:
        """Where the close-up lies in the photo: left, top, width and height in shares of it."""
        (rows, columns), (height, width) = self.close_up(), self.mask.shape
        return [
            round(share, 4)
            for share in (
                columns.start / width,
                rows.start / height,
                (columns.stop - columns.start) / width,
                (rows.stop - rows.start) / height,
            )
        ]


def pair_reader(root: Path) -> Callable[[dict[str, Any], Path, Path], ShownPair]:
    """Reads the pairs of manifest rows, whose normal photos are named from `root`, from their own files.

    Raises ValueError naming a file that cannot be read, that lies elsewhere, or whose size differs.
    """
    read_normal = lru_cache(maxsize=4)(read_photo)  # pairs in a row are often made on the same photo

    def read(row: dict[str, Any], image: Path, mask: Path) -> ShownPair:
        normal = read_normal(picture_file(root, row["normal"]))
        photo = read_photo(image, normal.white)
        if photo.size != normal.size:
            raise ValueError(f"{image} has another size than {root / row['normal']}, on which it was made.")
        return ShownPair(normal, photo, read_mask(mask, photo.size))

    return read


def around(mask: np.ndarray) -> Box:
    """A square of LEAST pixels or more around what mask (H,W) bool marks, CONTEXT times as long, cut to the
    photo.
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    extent = 1 + int(max(rows[-1] - rows[0], columns[-1] - columns[0]))
    middle = int(rows[0] + rows[-1] + 1) // 2, int(columns[0] + columns[-1] + 1) // 2
    return square(middle, max(LEAST, round(CONTEXT * extent)), mask.shape)


def square(middle: tuple[int, int], side: int, size: tuple[int, ...]) -> Box:
    """The square around a place of a photo of `size` (H,W), moved inside it, and cut where it is too long."""
    starts = [max(0, min(at - side // 2, length - side)) for at, length in zip(middle, size, strict=True)]
    rows, columns = (slice(s, min(s + side, length)) for s, length in zip(starts, size, strict=True))
    return rows, columns


def tile(pixels: np.ndarray) -> np.ndarray:
    """(h,w,3) uint8 -> (TILE,TILE,3), its shape kept, with grey bars where it is not square."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(ImageOps.pad(image, (TILE, TILE), Image.Resampling.BICUBIC, color=(128, 128, 128)))


def outlined(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A tile (TILE,TILE,3) with the outline of mask (h,w) bool around what it marks; a thin mark keeps its
    pixels.
    """
    enlarges = max(mask.shape) <= TILE
    resampling = Image.Resampling.NEAREST if enlarges else Image.Resampling.BOX
    marked = np.asarray(ImageOps.pad(Image.fromarray(mask.astype(np.uint8) * 255), (TILE, TILE), resampling))
    inside = marked > 0
    ring = np.logical_and(binary_dilation(inside, np.ones((3, 3)), 2), ~inside)
    return np.where(ring[..., None], np.array(OUTLINE, np.uint8), picture)


def strip(tiles: list[np.ndarray]) -> Image.Image:
    """Tiles side by side, a little apart."""
    apart = [np.pad(tile, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for tile in tiles]
    return Image.fromarray(np.concatenate(apart, axis=1)[:, :-GAP])


def jpeg(image: Image.Image, quality: int = CLOSE_QUALITY) -> bytes:
    """A picture as the bytes of a JPEG file, its colours as sharp as its greys."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, subsampling=0 if quality == CLOSE_QUALITY else 2)
    return buffer.getvalue()
