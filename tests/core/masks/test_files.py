"""Guards masks/files.py: folders of masks read, and invented ones written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalydiffusion_core.masks.files import read_mask_folder, write_masks


def marked(row: int) -> np.ndarray:
    mask = np.zeros((16, 16), bool)
    mask[row, 2:9] = True
    return mask


def test_written_masks_are_black_and_white_files_and_an_overview_with_frames(tmp_path: Path) -> None:
    masks = {"thing/scratch": [marked(row) for row in range(3)], "thing/stain": [marked(9)] * 3}
    write_masks(masks, tmp_path)
    for name, group in masks.items():
        files = sorted((tmp_path / name).iterdir())
        assert [file.name for file in files] == [f"0000{i}_mask.png" for i in range(3)]
        for file, mask in zip(files, group, strict=True):
            assert np.array_equal(np.asarray(Image.open(file)), mask * 255)
    overview = np.asarray(Image.open(tmp_path / "overview.png"))
    assert overview.shape == (2 * 18, 3 * 18) and overview[0, 0] == 96
    assert np.array_equal(overview[19:35, 37:53], marked(9) * 255)


def test_the_overview_shows_ten_masks_of_a_type(tmp_path: Path) -> None:
    write_masks({"thing/scratch": [marked(0)] * 12}, tmp_path)
    assert Image.open(tmp_path / "overview.png").size == (10 * 18, 18)
    assert len(list((tmp_path / "thing/scratch").iterdir())) == 12


def test_masks_of_a_type_are_read_from_the_nearest_folder(
    tmp_path: Path, write_image: Callable[[Path, np.ndarray], Path]
) -> None:
    for row, folder in ((1, tmp_path), (2, tmp_path / "dent"), (3, tmp_path / "bolt/dent")):
        write_image(folder / "a_mask.png", marked(row).astype(np.uint8) * 255)
    for category, defect, row in (("bolt", "dent", 3), ("nut", "dent", 2), ("nut", "crack", 1)):
        (mask,) = read_mask_folder(tmp_path, category, defect)
        assert np.array_equal(mask, marked(row))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no masks for bolt/dent: expected .*empty/bolt/dent"):
        read_mask_folder(tmp_path / "empty", "bolt", "dent")
