"""masks/edges.py: masks at the photo's edge, and others moved there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomalydiffusion_core.masks.edges import OVERLAP, RealEdges, border_cover, run_off, touched_sides

TOP, RIGHT, BOTTOM, LEFT = range(4)


def boxed(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "sides"),
    [
        (boxed(0, 5, 10, 20), [TOP]),
        (boxed(10, 20, 50, 60), [RIGHT]),
        (boxed(30, 40, 10, 20), [BOTTOM]),
        (boxed(10, 20, 0, 5), [LEFT]),
        (boxed(0, 40, 0, 5), [TOP, BOTTOM, LEFT]),
        (boxed(1, 39, 1, 59), []),
    ],
)
def test_the_sides_that_a_mask_runs_into_are_named(mask: np.ndarray, sides: list[int]) -> None:
    assert touched_sides(mask) == sides


def test_the_border_that_is_covered_most_counts() -> None:
    assert border_cover(boxed(0, 5, 0, 30)) == 0.5  # of the top; of the left an eighth
    assert border_cover(boxed(1, 39, 1, 59)) == 0


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("seed", range(4))
def test_a_mask_is_moved_straight_to_a_side_and_cut_off_there_by_a_part(side: int, seed: int) -> None:
    mask = boxed(12, 24, 20, 40)
    moved = run_off(mask, side, torch.Generator().manual_seed(seed))
    assert touched_sides(moved) == [side] and moved.shape == mask.shape
    assert (1 - OVERLAP) * mask.sum() <= moved.sum() <= mask.sum()
    along = 0 if side in (TOP, BOTTOM) else 1
    assert np.array_equal(moved.any(along), mask.any(along)), "it is not moved sideways"


def test_real_masks_say_where_they_touch_and_how_much_of_a_border_they_cover() -> None:
    edges = RealEdges.of([boxed(0, 5, 0, 30), boxed(10, 20, 10, 20)])
    assert edges.sides == [[TOP, LEFT], []] and edges.cover == 0.5
    assert RealEdges.of([]) == RealEdges([], 0.0)
