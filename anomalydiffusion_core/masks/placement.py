"""Where masks lie and how large they are, learned from the training masks; shapes are laid there, by the
frame of the photo or of the object in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch

from ..dataset.augmentation import MAX_ROTATION, box_of
from ..dataset.layout import Pair
from ..dataset.views import read_pair
from ..method.embeddings import Learned, Placement, Pose
from ..method.sampling import image_generator
from .edges import run_off, touched_sides
from .foreground import FindObject, object_foreground, plain_ground
from .object_frame import frame_of, object_frame
from .resizing import cut_out, fit_mask, scaled, turned

MOVES = 64  # tries to bring a mask onto the object
POSES, SHIFTS = 16, 8  # tries to lay a shape as a training mask lay on the object: poses, and places of each
SIZES = (0.8, 1.25)  # how much smaller or larger than a training mask an invented one is
OVERHANG = 0.1  # by this share of its area a mask may hang further over the object than a training mask
CANDIDATES = 2048  # pixels per side of the grid of places where a mask may be moved, at most

PlacementMode = Literal["learned", "free"]
ON_OBJECT = 0.9  # share of a mask that must lie on the object


def placements_of(pairs: list[Pair], find_object: FindObject | None) -> list[Placement]:
    """One placement per pair: the mask's size, its centre in the photo, and how it lies on the object found.

    Without `find_object` (on a texture) masks may lie anywhere: no centre.
    """
    return [
        placement_of(mask[0].numpy() > 0, find_object(photo.pixels) if find_object else None)
        for photo, mask in map(read_pair, pairs)
    ]


def placement_of(mask: np.ndarray, foreground: np.ndarray | None) -> Placement:
    """The placement of a mask (H,W) bool in a photo whose object is `foreground` (H,W) bool; None for a
    texture.
    """
    height, width = mask.shape
    top, bottom, left, right = box_of(mask)
    extent, area = max((bottom - top) / height, (right - left) / width), float(mask.mean())
    sides = tuple(touched_sides(mask))
    if foreground is None:
        return Placement(extent, area, None, sides=sides)
    centre = ((top + bottom) / 2 / height, (left + right) / 2 / width)
    frame = object_frame(foreground)
    if frame is None:
        return Placement(extent, area, centre, sides=sides)
    mask_frame = frame_of(mask)
    along, across = frame.coordinates(mask_frame.centre).tolist()
    direction = None if mask_frame.round else frame.angle(mask_frame.axes[0])
    length = 2 * float(mask_frame.half[0]) / mask.size**0.5
    return Placement(
        extent, area, centre, float(foreground[mask].mean()), Pose((along, across), direction, length), sides
    )


def needed_share(share: float, placements: Sequence[Placement]) -> float:
    """The share of a mask that must lie on the object: `share`, or a little less than the least of the
    training masks', where they overhang it.
    """
    return max(
        0.0,
        min(
            [share, *(placement.on_object - OVERHANG for placement in placements if placement.on_object < 1)]
        ),
    )


def lay(
    shape: np.ndarray,
    placements: Sequence[Placement],
    foreground: np.ndarray | None,
    size: tuple[int, int],
    *,
    generator: torch.Generator,
    share: float = ON_OBJECT,
    mode: PlacementMode = "learned",
) -> np.ndarray | None:
    """Lays what is marked in `shape` (h,w) bool onto a photo of `size` (H,W): a mask (H,W) bool, wholly
    inside.

    `learned`: it gets the size of a training mask and lies as that lay on its object, wherever and however
    turned the object is, give or take half the mask's own extent and 20 degrees. Where that fails or is not
    known, it lies where the training mask was in the photo, or, off the object, at a random place on it.
    `free`: as large as a training mask, turned anyhow, at a random place, on the object where there is one.
    Without `placements` the shape is taken for the whole photo's: it keeps its size and, where that is on the
    object, its place.

    `foreground` (H,W) bool is the photo's object, None for a texture, on which anywhere will do. At least
    `needed_share(share, placements)` of the mask lies on the object. None where that is impossible: the photo
    shows no object (`not foreground.any()`), or none of the tries brought the mask onto it. Where nothing is
    marked the mask is empty.
    """
    if not shape.any():
        return np.zeros(size, bool)
    if foreground is not None and not foreground.any():
        return None
    if mode == "free":
        return _lay_freely(shape, placements, foreground, size, generator, share)
    if foreground is not None:
        posed = _lay_as_posed(shape, [p for p in placements if p.pose], foreground, generator, share)
        if posed is not None:
            return posed
    mask = place_mask(shape, placements, size, generator) if placements else fit_mask(shape, size)
    least = needed_share(share, placements)
    if foreground is None or foreground[mask].mean() >= least:
        return mask
    return moved_onto(mask, foreground, least, generator)


def lay_on_photos(
    shapes: Sequence[np.ndarray],
    photos: Sequence[np.ndarray],
    placements: Sequence[Placement],
    seed: int,
    *,
    defect_type: str,
    mode: PlacementMode = "learned",
) -> list[np.ndarray]:
    """Shapes (h,w) bool laid on photos (H,W,3) uint8 of one category, which are taken in turn; a single shape
    serves all photos.

    Raises ValueError where the numbers do not fit, or a shape finds no place on its photo's object.
    """
    count = max(len(shapes), len(photos))
    if len(shapes) not in (1, count):
        raise ValueError(
            f"There are {len(shapes)} masks for {len(photos)} photos: give one for each, or one for all."
        )
    ground = plain_ground(photos)
    foregrounds = [object_foreground(pixels, ground) if ground else None for pixels in photos]
    masks = []
    for number in range(count):
        foreground = foregrounds[number % len(photos)]
        generator = image_generator(seed, number, f"{defect_type} places")
        shape, size = shapes[number % len(shapes)], photos[number % len(photos)].shape[:2]
        mask = lay(shape, placements, foreground, size, generator=generator, mode=mode)
        if mask is None:
            shown = foreground is not None and foreground.any()
            reason = "no place on the object was found for it" if shown else "the photo shows no object"
            raise ValueError(f"Mask {number + 1} was not placed, since {reason}: leave that photo out.")
        masks.append(mask)
    return masks


def _lay_as_posed(
    shape: np.ndarray,
    placements: Sequence[Placement],
    foreground: np.ndarray,
    generator: torch.Generator,
    share: float,
) -> np.ndarray | None:
    frame = object_frame(foreground) if placements else None
    if frame is None:
        return None
    marked = cut_out(shape)
    shape_frame = frame_of(marked)
    for _ in range(POSES):
        placement = placements[_pick(len(placements), generator)]
        assert placement.pose
        here, least = frame.resolved(generator), needed_share(share, [placement])
        degrees = _uniform(generator, 0, 360)
        if placement.pose.direction is not None and not shape_frame.round:
            either_way = 180 * (degrees > 180)
            there = _degrees(here.direction(placement.pose.direction))
            degrees = there - _degrees(shape_frame.axes[0]) + either_way
            degrees += _uniform(generator, -MAX_ROTATION, MAX_ROTATION)
        piece = turned(
            marked, degrees, _uniform(generator, *SIZES) * _scale(marked, placement, foreground.shape)
        )
        centre, spread = here.point(np.array(placement.pose.centre)), frame_of(piece)
        for _ in range(SHIFTS):
            shift = torch.rand(2, generator=generator).numpy() - 0.5
            corner = centre + (shift * spread.half) @ spread.axes - spread.centre
            mask = _laid_at(piece, corner, foreground, least)
            if mask is not None:
                return mask
    return None


def _lay_freely(
    shape: np.ndarray,
    placements: Sequence[Placement],
    foreground: np.ndarray | None,
    size: tuple[int, int],
    generator: torch.Generator,
    share: float,
) -> np.ndarray | None:
    placement = placements[_pick(len(placements), generator)] if placements else placement_of(shape, None)
    marked, least = cut_out(shape), needed_share(share, placements)
    scale = _uniform(generator, *SIZES) * _scale(marked, placement, size)
    for _ in range(POSES):
        piece = turned(marked, _uniform(generator, 0, 360), scale)
        if foreground is None:
            corner = (np.array(size) - piece.shape) * torch.rand(2, generator=generator).numpy()
            mask = _laid_at(piece, corner, np.ones(size, bool), 0)
        else:
            mask = _on_foreground(piece, foreground, least, generator, SHIFTS)
        if mask is not None:
            return mask
    return None


def place_mask(
    shape: np.ndarray, placements: Sequence[Placement], size: tuple[int, int], generator: torch.Generator
) -> np.ndarray:
    """Lays what is marked in `shape` (h,w) bool into a mask of `size` (H,W) bool, where a training mask was,
    give or take half its extent, and about as large: by length and by area at most a quarter longer.

    It keeps its proportions and lies wholly inside, or runs into a side of the photo that the training mask
    ran into. Nothing marked gives an empty mask.
    """
    mask = np.zeros(size, bool)
    if not shape.any():
        return mask
    placement = placements[_pick(len(placements), generator)]
    marked = cut_out(shape)
    largest = min(whole / side for whole, side in zip(size, marked.shape, strict=True))
    scale = min(largest, _uniform(generator, *SIZES) * _scale(marked, placement, size))
    height, width = (max(1, round(scale * side)) for side in marked.shape)
    free = np.array(size) - (height, width)
    if placement.centre is None:
        corner = free * [_uniform(generator, 0, 1), _uniform(generator, 0, 1)]
    else:
        moved = [centre + placement.extent * _uniform(generator, -0.5, 0.5) for centre in placement.centre]
        corner = size * np.array(moved) - np.array((height, width)) / 2
    y, x = np.clip(np.rint(corner).astype(int), 0, free)
    mask[y : y + height, x : x + width] = scaled(marked, (height, width))
    return run_off(mask, placement.sides[0], generator) if placement.sides else mask


def _scale(marked: np.ndarray, placement: Placement, size: tuple[int, ...]) -> float:
    """How much larger (h,w) bool becomes in a photo of `size`: no longer and no larger than placed there."""
    pixels = size[0] * size[1]
    by_area = (placement.area * pixels / float(marked.sum())) ** 0.5
    if placement.pose:
        return min(by_area, placement.pose.length * pixels**0.5 / (2 * float(frame_of(marked).half[0])))
    return min(
        by_area, *(placement.extent * whole / side for whole, side in zip(size, marked.shape, strict=True))
    )


def _degrees(direction: np.ndarray) -> float:
    """Of a direction (y, x), counter-clockwise as one sees it."""
    return float(np.degrees(np.arctan2(-direction[0], direction[1])))


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _pick(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


Placer = Callable[[np.ndarray, int], np.ndarray]  # shape (h,w) bool, number of the try -> mask (S,S) bool


def placer_of(learned: Learned, defect_type: str, seed: int) -> Placer:
    """How a type's shapes are placed where no photo is at hand; where the artifact knows no places, they stay
    where they are.
    """
    placements, size = learned.mask_placements.get(defect_type), (learned.image_size, learned.image_size)
    if not placements:
        return lambda shape, number: shape
    return lambda shape, number: place_mask(
        shape, placements, size, image_generator(seed, number, f"{defect_type} places")
    )


def moved_onto(
    mask: np.ndarray, foreground: np.ndarray, share: float, generator: torch.Generator
) -> np.ndarray | None:
    """The mask (H,W) bool moved to a random place where at least `share` of it lies on the foreground (H,W)
    bool, or None where none of some tries does. It stays wholly inside.
    """
    return _on_foreground(cut_out(mask), foreground, share, generator, MOVES)


def _on_foreground(
    piece: np.ndarray, foreground: np.ndarray, share: float, generator: torch.Generator, tries: int
) -> np.ndarray | None:
    step = -(-max(foreground.shape) // CANDIDATES)
    grid = foreground[::step, ::step]
    candidates = np.flatnonzero(grid)
    for _ in range(tries if candidates.size else 0):
        centre = divmod(int(candidates[_pick(len(candidates), generator)]), grid.shape[1])
        corner = step * np.array(centre) - np.array(piece.shape) // 2
        mask = _laid_at(piece, corner, foreground, share)
        if mask is not None:
            return mask
    return None


def _laid_at(
    piece: np.ndarray, corner: np.ndarray, foreground: np.ndarray, share: float
) -> np.ndarray | None:
    """The mask (H,W) with `piece` (h,w) bool at `corner` (y, x), or as near as it lies wholly inside; None
    where it cannot, or less than `share` of it lies on the foreground (H,W).
    """
    free = np.array(foreground.shape) - piece.shape
    if free.min() < 0:
        return None
    y, x = np.clip(np.rint(corner).astype(int), 0, free)
    box = np.s_[y : y + piece.shape[0], x : x + piece.shape[1]]
    if foreground[box][piece].mean() < share:
        return None
    mask = np.zeros_like(foreground)
    mask[box] = piece
    return mask
