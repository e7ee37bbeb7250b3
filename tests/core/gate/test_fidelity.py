"""gate/fidelity.py: how exactly a mask says what changed."""

from __future__ import annotations

import numpy as np
import pytest

from anomalydiffusion_core.gate.fidelity import boundary_iou, mask_fidelity


def box(top: int, bottom: int, left: int, right: int, side: int = 100) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[top:bottom, left:right] = True
    return mask


def changed_in(mask: np.ndarray, by: float = 40.0) -> tuple[np.ndarray, np.ndarray]:
    """A grey photo before and after a change inside a mask."""
    before = np.full((*mask.shape, 3), 100.0, np.float32)
    return before, before + by * mask[..., None]


def test_completeness_and_precision_by_hand() -> None:
    mask = box(20, 40, 20, 40)
    found = mask_fidelity(*changed_in(box(20, 40, 30, 50)), mask)
    assert (found.completeness, found.precision) == (0.5, 0.5)
    half = mask_fidelity(*changed_in(box(20, 30, 20, 40)), mask)
    assert (half.completeness, half.precision) == (0.5, 1.0)


def test_a_change_that_is_hardly_seen_is_none() -> None:
    mask = box(20, 40, 20, 40)
    found = mask_fidelity(*changed_in(mask, 4.0), mask)
    assert (found.completeness, found.precision, found.boundary_iou) == (0.0, 1.0, 0.0)


def test_boundaries_of_squares_one_inside_the_other_by_hand() -> None:
    # 2 % of the diagonal of 100 pixels: 3 pixels; rings of 40 - 34 and of 36 - 30 pixels per side
    outer, inner = box(20, 60, 20, 60), box(22, 58, 22, 58)
    rings = (40**2 - 34**2, 36**2 - 30**2)
    both = 36**2 - 34**2
    assert boundary_iou(outer, inner) == pytest.approx(both / (sum(rings) - both))
    assert boundary_iou(outer, outer) == 1.0


def test_a_wrong_outline_counts_in_a_large_mask_where_the_plain_iou_hardly_sees_it() -> None:
    large, shifted = box(5, 95, 5, 95), box(8, 98, 5, 95)
    plain = (large & shifted).sum() / (large | shifted).sum()
    assert plain > 0.9 and boundary_iou(large, shifted) < 0.6


def test_gaps_that_texture_leaves_are_no_outline() -> None:
    mask = box(20, 60, 20, 60)
    textured = mask.copy()
    textured[21:59:3, 21:59:3] = False
    assert mask_fidelity(*changed_in(textured), mask).boundary_iou == 1.0
    hole = mask & ~box(25, 55, 25, 55)
    assert mask_fidelity(*changed_in(hole), mask).boundary_iou == 1.0


def test_nothing_changed_and_nothing_marked_are_equal() -> None:
    none = np.zeros((50, 50), bool)
    found = mask_fidelity(*changed_in(none), none)
    assert (found.completeness, found.precision, found.boundary_iou) == (1.0, 1.0, 1.0)


def test_a_mask_at_the_photo_s_edge_is_closed_there_too() -> None:
    corner = box(0, 30, 0, 30)
    assert mask_fidelity(*changed_in(corner), corner).boundary_iou == 1.0
