"""What the tests of the evaluation share: a real dataset to measure on, and generated pairs of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.evaluation.baselines import generate_baseline
from anomalydiffusion_core.evaluation.split import split_category

Write = Callable[[Path, np.ndarray], Path]


@pytest.fixture
def real(dataset: Path, write_image: Write) -> Path:
    random = np.random.default_rng(7)
    for number in range(2):
        grain = random.integers(90, 160, (64, 64, 3), dtype=np.uint8)
        write_image(dataset / "thing/test/good" / f"{number:03d}.png", grain)
    return dataset


@pytest.fixture
def generated(real: Path, tmp_path: Path) -> Path:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    generate_baseline("prn", split, 3, tmp_path / "generated", seed=5)
    return tmp_path / "generated"
