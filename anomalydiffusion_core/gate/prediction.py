"""What can be said of the next real pair of a type from the few that there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

COVERED = 0.95  # of pairs to come
FEWEST = 3  # values, to say how much they vary


def next_within(values: Sequence[np.ndarray] | Sequence[float] | np.ndarray) -> np.ndarray:
    """What the next of some values (N,) or (N,D) will not exceed in `COVERED` of cases, one by one: Student's
    prediction limit for normal values; of fewer than `FEWEST` the largest.
    """
    count = len(values)
    if count < FEWEST:
        return np.max(values, 0)
    deviations = stdtrit(count - 1, COVERED) * np.sqrt(1 + 1 / count)
    return np.mean(values, 0) + deviations * np.std(values, 0, ddof=1)
