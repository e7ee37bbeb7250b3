"""How exactly a mask says what changed: completeness, precision, boundary IoU (Cheng et al., CVPR 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_closing, binary_fill_holes, distance_transform_edt

from .scores import EIGHT, VISIBLE, change

BOUNDARY = 0.02  # width of a boundary, as a share of the picture's diagonal, as published
CLOSING = 1  # pixels: gaps that texture leaves in what changed


@dataclass(frozen=True)
class MaskFidelity:
    """Of a mask against what changed: `completeness`, the share of the mask that changed; `precision`, the
    share of what changed that is marked; `boundary_iou`, the IoU of the two inner boundaries. All 0 to 1.
    """

    completeness: float
    precision: float
    boundary_iou: float


def mask_fidelity(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> MaskFidelity:
    """Photos (H,W,3) in [0,255], mask (H,W) bool; a pixel changed where it differs by more than `VISIBLE`.
    For the boundary, gaps in what changed are closed.
    """
    changed = change(before, after) > VISIBLE
    both, marked, different = (int(part.sum()) for part in (changed & mask, mask, changed))
    return MaskFidelity(
        both / marked if marked else 1.0,
        both / different if different else 1.0,
        boundary_iou(_closed(changed), mask),
    )


def boundary_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two masks (H,W) bool: the IoU of what lies within `BOUNDARY` of each one's own outline, inside it; 1
    where both are empty.
    """
    width = max(1, round(BOUNDARY * float(np.hypot(*a.shape))))
    first, second = (_inner_boundary(mask, width) for mask in (a, b))
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 1.0


def _inner_boundary(mask: np.ndarray, width: int) -> np.ndarray:
    inside = np.asarray(distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    return mask & (inside <= width)


def _closed(changed: np.ndarray) -> np.ndarray:
    padded = np.pad(changed, CLOSING)
    closed = binary_fill_holes(binary_closing(padded, EIGHT, CLOSING))
    return np.asarray(closed)[CLOSING:-CLOSING, CLOSING:-CLOSING]
