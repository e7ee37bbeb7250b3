"""Guards evaluation/split.py: what trains and what measures stay apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.evaluation.split import check_apart, split_category


def test_each_real_photo_either_trains_or_measures(real: Path) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    assert {d: [p.stem for p in pairs] for d, pairs in split.few_shot.items()} == {
        "scratch": ["000", "001"],
        "stain": ["000"],
    }
    assert [(p.defect, p.stem) for p in split.test_pairs] == [
        ("scratch", "002"),
        ("scratch", "003"),
        ("stain", "001"),
        ("stain", "002"),
    ]
    assert len(split.normals) == 3 and len(split.test_normals) == 2
    check_apart(split, [pair.image for pairs in split.few_shot.values() for pair in pairs])


def test_without_a_share_what_train_leaves_by_default_measures(real: Path) -> None:
    thing = find_dataset(real, defects=["scratch"]).categories["thing"]
    split = split_category(thing, None)
    assert [p.stem for p in split.few_shot["scratch"]] == ["000", "001", "002"]
    assert [p.stem for p in split.test_pairs] == ["003"]
    with pytest.raises(ValueError, match="No pair of thing/stain is left .* with a lower share"):
        split_category(find_dataset(real).categories["thing"], None)


def test_a_category_without_photos_to_measure_on_is_refused(dataset: Path, real: Path) -> None:
    with pytest.raises(ValueError, match="No pair of thing/scratch is left to measure on"):
        split_category(find_dataset(real).categories["thing"], 1.0)
    for folder in ("test", "ground_truth"):
        (dataset / "thing" / folder / "stain").rename(dataset / "thing" / folder / "all")
    with pytest.raises(ValueError, match="A defect of thing is called 'all'"):
        split_category(find_dataset(real).categories["thing"], 0.5)
    shutil.rmtree(dataset / "thing/test/good")
    with pytest.raises(ValueError, match="thing needs normal photos in both train/good and test/good"):
        split_category(find_dataset(real).categories["thing"], 0.5)


def test_the_same_picture_in_another_format_is_still_an_overlap(real: Path, tmp_path: Path) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    copy = tmp_path / "copy.bmp"
    Image.open(split.test_pairs[0].image).save(copy)
    with pytest.raises(ValueError, match=r"copy\.bmp trains and .*scratch/002\.png measures"):
        check_apart(split, [copy])
