"""What one contender leaves of another's error: the ratio, and an interval that pairs seeds and photos."""

from __future__ import annotations

import numpy as np
import pytest

from anomalydiffusion_core.evaluation.error_left import ErrorLeft, error_left
from anomalydiffusion_core.evaluation.results import ContenderResult


def run(contender: str, seed: int, value: float, draws: list[float], category: str = "a") -> ContenderResult:
    metrics = {"all": {"pixel_ap": value}}
    return ContenderResult("", contender, category, seed, "honest", 10, metrics, {}, [], draws=draws)


RANDOM = np.random.default_rng(0)
HARD = RANDOM.uniform(0.1, 0.9, 50)  # error on each draw of photos, for whom all is alike


def runs(shares: list[float], keep: bool = True, category: str = "a") -> list[ContenderResult]:
    """`ours` leaves a share of the error of `real`, seed by seed, on whatever photos are drawn."""
    found = []
    for seed, share in enumerate(shares):
        errors = {"real": HARD * (1 + seed), "ours": share * HARD * (1 + seed)}
        for name, error in errors.items():
            error = error / 4
            found.append(run(name, seed, 1 - float(error.mean()), list(1 - error) if keep else [], category))
    return found


def test_what_is_hard_for_both_widens_no_interval() -> None:
    left = error_left(runs([0.8, 0.8, 0.8]), "ours", "real", ["a"])
    assert left and (left.ratio, left.low, left.high) == pytest.approx((0.8, 0.8, 0.8))
    assert str(left) == "0.80 (0.80 to 0.80)"
    inverse = error_left(runs([0.8, 0.8, 0.8]), "real", "ours", ["a"])
    assert inverse and inverse.ratio == pytest.approx(1 / 0.8)


def test_seeds_that_differ_widen_it() -> None:
    left = error_left(runs([0.5, 0.8, 1.28]), "ours", "real", ["a"])
    assert left and left.ratio == pytest.approx(0.8)  # the geometric mean
    assert left.low == pytest.approx(0.5) and left.high == pytest.approx(1.28)  # one seed thrice


def test_photos_that_differ_widen_it() -> None:
    steps = [run("real", seed, 0.5, [0.5] * 50) for seed in range(3)]
    steps += [run("ours", seed, 0.6, list(1 - 0.5 * HARD)) for seed in range(3)]
    left = error_left(steps, "ours", "real", ["a"])
    assert left and left.ratio == pytest.approx(0.8)
    assert (left.low, left.high) == pytest.approx(tuple(np.quantile(HARD, [0.025, 0.975])), abs=0.03)


def test_categories_count_alike_and_all_must_be_there() -> None:
    both = runs([0.5, 0.5]) + runs([0.98, 0.98], category="b")
    left = error_left(both, "ours", "real", ["a", "b"])
    assert left and (left.ratio, left.low) == pytest.approx((0.7, 0.7))
    assert error_left(both, "ours", "draem", ["a"]) is None
    assert error_left(runs([0.5]), "ours", "real", ["a", "b"]) is None


def test_results_of_before_have_a_ratio_alone_and_only_seeds_in_common_count() -> None:
    assert error_left(runs([0.8, 0.8], keep=False), "ours", "real", ["a"]) == ErrorLeft(pytest.approx(0.8))
    some = [x for x in runs([0.5, 0.8]) if (x.contender, x.seed) != ("real", 0)]
    left = error_left(some, "ours", "real", ["a"])
    assert left and left.ratio == pytest.approx(0.8)


def test_who_finds_everything_leaves_nearly_nothing() -> None:
    perfect = [run("ours", 0, 1.0, [1.0] * 50), run("real", 0, 0.5, [0.5] * 50)]
    left = error_left(perfect, "ours", "real", ["a"])
    assert left and left.ratio == pytest.approx(2e-6)
