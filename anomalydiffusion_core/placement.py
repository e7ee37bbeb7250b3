"""Where masks lie and how large they are, learned from the training masks; invented shapes are laid there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import label

from .dataset.augmentation import bounding_box
from .dataset.layout import Pair
from .dataset.views import read_pair
from .embeddings import AnomalyModel, Place
from .sampling import image_generator

MOVES = 64  # tries to bring a mask onto the object
SIZES = (0.8, 1.25)  # how much smaller or larger than a training mask an invented one is


def places_of(pairs: list[Pair], anywhere: bool) -> list[Place]:
    """One place per pair: the mask's own size and centre; `anywhere` (on a texture) without the centre."""
    places = []
    for _, mask in map(read_pair, pairs):
        height, width = mask.shape[-2:]
        top, bottom, left, right = bounding_box(mask)
        extent = max((bottom - top) / height, (right - left) / width)
        centre = ((top + bottom) / 2 / height, (left + right) / 2 / width)
        places.append(Place(extent, float(mask.float().mean()), None if anywhere else centre))
    return places


def place_mask(shape: np.ndarray, places: list[Place], size: int, generator: torch.Generator) -> np.ndarray:
    """Lays what is marked in `shape` (h,w) bool into a mask (size,size) bool, where a training mask was, give
    or take half its extent, and about as large: by length and by area at most a quarter longer.

    It keeps its proportions and lies wholly inside. Nothing marked gives an empty mask.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    mask = np.zeros((size, size), bool)
    if not shape.any():
        return mask
    place = places[int(torch.randint(len(places), (), generator=generator))]
    top, bottom, left, right = bounding_box(torch.from_numpy(shape)[None])
    by_extent = place.extent * size / max(bottom - top, right - left)
    by_area = place.area**0.5 * size / float(shape.sum()) ** 0.5
    scale = uniform(*SIZES) * min(by_extent, by_area)
    height, width = (max(1, min(size, round(scale * side))) for side in (bottom - top, right - left))
    free = size - np.array((height, width))
    if place.centre is None:
        corner = free * [uniform(0, 1), uniform(0, 1)]
    else:
        moved = [centre + place.extent * uniform(-0.5, 0.5) for centre in place.centre]
        corner = size * np.array(moved) - np.array((height, width)) / 2
    y, x = np.clip(np.rint(corner).astype(int), 0, free)
    mask[y : y + height, x : x + width] = _scaled(shape[top:bottom, left:right], (height, width))
    return mask


def _scaled(marked: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h,w) bool at another size: as many of the most covered pixels as keep its share, or more where thin
    parts would break.
    """
    picture = torch.from_numpy(marked.astype(np.float32))[None, None]
    covered = F.interpolate(picture, size, mode="bilinear", antialias=True)[0, 0].numpy()
    count = max(1, round(float(marked.mean()) * covered.size))
    least = max(float(np.partition(covered, -count, None)[-count]), 1e-6)
    for cut in (least, least / 2, least / 4):
        scaled = covered >= cut
        if _parts(scaled) <= _parts(marked):
            break
    return scaled


def _parts(marked: np.ndarray) -> int:
    return int(label(marked, structure=np.ones((3, 3)))[1])  # type: ignore[index]


PlaceMask = Callable[[np.ndarray, int], np.ndarray]  # shape (h,w) bool, number of the try -> mask (S,S) bool


def placing(model: AnomalyModel, defect_type: str, seed: int) -> PlaceMask:
    """How a type's shapes are placed; where the artifact knows no places, they stay as drawn."""
    places = model.mask_places.get(defect_type)
    if not places:
        return lambda shape, number: shape
    return lambda shape, number: place_mask(
        shape, places, model.image_size, image_generator(seed, number, f"{defect_type} places")
    )


def moved_onto(
    mask: np.ndarray, foreground: np.ndarray, share: float, generator: torch.Generator
) -> np.ndarray | None:
    """The mask (H,W) bool moved to a random place where at least `share` of it lies on the foreground (H,W)
    bool, or None where none of some tries does. It stays wholly inside.
    """
    top, bottom, left, right = bounding_box(torch.from_numpy(mask)[None])
    shape, (height, width) = mask[top:bottom, left:right], mask.shape
    candidates = np.flatnonzero(foreground)
    for _ in range(MOVES if candidates.size else 0):
        centre = candidates[int(torch.randint(len(candidates), (), generator=generator))]
        y = min(max(0, centre // width - shape.shape[0] // 2), height - shape.shape[0])
        x = min(max(0, centre % width - shape.shape[1] // 2), width - shape.shape[1])
        box = np.s_[y : y + shape.shape[0], x : x + shape.shape[1]]
        if foreground[box][shape].mean() >= share:
            moved = np.zeros_like(mask)
            moved[box] = shape
            return moved
    return None
