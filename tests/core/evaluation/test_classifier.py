"""Guards evaluation/classifier.py: it learns what differs; its figures follow from its confusion matrix."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from anomalydiffusion_core.evaluation.classifier import (
    Classification,
    ClassifierConfig,
    classify,
    train_classifier,
)

CONFIG = ClassifierConfig(size=32, steps=25, batch_size=24, rate=3e-4, pretrained=False)


def coloured(seed: int) -> tuple[Tensor, Tensor]:
    """Photos whose type is the channel that is bright."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(40, 80, (24, 3, 32, 32), generator=random).to(torch.uint8)
    labels = torch.arange(24) % 3
    images[torch.arange(24), labels] += 120
    return images, labels


def test_types_that_differ_are_told_apart_and_the_same_seed_gives_the_same_network() -> None:
    network = train_classifier(*coloured(0), CONFIG)
    found = classify(network, *coloured(1), ["red", "green", "blue"])
    assert found.confusion.sum() == 24 and found.accuracy > 0.9
    again = train_classifier(*coloured(0), CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_figures_of_a_confusion_matrix_by_hand() -> None:
    found = Classification(["cut", "dent"], np.array([[3, 1], [2, 4]]))
    assert found.accuracy == 0.7
    assert found.by_type() == {"cut": 0.75, "dent": pytest.approx(4 / 6)}


def test_rows_are_true_types_and_columns_found_ones() -> None:
    class Always(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([0.0, 1.0, 0.0]).expand(len(images), 3)

    images, labels = coloured(0)
    found = classify(Always(), images[:4], labels[:4], ["red", "green", "blue"])
    assert found.confusion.tolist() == [[0, 2, 0], [0, 1, 0], [0, 1, 0]]


def test_one_type_is_no_classification() -> None:
    images, labels = coloured(0)
    with pytest.raises(ValueError, match="photos of 1 defect types: a classifier needs at least two"):
        train_classifier(images, labels * 0, CONFIG)


def test_weights_that_cannot_be_fetched_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = ClassifierConfig(size=32, steps=1)
    with pytest.raises(ValueError, match=r"put resnet34-b627a593\.pth into .*checkpoints"):
        train_classifier(*coloured(0), config)
