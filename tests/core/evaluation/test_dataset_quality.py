"""Guards evaluation/dataset_quality.py: pairs are measured by what is known of them."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.evaluation.dataset_quality import dataset_quality
from anomalydiffusion_core.evaluation.split import split_category
from anomalydiffusion_core.export.mvtec import read_manifest


def test_pairs_whose_normal_photo_is_gone_or_of_another_size_are_measured_without_it(
    real: Path, generated: Path, tmp_path: Path
) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    pairs = list(find_dataset(generated).pairs)
    assert (
        dataset_quality(generated, pairs, split).fill
        == dataset_quality(generated / "thing", pairs, split).fill
    )
    for row in read_manifest(generated):
        Image.new("RGB", (96, 96)).save(generated / row["normal"])
    assert dataset_quality(generated, pairs, split).fill is None
    shutil.rmtree(generated / "thing/train")
    assert dataset_quality(generated, pairs, split).fill is None
