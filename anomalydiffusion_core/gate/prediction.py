"""What can be said of the next real pair of a type from the few that there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

COVERED = 0.95  # of pairs to come
ENOUGH = 3  # values, to say how much they vary


def next_within(values: Sequence[np.ndarray] | Sequence[float] | np.ndarray) -> np.ndarray:
    """What the next of some values (N,) or (N,D) will not exceed in `COVERED` of cases, one by one: Student's
    prediction limit for normal values; of fewer than `ENOUGH` the largest.
    """
    count = len(values)
    if count < ENOUGH:
        return np.max(values, 0)
    deviations = stdtrit(count - 1, COVERED) * np.sqrt(1 + 1 / count)
    return np.mean(values, 0) + deviations * np.std(values, 0, ddof=1)


def beyond_range(values: Sequence[np.ndarray] | Sequence[float] | np.ndarray) -> np.ndarray:
    """How far outside the range of some values (N,) or (N,D) the next may lie, on the side where it is
    farther.
    """
    known = np.asarray(values)
    return np.maximum(next_within(known) - known.max(0), next_within(-known) + known.min(0))
