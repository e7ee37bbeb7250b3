"""Guards masks/warping.py: varied masks stay of their type, and at the photo's edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from anomalydiffusion_core.masks.warping import bent, warped


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts(mask: np.ndarray) -> int:
    return int(label(mask, np.ones((3, 3)))[1])  # type: ignore[index]


def crack(width: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """A line from the upper edge to the middle."""
    mask = np.zeros(size, bool)
    for row in range(size[0] // 2):
        mask[row, 50 + row // 3 : 50 + row // 3 + width] = True
    return mask


@pytest.mark.parametrize("width", [2, 3, 8])
@pytest.mark.parametrize("seed", range(8))
def test_what_runs_into_the_edge_does_so_afterwards(width: int, seed: int) -> None:
    mask = crack(width)
    other = warped(mask, generator(seed))
    assert other.shape == mask.shape and not np.array_equal(other, mask)
    assert other[0].any() and parts(other) == 1
    assert 0.4 < other.sum() / mask.sum() < 2.2  # scales of 0.8 to 1.25, and moved by a tenth of the frame


def test_a_mask_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    mask = crack(4)
    assert np.array_equal(warped(mask, generator(1)), warped(mask, generator(1)))
    assert not np.array_equal(warped(mask, generator(1)), warped(mask, generator(2)))
    assert not np.array_equal(bent(mask, generator(1)), bent(mask, generator(2)))


@pytest.mark.parametrize("seed", range(8))
def test_bending_keeps_area_and_connection_of_a_thin_line(seed: int) -> None:
    line = np.zeros((80, 120), bool)
    line[39:41, 4:116] = True
    curved = bent(line, generator(seed))
    assert parts(curved) == 1 and curved.sum() == pytest.approx(line.sum(), rel=0.35)
    rows = [int(np.flatnonzero(column).mean()) for column in curved.T if column.any()]
    assert max(rows) - min(rows) >= 2, "it is no straight line any more"
    assert curved[[0, -1]].any(1).all() and curved[:, [0, -1]].any(0).all(), "it is cut out"


def test_a_speck_of_one_pixel_stays() -> None:
    speck = np.zeros((30, 30), bool)
    speck[15, 15] = True
    assert all(
        bent(speck, generator(seed)).any() and warped(speck, generator(seed)).any() for seed in range(20)
    )
