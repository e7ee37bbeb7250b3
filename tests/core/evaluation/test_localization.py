"""Guards evaluation/localization.py: figures of known maps, and the intervals around them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.evaluation.localization import (
    drawn_photos,
    intervals_of,
    measure,
    read_test_photos,
)
from anomalydiffusion_core.evaluation.localizer import Predictions, image_scores
from anomalydiffusion_core.evaluation.split import split_category


def test_perfect_maps_measure_as_perfect_and_intervals_hold_the_figure(real: Path) -> None:
    test = read_test_photos(split_category(find_dataset(real).categories["thing"], 0.5), 32)
    assert test.defects == ["scratch"] * 2 + ["stain"] * 2 + [None] * 2
    truth = torch.from_numpy(test.masks).float()
    perfect = measure(Predictions(truth, image_scores(truth)), test, range(6))
    assert list(perfect.values()) == pytest.approx([1.0] * 7)
    noise = torch.rand(6, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = 0.5 * truth + noise
    found = Predictions(maps, image_scores(maps))
    figures, intervals = measure(found, test, range(6)), intervals_of(drawn_photos(found, test, resamples=40))
    assert intervals["pixel_ap"][0] <= figures["pixel_ap"] <= intervals["pixel_ap"][1]
    assert intervals["pixel_ap"][0] < intervals["pixel_ap"][1]
    assert intervals_of(drawn_photos(found, test, resamples=40)) == intervals
