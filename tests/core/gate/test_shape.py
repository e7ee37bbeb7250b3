"""gate/shape.py, and the check `shape`: masks that leave the range of their type's real ones."""

from __future__ import annotations

import numpy as np
import pytest
from small_gates import POOLING, surface

from anomalydiffusion_core.gate.gate import Gate, GateConfig
from anomalydiffusion_core.gate.region_view import ChangedRegion, RegionView
from anomalydiffusion_core.gate.shape import TOLERANCES, beyond, shape_distance, shape_of

NAMES = list(TOLERANCES)


def drawn(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A mask (64,64) bool of boxes (top, bottom, left, right)."""
    mask = np.zeros((64, 64), bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


def numbers(mask: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, np.exp(shape_of(mask)).tolist(), strict=True))


def test_the_numbers_of_a_bar_are_those_computed_by_hand() -> None:
    bar = numbers(drawn((20, 24, 10, 50)))
    assert bar["area"] == pytest.approx(160) and bar["parts"] == 1
    assert bar["elongation"] == pytest.approx(40 / 4)  # deviations of uniform pixels, their own included
    assert bar["solidity"] == pytest.approx(1)
    assert bar["width"] == pytest.approx(4 * (2 * 40 + 2 * 38 * 2 - 2 * 2 + 0) / 160, rel=0.1)


def test_two_squares_at_the_corners_of_a_hull_fill_a_part_of_it() -> None:
    two = numbers(drawn((0, 4, 0, 4), (12, 16, 0, 4)))
    assert two["solidity"] == pytest.approx(32 / 64) and two["parts"] == 2
    touching = numbers(drawn((0, 4, 0, 4), (4, 8, 4, 8)))
    assert touching["parts"] == 1  # eight neighbours
    assert touching["solidity"] == pytest.approx(32 / (64 - 2 * 4 * 4 / 2))


@pytest.mark.parametrize("mask", [drawn((5, 6, 5, 6)), drawn((5, 6, 0, 64)), np.ones((64, 64), bool)])
def test_a_pixel_a_line_and_a_full_mask_have_a_shape(mask: np.ndarray) -> None:
    assert np.isfinite(shape_of(mask)).all()


def test_the_photos_edge_makes_no_mask_narrower() -> None:
    assert numbers(drawn((0, 10, 0, 64)))["width"] > 1.5 * numbers(drawn((20, 30, 0, 64)))["width"]


def test_within_the_range_nothing_is_beyond_and_outside_the_farthest_number_counts() -> None:
    known = [shape_of(drawn((0, 10, 0, 10))), shape_of(drawn((0, 10, 0, 20)))]
    assert beyond(known[0], known) == beyond(sum(known) / 2, known) == 0
    larger = known[1] + np.log([TOLERANCES["area"] ** 2, 1, 1, 1, 1])
    assert beyond(larger, known) == pytest.approx(2)
    narrower = known[0] - np.log([1, TOLERANCES["width"] ** 3, 1, 1, 1])
    assert beyond(narrower, known) == pytest.approx(3)


def test_real_masks_that_vary_much_allow_as_much() -> None:
    far = [np.zeros(5), np.log([100.0, 1, 1, 1, 1])]
    assert beyond(np.log([1000.0, 1, 1, 1, 1]), far) == pytest.approx(1)  # half of the range


def test_the_distance_of_shapes_counts_tolerances() -> None:
    a = shape_of(drawn((0, 10, 0, 10)))
    assert shape_distance(a, a) == 0
    assert shape_distance(a, a + np.log(list(TOLERANCES.values()))) == pytest.approx(1)


def bars(*boxes: tuple[int, int, int, int], checks: tuple[str, ...] = ("shape",)) -> Gate:
    real = [[RegionView(surface(i), drawn(box))] for i, box in enumerate(boxes)]
    return Gate(real, [RegionView(surface(9), drawn(boxes[0]))], POOLING, GateConfig(checks))


BARS = (20, 24, 10, 50), (30, 35, 8, 50), (10, 50, 20, 24)


def test_the_gate_stops_fragments_and_blobs_where_real_masks_are_bars() -> None:
    gate = bars(*BARS)
    fragments, blob = [(20, 24, x, x + 6) for x in range(4, 60, 10)], (10, 30, 10, 30)
    for boxes in (fragments, [blob]):
        assert gate.misshapen(drawn(*boxes))
        view = RegionView(surface(1), drawn(*boxes))
        assert gate.problems(gate.score_seen(view)) == ["misshapen"]
    assert not gate.misshapen(drawn((40, 45, 5, 45)))  # turned or moved it is the same shape


def test_a_mask_that_the_user_drew_may_have_any_shape() -> None:
    gate, blob = bars(*BARS), drawn((10, 30, 10, 30))
    view = RegionView(surface(1), blob)
    changed = ChangedRegion(view, surface(2), surface(1), blob, 1.0, own_mask=True)
    assert "shape" not in gate.score(changed) and gate.problems(gate.score(changed)) == []


def test_shapes_are_not_judged_by_two_real_pairs_nor_where_the_check_is_off() -> None:
    blob = drawn((10, 30, 10, 30))
    assert not bars(*BARS[:2]).misshapen(blob)
    assert not bars(*BARS, checks=("fill",)).misshapen(blob)
