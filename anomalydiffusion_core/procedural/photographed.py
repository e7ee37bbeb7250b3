"""Surfaces out of photographs: colours and grain that no drawn material has.

A folder holds one of pictures for each material, such as `fabric/003.webp`; its name is the word for the
material. The pictures show colour without light, as libraries of textures give them. Relief is read off their
shades, where dark is deep, and lit as that of drawn surfaces is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from ..dataset.photos import IMAGE_SUFFIXES, list_images, read_photo
from .materials import COLOURS, Surface
from .noise import Rng

SMALLEST_CUT = 0.5  # of a picture's shorter side
RELIEF = (0.0, 6.0)  # pixels of height between black and white
SLOW = 0.08  # of the picture's side: shades that change over more are colour, not relief
RIGID = {"metal", "plastic", "rubber", "wood", "paint", "rust", "diamondplate", "cork", "cardboard"}


@dataclass(frozen=True)
class Photographs:
    """The files of pictures by material."""

    files: dict[str, tuple[Path, ...]]

    @classmethod
    def of(cls, folder: Path) -> Photographs:
        """Those of a folder; ValueError where it holds none."""
        found = {
            material.name.replace("_", " "): tuple(list_images(material))
            for material in (sorted(folder.iterdir()) if folder.is_dir() else ())
            if material.is_dir()
        }
        found = {material: files for material, files in found.items() if files}
        if not found:
            raise ValueError(
                f"{folder} holds no pictures: give a folder with one of {', '.join(IMAGE_SUFFIXES)} files "
                "for each material."
            )
        return cls(found)

    @property
    def rigid(self) -> list[str]:
        """The materials that parts are made of."""
        return [material for material in self.files if material in RIGID]

    def choose(self, rng: Rng) -> str:
        """A material, those of many pictures more often: by the root of their number."""
        weights = np.sqrt([len(files) for files in self.files.values()])
        return str(rng.choice(list(self.files), p=weights / weights.sum()))

    def surface(self, rng: Rng, n: int, material: str) -> tuple[Surface, str]:
        """A cut of one of the material's pictures, turned and mirrored, n pixels square; and its colour in a
        word.
        """
        files = self.files[material]
        photo = read_photo(files[int(rng.integers(len(files)))])
        albedo = _cut(rng, Image.fromarray(np.ascontiguousarray(photo.pixels)), n)
        shade = albedo.mean(-1)
        relief = shade - gaussian_filter(shade, SLOW * n, mode="reflect")
        height = np.float32(rng.uniform(*RELIEF)) * relief
        return Surface(albedo, height, float(rng.uniform(0, 0.6))), nearest_colour(albedo)


def nearest_colour(albedo: np.ndarray) -> str:
    """The word for the mean colour of (n,n,3) in [0,1]."""
    mean = albedo.mean((0, 1))
    return min(COLOURS, key=lambda name: float(np.square(mean - np.asarray(COLOURS[name])).sum()))


def _cut(rng: Rng, picture: Image.Image, n: int) -> np.ndarray:
    """A random square of a picture in one of its eight orientations, (n,n,3) float32 in [0,1]; one that
    would have to be enlarged is mirrored at its edges instead.
    """
    side = int(min(picture.size) * rng.uniform(SMALLEST_CUT, 1))
    left, top = (int(rng.integers(length - side + 1)) for length in picture.size)
    square = picture.crop((left, top, left + side, top + side))
    repeats = max(1, n // (2 * side) * 2)
    square = square.resize((n // repeats, n // repeats), Image.Resampling.BICUBIC)
    pixels = np.rot90(np.asarray(square, np.float32) / 255, int(rng.integers(4)))
    pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    missing = n - len(pixels)
    return np.ascontiguousarray(np.pad(pixels, ((0, missing), (0, missing), (0, 0)), mode="symmetric"))
