"""Guards evaluation/published.py: other methods' pairs are found in the folders that they publish."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anomalydiffusion_core.dataset.layout import Dataset, find_dataset
from anomalydiffusion_core.evaluation.published import find_generated

Write = Callable[[Path, np.ndarray], Path]
PHOTO = np.full((16, 16, 3), 90, np.uint8)
MASK = np.zeros((16, 16), np.uint8)
MASK[4:12, 4:12] = 255


@pytest.fixture
def real(dataset: Path) -> Dataset:
    """Category `thing` with the defects scratch and stain."""
    return find_dataset(dataset)


def test_image_and_mask_folders_of_jpegs(real: Dataset, tmp_path: Path, write_image: Write) -> None:
    root = tmp_path / "authors"
    for defect, count in (("scratch", 3), ("stain", 2)):
        for number in range(count):
            write_image(root / "thing" / defect / "image" / f"{number}.jpg", PHOTO)
            write_image(root / "thing" / defect / "mask" / f"{number}.jpg", MASK)
            write_image(root / "thing" / defect / "ori" / f"{number}.jpg", PHOTO)
    found = find_generated(root, real)
    assert [(p.defect, p.stem, p.mask.parent.name) for p in found.pairs] == [
        *(("scratch", str(n), "mask") for n in range(3)),
        *(("stain", str(n), "mask") for n in range(2)),
    ]
    assert {p.defect for p in find_generated(root, real, ["stain"]).pairs} == {"stain"}
    (root / "thing/stain/mask/1.jpg").unlink()
    with pytest.raises(ValueError, match=r"image/1\.jpg has no mask"):
        find_generated(root, real)


@pytest.mark.parametrize("folder", ["thing/scratch", "thing_scratch"])
def test_images_and_masks_of_one_folder(
    real: Dataset, tmp_path: Path, write_image: Write, folder: str
) -> None:
    root = tmp_path / "dfmgan"
    for number in range(2):
        write_image(root / folder / f"{number}_img.png", PHOTO)
        write_image(root / folder / f"{number}_mask.png", MASK)
    assert [(p.defect, p.image.name, p.mask.name) for p in find_generated(root, real).pairs] == [
        ("scratch", f"{n}_img.png", f"{n}_mask.png") for n in range(2)
    ]
    (root / folder / "1_mask.png").unlink()
    with pytest.raises(ValueError, match=r"1_img\.png has no mask: generate 1_mask\.png too"):
        find_generated(root, real)


def test_pairs_whose_mask_marks_nothing_are_left_out(
    real: Dataset, tmp_path: Path, write_image: Write
) -> None:
    root = tmp_path / "dfmgan"
    for number, mask in enumerate([MASK, np.zeros_like(MASK), np.full_like(MASK, 255)]):
        write_image(root / "thing/stain" / f"{number}_img.png", PHOTO)
        write_image(root / "thing/stain" / f"{number}_mask.png", mask)
    assert [p.stem for p in find_generated(root, real).pairs] == ["0"]


def test_our_own_layout_is_read_as_ever_and_an_empty_folder_refused(
    real: Dataset, dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(dataset / "thing", tmp_path / "ours/thing")
    assert len(find_generated(tmp_path / "ours", real).pairs) == len(real.pairs)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no dataset"):
        find_generated(tmp_path / "empty", real)
