"""Guards gate/prediction.py: how far the next of a few values may lie."""

from __future__ import annotations

import numpy as np
import pytest

from anomalydiffusion_core.gate.prediction import COVERED, next_within


@pytest.mark.parametrize("count", [3, 5, 20])
def test_nineteen_of_twenty_values_to_come_lie_within_however_few_there_are(count: int) -> None:
    values = np.random.default_rng(0).normal(7, 3, (count + 1, 20_000))
    within = values[-1] <= next_within(list(values[:-1]))
    assert within.mean() == pytest.approx(COVERED, abs=0.01)


def test_by_a_printed_table() -> None:
    # t of 2 degrees of freedom at 0.95: 2.920; mean 4, deviation 1
    assert next_within([3.0, 4.0, 5.0]) == pytest.approx(4 + 2.920 * np.sqrt(4 / 3), abs=1e-3)


def test_two_values_do_not_say_how_much_they_vary() -> None:
    assert next_within([1.0, 9.0]) == 9 and next_within([4.0]) == 4
    assert list(next_within([np.array([1.0, 5]), np.array([2.0, 3])])) == [2, 5]
