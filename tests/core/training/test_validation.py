"""Guards training/validation.py: what people are told of a training's gain (the gain: test_defects)."""

from __future__ import annotations

import numpy as np
import pytest

from anomalydiffusion_core.training.validation import Improvement, in_words, paired_improvement

LOSSES = np.array([[0.8, 1.0], [1.2, 1.4], [0.4, 0.6]])  # of three pairs, at two timesteps


@pytest.mark.parametrize(
    ("factor", "words", "change"),
    [
        (0.9, "The training helped: ", "from 0.9000 to 0.8100 (-10.0 %; 95 % interval -10.0 to -10.0 %)."),
        (1.1, "The training did harm: ", "from 0.9000 to 0.9900 (+10.0 %; 95 % interval +10.0 to +10.0 %)."),
    ],
)
def test_a_change_beyond_its_interval_is_told_as_help_or_harm(factor: float, words: str, change: str) -> None:
    told = in_words(paired_improvement(LOSSES, factor * LOSSES), 7, 3)
    assert told.startswith(f"7 pairs to train on, 3 to measure on. {words}on these, the loss went {change}")


def test_a_change_within_its_interval_is_told_as_open() -> None:
    told = in_words(Improvement(1.0, 0.98, -0.02, -0.05, 0.01), 7, 3)
    assert told == (
        "7 pairs to train on, 3 to measure on. Whether the training helped is open: on these, the loss went "
        "from 1.0000 to 0.9800 (-2.0 %; 95 % interval -5.0 to +1.0 %)."
    )


def test_one_pair_is_not_told_as_proof_and_none_as_no_measurement() -> None:
    one = in_words(paired_improvement(LOSSES[:1], 0.5 * LOSSES[:1]), 1, 1)
    assert one == (
        "1 pair to train on, 1 to measure on. One pair says little about whether the training helped: on "
        "that one, the loss went from 0.9000 to 0.4500 (-50.0 %)."
    )
    assert in_words(None, 8, 0) == (
        "8 pairs to train on, none to measure on. So nothing says whether the training helped: judge it by "
        "what it makes."
    )
    assert in_words(None, 8, 4) == (
        "8 pairs to train on, 4 to measure on. The training was interrupted before it measured, so nothing "
        "says whether the training helped: judge it by what it makes."
    )
