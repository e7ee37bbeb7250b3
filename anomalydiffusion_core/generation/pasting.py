"""Real defects laid into masks on normal photos: what denoising starts from, so that a pair keeps how the
defect looks, and seam, light and texture become the photo's own (SDEdit, Meng et al., 2022).

A mask need not have the real defect's shape. Each of its pixels takes the difference to the ground from the
place in the real photo that lies alike: as far along and across the defect's principal axes, and as deep
inside it. Places are interpolated, not colours, so that grain and edges stay as sharp as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from scipy.spatial import KDTree
from torch import Tensor

from ..gate.region_view import RegionView
from ..gate.scores import filled_in, surroundings
from ..gate.shape import distance_inside, shape_distance, shape_of
from ..masks.object_frame import Frame, frame_of

NEIGHBOURS = 9  # real pixels that a place is interpolated from, the farthest with no weight
PLACE = 9  # pixels of the canvas, odd: over how many the contrast of a change is compared
LIKELY = 0.5  # of a type's real defects, those whose shape is most like a mask's: one of these fills it
FEWEST = 3  # such defects, else each mask would always get the same one


@dataclass(frozen=True)
class RealDefect:
    """A real defect's N pixels: their `places` (N,2), row and column, where these lie in its frame (N,2), and
    how deep inside it (N,), 1 at the deepest; and the `difference` (S,S,3) to the ground around it, in grey
    levels, outside the mask that of the nearest pixel inside. `photo` is the short hash of its photo, `shape`
    that of its mask (`gate.shape`).
    """

    photo: str
    shape: np.ndarray
    places: np.ndarray
    coordinates: np.ndarray
    depth: np.ndarray
    difference: np.ndarray

    @classmethod
    def of(cls, view: RegionView, photo: str) -> RealDefect:
        """What is marked in a view, of which something must be."""
        frame = frame_of(view.mask)
        difference = (filled_in(view.pixels, ~view.mask) - _ground(view.pixels, view.mask)).astype(np.float32)
        coordinates, places = _coordinates(view.mask, frame), np.argwhere(view.mask)
        return cls(photo, shape_of(view.mask), places, coordinates, _depth(view.mask), difference)


def choose_defect(
    defects: list[RealDefect], mask: np.ndarray, generator: torch.Generator, *, masked_by: str | None = None
) -> int:
    """The number of a real defect for mask (h,w) bool, at random among those whose shape is most like it; of
    another photo than that whose mask it is (`masked_by`, its short hash), where there is one, lest it fills
    its own form again.
    """
    shape = shape_of(mask)
    others = [number for number, defect in enumerate(defects) if defect.photo != masked_by]
    numbers = others or range(len(defects))
    ranked = sorted(numbers, key=lambda number: shape_distance(defects[number].shape, shape))
    likely = ranked[: max(FEWEST, int(np.ceil(LIKELY * len(ranked))))]
    return likely[int(torch.randint(len(likely), (), generator=generator))]


def pasted(
    pixels: np.ndarray,
    mask: np.ndarray,
    defect: RealDefect,
    generator: torch.Generator,
    contrast: float = 1.0,
) -> np.ndarray:
    """A photo's pixels (S,S,3) in [0,255] with the defect in mask (S,S) bool, float32: `contrast` times as
    much darker or brighter than the ground as it was in its own photo, whatever ground that was.
    """
    there = frame_of(mask).resolved(generator)  # ends that the form does not tell apart, either way
    reach = there.half.mean()
    query = _features(_coordinates(mask, there), _depth(mask), there.half, reach)
    known = _features(defect.coordinates, defect.depth, there.half, reach)
    count = min(NEIGHBOURS, len(known))
    distances, nearest = KDTree(known).query(query, k=count)
    weights = _weights(np.asarray(distances).reshape(-1, count))
    places = (weights[..., None] * defect.places[nearest.reshape(-1, count)]).sum(1)
    laid = pixels.astype(np.float32).copy()
    laid[mask] = _ground(pixels, mask) + np.float32(contrast) * _sampled(defect.difference, places)
    return laid.clip(0, 255)


def _sampled(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A picture (S,S,3) at places (N,2) between its pixels, (N,3)."""
    channels = np.moveaxis(picture, -1, 0)
    return np.stack([map_coordinates(channel, places.T, order=1, mode="nearest") for channel in channels], 1)


def _weights(distances: np.ndarray) -> np.ndarray:
    """Of neighbours (N,k) in order of their distances, by inverse distance, down to none at the farthest
    (Franke and Nielson, 1980): where several are equally far, it does not matter which come first.
    """
    farthest = distances[:, -1:] + 1e-3
    weights = ((farthest - distances) / (farthest * (distances + 1e-3))) ** 2
    return weights / weights.sum(1, keepdims=True)


def contrast_kept(
    generated: Tensor, reconstruction: Tensor, start: Tensor, photo: Tensor, mask: Tensor, *, share: float
) -> Tensor:
    """Decoded images (B,3,S,S) whose change in masks (B,1,S,S) gets back, place by place, a `share` of the
    contrast that it lost against what it was denoised from: autoencoder and denoising fade what is thin.

    `reconstruction` is the photo through the autoencoder, `start` the photo with the pasted defect. Compared
    are means over places of the mask, so that texture stays as it was denoised.
    """
    inside = mask.to(generated)
    lost = inside * ((start - photo) - (generated - reconstruction))
    there, marked = (F.avg_pool2d(part, PLACE, 1, PLACE // 2) for part in (lost, inside))
    return generated + share * inside * there / marked.clamp(min=1e-6)


def _features(coordinates: np.ndarray, depth: np.ndarray, half: np.ndarray, reach: float) -> np.ndarray:
    """(N,3) in pixels of the mask: along, across, and depth, which counts as much as half its mean extent."""
    return np.concatenate([coordinates * half, reach * depth[:, None]], 1)


def _coordinates(mask: np.ndarray, frame: Frame) -> np.ndarray:
    """(N,2) of the marked pixels in the frame, (along, across) in half extents."""
    return (np.argwhere(mask) + 0.5 - frame.centre) @ frame.axes.T / frame.half


def _depth(mask: np.ndarray) -> np.ndarray:
    """(N,) of the marked pixels: their distance to the outline, by the greatest there is."""
    inside = distance_inside(mask)[mask]
    return inside / inside.max()


def _ground(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(3,) median colour around what is marked, or of all where nothing is around."""
    around = surroundings(mask)
    return np.median(pixels[around] if around.any() else pixels.reshape(-1, 3), axis=0)
