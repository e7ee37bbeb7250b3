"""gate/reference.py: how much defects differ from each other."""

from __future__ import annotations

import numpy as np
import pytest
from small_gates import POOLING, gate_of, spots, stain

from anomalydiffusion_core.gate import reference
from anomalydiffusion_core.gate.gate import Gate, GateConfig
from anomalydiffusion_core.gate.reference import Diversity


def deviations(real: list[np.ndarray], nothing: list[np.ndarray]) -> np.ndarray:
    every = np.array(real + nothing)
    return every.std(0) + 1e-3 * np.abs(every).mean()


def mean_distance(features: list[np.ndarray], deviation: np.ndarray) -> float:
    return float(
        np.mean(
            [
                np.sqrt(np.mean(((a - b) / deviation) ** 2))
                for i, a in enumerate(features)
                for b in features[:i]
            ]
        )
    )


def test_diversity_is_the_mean_distance_of_two_defects_by_hand() -> None:
    gate = gate_of(4)
    real, nothing = (
        [POOLING.features(view.pixels, view.mask) for view in views]
        for views in ([stain(i) for i in range(4)], spots())
    )
    deviation = deviations(real, nothing)
    assert gate.diversity() == Diversity(None, pytest.approx(mean_distance(real, deviation)))
    for number in (7, 8, 9):
        gate.remember(stain(number))
    made = [POOLING.features(stain(n).pixels, stain(n).mask) for n in (7, 8, 9)]
    assert gate.diversity().generated == pytest.approx(mean_distance(made, deviation))
    gate.forget()
    assert gate.diversity().generated is None


def test_the_same_defect_again_and_again_has_none() -> None:
    gate = gate_of(3)
    for _ in range(3):
        gate.remember(stain(5))
    assert gate.diversity().generated == 0


def test_of_very_many_defects_some_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gate_of(3)
    for number in range(6):
        gate.remember(stain(number % 2))
    monkeypatch.setattr(reference, "MOST_COMPARED", 3)
    few = gate.earlier_features[::2]
    assert len(few) == 3 and gate.diversity().generated == 0  # every other is the same stain


def test_what_is_not_known_is_not_told() -> None:
    empty = Gate([], [], POOLING, GateConfig())
    assert str(empty.diversity()) == "" and empty.diversity() == Diversity(None, None)
    assert str(Diversity(0.5, None)) == "Two defects differ by 0.50 deviations in the mean."
    assert str(Diversity(0.5, 0.7)).endswith("in the mean, two real ones by 0.70.")
