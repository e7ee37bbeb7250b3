"""Real masks varied without losing their type: bent, and at the photo's edge turned, scaled and moved along
it, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from ..dataset.augmentation import MAX_ROTATION, box_of
from ..gate.shape import count_parts, distance_inside
from .edges import along_side, touched_sides
from .resizing import cut_out

SCALES = (0.8, 1.25)
SHIFT = 0.1  # of the photo's side that a mask is moved along, either way
BEND = 0.03  # of a shape's longer side: how far pixels move, in the mean
SMOOTH = 0.2  # of that side: over how much they move alike
PLACES = 32  # along that side, at most, where a movement is drawn
LESS = (1, 0.5, 0.25)  # shares of its movements that a mask at the edge bears
# pixels: where a resampled shape ends, the first of them where nothing is torn
OUTLINES = (0, -0.1, -0.2, -0.3, -0.45, -0.6)


@dataclass(frozen=True)
class _Outline:
    """A shape to be sampled elsewhere: its pixels' distances to the outline (h,w), positive inside, since a
    thin line's own values would blur away; `corner` is where they begin in the mask, `parts` how many it has.
    """

    distances: np.ndarray
    corner: np.ndarray
    parts: int

    @classmethod
    def of(cls, mask: np.ndarray) -> _Outline:
        """Of what is marked in (H,W) bool."""
        top, bottom, left, right = box_of(mask)
        corner = np.maximum(0, np.array((top, left)) - 1)
        marked = mask[corner[0] : bottom + 1, corner[1] : right + 1]
        outside = np.asarray(distance_transform_edt(~marked))
        distances = np.where(marked, distance_inside(marked) - 0.5, 0.5 - outside)
        return cls(distances, corner, count_parts(marked))

    def shape_at(self, places: np.ndarray) -> np.ndarray:
        """The mask at places (h,w,2), bool; it ends a little farther out where it would be torn."""
        at, beyond = np.moveaxis(places - self.corner, -1, 0), -max(self.distances.shape)
        values = map_coordinates(self.distances, at, order=1, mode="constant", cval=beyond)
        shapes = (values > outline for outline in OUTLINES)
        return next((shape for shape in shapes if 0 < count_parts(shape) <= self.parts), values > OUTLINES[0])


def warped(mask: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """A mask (H,W) bool that runs into the photo's edge, turned, scaled and bent a little, and moved along
    that edge: another (H,W) bool that runs into the same sides.

    Beyond these it is continued by its mirror image. What would leave them, run into others or be torn is
    moved less; where nothing helps, the mask stays as it was.
    """
    sides, size = touched_sides(mask), np.array(mask.shape)
    turn, scale, *shift = torch.rand(4, generator=generator).tolist()
    radians = np.radians(MAX_ROTATION) * (2 * turn - 1)
    shifts = SHIFT * size * (2 * np.array(shift) - 1) * [not {0, 2} & {*sides}, not {1, 3} & {*sides}]
    pivot, outline, (top, bottom, left, right) = _contact(mask, sides), _Outline.of(mask), box_of(mask)
    reach = SCALES[1] * np.hypot(bottom - top, right - left) * (1 + 3 * BEND) + np.abs(shifts) + 1
    low = np.maximum(0, np.floor(pivot - reach)).astype(int)
    high = np.minimum(size, np.ceil(pivot + reach) + 1).astype(int)
    places = np.moveaxis(np.indices(tuple(high - low)), 0, -1) + low - pivot
    movement = _movement(max(bottom - top, right - left), tuple(high - low), generator)
    movement -= movement[tuple(pivot - low)]  # the pivot stays at the edge
    for part in LESS:
        angle, factor = part * radians, (SCALES[0] + (SCALES[1] - SCALES[0]) * scale) ** part
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        at = (places - part * shifts) @ rotation.T / factor + pivot + part * movement
        other = np.zeros_like(mask)
        other[low[0] : high[0], low[1] : high[1]] = outline.shape_at(_mirrored(at, sides, size))
        if touched_sides(other) == sides and count_parts(other) <= outline.parts:
            return other
    return mask


def bent(mask: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """What is marked in (h,w) bool, bent a little and cut out."""
    longer = max(mask.shape)
    room = int(np.ceil(3 * BEND * longer)) + 1
    wide = np.pad(mask, room)
    at = np.moveaxis(np.indices(wide.shape), 0, -1) + _movement(longer, wide.shape, generator)
    curved = _Outline.of(wide).shape_at(at)
    return cut_out(curved if curved.any() else mask)


def _contact(mask: np.ndarray, sides: list[int]) -> np.ndarray:
    """The marked pixel (2,) on those sides that is nearest to the middle of all."""
    border = np.zeros_like(mask)
    for side in sides:
        along_side(border, side)[:] = True
    contacts = np.argwhere(mask & border)
    return contacts[np.square(contacts - contacts.mean(0)).sum(1).argmin()]


def _mirrored(at: np.ndarray, sides: list[int], size: np.ndarray) -> np.ndarray:
    """Places (h,w,2) that lie beyond those sides of a photo of `size`, as far inside them."""
    at = at.copy()
    for side in sides:
        axis = side % 2
        last = size[axis] - 1
        at[..., axis] = last - np.abs(last - at[..., axis]) if side in (1, 2) else np.abs(at[..., axis])
    return at


def _movement(longer: int, shape: tuple[int, ...], generator: torch.Generator) -> np.ndarray:
    """How far each pixel of (h,w) moves, (h,w,2), for a shape of `longer` pixels: smooth noise."""
    cell = max(1.0, longer / PLACES)
    noise = torch.randn((2, *(int(np.ceil(side / cell)) + 1 for side in shape)), generator=generator)
    smooth = np.stack(
        [gaussian_filter(part, SMOOTH * longer / cell, mode="reflect") for part in noise.numpy()]
    )
    large = F.interpolate(torch.from_numpy(smooth)[None], shape, mode="bilinear", align_corners=True)[0]
    return BEND * longer * np.moveaxis(large.numpy(), 0, -1) / max(float(smooth.std()), 1e-6)
