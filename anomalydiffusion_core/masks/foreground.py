"""Where the object is, in photos with a plain ground: what differs in colour from that ground."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes, gaussian_filter, label

from ..dataset.photos import read_photo

SEPARATION = 3.5  # an object differs from its ground by so many times as that varies; by chance it is under 3
LEAST_DIFFERENCE = 24.0  # grey levels
ACROSS_FRAME = 0.2  # share of the border from which on the object runs across the frame
ONE_PIECE = 0.8  # share of such a foreground that must hang together: an object, not a texture's pattern
LEAST_OBJECT = 0.01  # share of the photo
SPECK = 0.02  # share of the largest piece of a foreground below which another is dust
LONGEST = 512  # pixels per side at which objects are looked for, at most
GROUND_PHOTOS = 16  # that a category's ground is read from, at most


FindObject = Callable[[np.ndarray], np.ndarray]  # photo (H,W,3) uint8 -> foreground (H,W) bool


@dataclass(frozen=True)
class Ground:
    """The plain ground that a category's photos have in common."""

    colour: np.ndarray  # (3,) in grey levels
    cut: float  # grey levels by which the object differs from it, at least


def plain_ground(photos: Iterable[np.ndarray]) -> Ground | None:
    """Photos of one category, each (H,W,3) uint8 -> their ground; None where they are full-frame textures.

    The ground's colour is where the borders' pixels are densest, so that an object which runs across the
    frame does not mislead; the cut between ground and object is Otsu's (1979) over all photos. Most photos
    must show an object.
    """
    smoothed = [_smooth(reduced(pixels)) for pixels in photos]
    if not smoothed:
        return None
    colour, spread = _densest_half(np.concatenate([_border(picture) for picture in smoothed]))
    distances = [_distance(picture, colour) for picture in smoothed]
    cut = otsu_threshold(np.concatenate([distance.ravel() for distance in distances]))
    least = max(LEAST_DIFFERENCE, SEPARATION * spread)
    objects = sum(_is_object(distance, cut, least) for distance in distances)
    return Ground(colour, cut) if 2 * objects > len(distances) else None


def ground_of(photos: Sequence[Path]) -> Ground | None:
    """The plain ground of a category's photos, spread over the whole list."""
    step = max(1, -(-len(photos) // GROUND_PHOTOS))
    return plain_ground(read_photo(path).pixels for path in photos[::step])


def object_finder(photos: Sequence[Path]) -> FindObject | None:
    """How the object is found in a category's photos; None where they are full-frame textures."""
    ground = ground_of(photos)
    return partial(object_foreground, ground=ground) if ground else None


def object_foreground(pixels: np.ndarray, ground: Ground) -> np.ndarray:
    """(H,W,3) uint8 -> (H,W) bool, True on the object and its holes, not on dust; a photo may show none, or
    nothing else. A cast shadow as dark as the object counts as object.
    """
    distance = _distance(_smooth(reduced(pixels)), ground.colour)
    foreground = without_specks(np.asarray(binary_fill_holes(distance > ground.cut)), SPECK)
    return enlarged(foreground, pixels.shape[:2])


def reduced(pixels: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 averaged to at most LONGEST pixels per side, by a whole factor."""
    return np.asarray(Image.fromarray(pixels).reduce(_factor(pixels.shape)))


def enlarged(foreground: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The foreground (h,w) bool of a reduced photo at the photo's size (H,W), with smooth outlines."""
    height, width = size[:2]
    factor = _factor(size)
    picture = Image.fromarray(foreground.astype(np.uint8) * 255)
    box = (0, 0, width / factor, height / factor)
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box)) > 127


def without_specks(mask: np.ndarray, share: float) -> np.ndarray:
    """(H,W) bool less the components smaller than `share` of the largest."""
    labels = np.asarray(label(mask, structure=np.ones((3, 3)))[0])  # type: ignore[index]
    if labels.max() < 2:
        return mask
    sizes = np.bincount(labels.ravel())[1:]
    return np.isin(labels, 1 + np.flatnonzero(sizes >= share * sizes.max()))


def otsu_threshold(values: np.ndarray, bins: int = 256) -> float:
    """The cut of values (any shape) that maximises the variance between the two classes."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = (np.sum(counts * centres) - np.cumsum(counts * centres)) / np.maximum(above, 1)
    return float(centres[np.argmax(below * above * (mean_below - mean_above) ** 2)])


def _is_object(distance: np.ndarray, cut: float, least: float) -> bool:
    foreground = np.asarray(binary_fill_holes(distance > cut))
    if foreground.mean() < LEAST_OBJECT or distance[foreground].mean() < least:
        return False
    if _border(foreground).mean() < ACROSS_FRAME:
        return True
    pieces = np.asarray(label(foreground)[0])  # type: ignore[index]
    return bool(np.bincount(pieces[foreground]).max() >= ONE_PIECE * foreground.sum())


def _factor(size: tuple[int, ...]) -> int:
    return -(-max(size[:2]) // LONGEST)


def _smooth(pixels: np.ndarray) -> np.ndarray:
    return gaussian_filter(pixels.astype(np.float32), (*(2 * [max(pixels.shape) / 256]), 0))


def _border(picture: np.ndarray) -> np.ndarray:
    return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])


def _distance(picture: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return np.abs(picture - colour).max(-1)


def _densest_half(colours: np.ndarray) -> tuple[np.ndarray, float]:
    """(N,3) -> the middle (3,) of the shortest range that holds half of each channel, and half its length:
    Rousseeuw's (1984) least median of squares.
    """
    ordered = np.sort(colours, 0)
    half = (len(ordered) + 1) // 2
    lengths = ordered[half - 1 :] - ordered[: len(ordered) - half + 1]
    first = lengths.argmin(0)
    low, length = (np.take_along_axis(values, first[None], 0)[0] for values in (ordered, lengths))
    return low + length / 2, float(length.max()) / 2
