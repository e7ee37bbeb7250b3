"""Guards masks/warping.py: varied masks stay of their type, and at the photo's edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from anomalydiffusion_core.masks.edges import touched_sides
from anomalydiffusion_core.masks.warping import bent, warped


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts(mask: np.ndarray) -> int:
    return int(label(mask, np.ones((3, 3)))[1])  # type: ignore[index]


def at_edge(kind: str) -> np.ndarray:
    """A mask that runs into one side or two."""
    y, x = np.mgrid[:120, :96]
    return {
        "half a disc": y**2 + (x - 40) ** 2 < 100,
        "a disc that touches": (y - 10) ** 2 + (x - 40) ** 2 <= 100,
        "at the right": (y - 60) ** 2 + (x - 95) ** 2 < 64,
        "a corner": y**2 + x**2 < 144,
        "across": abs(x - 30 - y / 6) < 1.5,
        "a thin crack": (y < 60) & (x == 50 + y // 3),
        "a diagonal hairline": (y < 60) & (x == 10 + y),
        "a wide crack": (y < 60) & (abs(x - 40 - y / 3) < 4),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["half a disc", "a disc that touches", "at the right", "a corner", "across", "a thin crack"]
    + ["a diagonal hairline", "a wide crack"],
)
def test_what_runs_into_the_edge_does_so_afterwards_and_there_alone(kind: str) -> None:
    mask = at_edge(kind)
    others = [warped(mask, generator(seed)) for seed in range(24)]
    assert {tuple(touched_sides(other)) for other in others} == {tuple(touched_sides(mask))}
    assert {parts(other) for other in others} == {1} and {other.shape for other in others} == {mask.shape}
    areas = [float(other.sum() / mask.sum()) for other in others]
    assert min(areas) > 0.4 and max(areas) < 2.2, "scales of 0.8 to 1.25; a hairline gains a little"
    assert sum(np.array_equal(other, mask) for other in others) <= 3, "each is another"
    middles = [np.argwhere(other).mean(0) for other in others]
    moved = {"at the right": [True, False], "a corner": [False, False]}.get(kind, [False, True])
    assert (np.ptp(middles, axis=0)[moved] > 8).all(), "it moves along its side, by a tenth either way"


def test_a_mask_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    mask = at_edge("a wide crack")
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


@pytest.mark.parametrize("slope", [0, 0.4, 1])
def test_a_hairline_is_not_torn(slope: float) -> None:
    line = np.zeros((120, 120), bool)
    line[5 + (slope * np.arange(100)).astype(int), 5 + np.arange(100)] = True
    for seed in range(24):
        curved = bent(line, generator(seed))
        assert parts(curved) == 1 and 0.7 < curved.sum() / line.sum() < 2.2


def test_a_speck_of_one_pixel_stays() -> None:
    speck = np.zeros((30, 30), bool)
    speck[0, 15] = True
    for seed in range(20):
        assert bent(speck, generator(seed)).any()
        assert touched_sides(warped(speck, generator(seed))) == [0]
