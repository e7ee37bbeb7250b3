"""Real masks varied without losing their type: turned, scaled, moved and bent within their own frame."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from ..dataset.augmentation import MAX_ROTATION
from ..gate.shape import distance_inside
from .resizing import cut_out

SCALES = (0.8, 1.25)
SHIFT = 0.1  # of the frame's sides, either way
BEND = 0.03  # of the frame's longer side: how far pixels move, in the mean
SMOOTH = 0.2  # of that side: over how much they move alike


def warped(mask: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """A mask (H,W) bool turned, scaled, moved and bent a little: another (H,W) bool.

    The frame is continued by its mirror image, so that what ran into the photo's edge still does.
    """
    size = np.array(mask.shape)
    turn, scale, *shift = torch.rand(4, generator=generator).numpy()
    radians = np.radians(MAX_ROTATION) * (2 * turn - 1)
    rotation = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    middle = (size - 1) / 2
    moved = SHIFT * size * (2 * np.array(shift) - 1)
    offsets = np.moveaxis(np.indices(mask.shape), 0, -1) - middle - moved
    at = offsets @ rotation.T / (SCALES[0] + (SCALES[1] - SCALES[0]) * scale) + middle
    return _sampled(mask, at + _displacement(mask.shape, generator), "mirror")


def bent(mask: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """What is marked in (h,w) bool, bent a little and cut out."""
    room = int(np.ceil(3 * BEND * max(mask.shape))) + 1
    wide = np.pad(mask, room)
    at = np.moveaxis(np.indices(wide.shape), 0, -1) + _displacement(mask.shape, generator, wide.shape)
    curved = _sampled(wide, at, "constant")
    return cut_out(curved)


def _displacement(
    extent: tuple[int, ...], generator: torch.Generator, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """How far each pixel of a frame moves, (H,W,2): smooth noise."""
    longer, shape = max(extent), shape or extent
    noise = torch.randn((2, *shape), generator=generator).numpy()
    smooth = np.stack([gaussian_filter(part, SMOOTH * longer, mode="reflect") for part in noise], -1)
    return BEND * longer * smooth / max(float(smooth.std()), 1e-6)


def _sampled(mask: np.ndarray, at: np.ndarray, beyond: str) -> np.ndarray:
    """The mask at places (H,W,2). Distances to the outline are interpolated, since a thin line's own values
    would blur away; where nothing is left, the mask stays as it was.
    """
    outside = np.asarray(distance_transform_edt(~mask))
    signed = np.where(mask, distance_inside(mask) - 0.5, 0.5 - outside)
    result = map_coordinates(signed, np.moveaxis(at, -1, 0), order=1, mode=beyond, cval=signed.min()) > 0
    return result if result.any() else mask
