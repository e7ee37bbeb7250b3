"""Placement: invented shapes get the size and the place of a training mask, and keep their form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from anomalydiffusion_core.dataset.layout import Pair
from anomalydiffusion_core.masks.edges import touched_sides
from anomalydiffusion_core.masks.placement import (
    moved_onto,
    place_mask,
    placement_of,
    placements_of,
    placer_of,
)
from anomalydiffusion_core.method.embeddings import Learned, Placement

SIZE = 200


def disc(diameter: int, at: tuple[int, int] = (64, 64), size: int = 128) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return (y - at[0]) ** 2 + (x - at[1]) ** 2 <= (diameter / 2) ** 2


def placed(shape: np.ndarray, *placements: Placement, count: int = 60) -> list[np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    return [place_mask(shape, placements, (SIZE, SIZE), generator) for _ in range(count)]


def extent(mask: np.ndarray) -> int:
    return int(max(mask.any(0).sum(), mask.any(1).sum()))


@pytest.mark.parametrize("diameter", [9, 40, 100])
def test_a_shape_gets_a_training_mask_s_size_whatever_it_was_drawn_at(diameter: int) -> None:
    extents = [extent(mask) for mask in placed(disc(diameter), Placement(0.2, 1.0, None))]
    assert min(extents) >= 0.8 * 40 - 1 and max(extents) <= 1.25 * 40 + 1
    assert max(extents) - min(extents) > 10  # they vary
    assert extent(placed(disc(diameter), Placement(1.0, 1.0, None), count=1)[0]) <= SIZE


def test_a_blob_in_the_place_of_a_line_gets_the_line_s_area_not_its_length() -> None:
    for mask in placed(disc(40), Placement(0.8, 0.01, None)):
        assert 0.8**2 * 0.01 * SIZE**2 - 25 <= mask.sum() <= 1.25**2 * 0.01 * SIZE**2 + 25


def test_a_shape_keeps_its_proportions_and_its_share_of_its_box() -> None:
    shape = disc(80)
    for mask in placed(shape, Placement(0.3, 1.0, None)):
        height, width = mask.any(1).sum(), mask.any(0).sum()
        assert abs(int(height) - int(width)) <= 1
        assert mask.sum() / (height * width) == pytest.approx(np.pi / 4, abs=0.06)


def test_a_shape_in_the_place_of_a_mask_at_the_edge_lies_at_that_edge() -> None:
    at_right, inside = Placement(0.3, 1.0, None, sides=(1,)), Placement(0.3, 1.0, None)
    sides = [touched_sides(mask) for mask in placed(disc(40), at_right, inside)]
    assert 20 <= sides.count([1]) <= 40 and sides.count([]) >= 15, "as often as the training masks"
    mask = np.zeros((100, 100), bool)
    mask[:20, 40:60] = True
    for foreground in (None, np.ones((100, 100), bool)):
        assert placement_of(mask, foreground).sides == (0,)


def test_thin_lines_stay_lines() -> None:
    line = np.zeros((128, 128), bool)
    line[np.arange(10, 110), np.arange(10, 110)] = True
    for mask in placed(line, Placement(0.1, 1.0, None)):  # five times smaller
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
        assert extent(mask) >= 0.08 * SIZE - 3


def test_masks_lie_where_a_training_mask_was_give_or_take_half_of_it() -> None:
    here, there = Placement(0.1, 1.0, (0.2, 0.8)), Placement(0.2, 1.0, (0.7, 0.5))
    found = {here: 0, there: 0}
    for mask in placed(disc(30), here, there, count=200):
        centre = np.array(ndimage.center_of_mass(mask)) / SIZE
        near = min(found, key=lambda place: float(np.abs(centre - place.centre).max()))
        assert np.abs(centre - near.centre).max() <= near.extent / 2 + 1 / SIZE
        found[near] += 1
    assert min(found.values()) > 60


def test_on_full_frame_textures_masks_lie_anywhere_and_always_wholly_inside() -> None:
    masks = placed(disc(30), Placement(0.1, 1.0, None), count=800)
    areas = np.array([mask.sum() for mask in masks])
    assert areas.min() > 0.8**2 * np.pi * 10**2 - 20
    covered = np.any(masks, 0)[20:-20, 20:-20]
    assert covered.mean() > 0.97
    centres = np.array([ndimage.center_of_mass(mask) for mask in masks]) / SIZE
    np.testing.assert_allclose(centres.mean(0), 0.5, atol=0.05)
    corner = placed(disc(30), Placement(0.3, 1.0, (0.01, 0.99)))
    assert all(
        abs(int(extent(mask)) - int(min(mask.any(0).sum(), mask.any(1).sum()))) <= 1 for mask in corner
    )


def test_an_empty_shape_gives_an_empty_mask() -> None:
    assert not placed(np.zeros((64, 64), bool), Placement(0.5, 1.0, None), count=1)[0].any()


def test_places_are_read_off_the_training_pairs(
    tmp_path: Path, write_image: Callable[[Path, np.ndarray], Path]
) -> None:
    mask = np.zeros((100, 200), np.uint8)
    mask[40:60, 60:80] = 255
    image = write_image(tmp_path / "a.png", np.zeros((100, 200, 3), np.uint8))
    pair = Pair("thing", "stain", "a", image, write_image(tmp_path / "a_mask.png", mask))
    (place,) = placements_of([pair], lambda pixels: pixels[..., 0] < 0)
    assert (place.extent, place.centre) == (0.2, (0.5, 0.35))
    assert place.area == pytest.approx(400 / 20000)
    (place,) = placements_of([pair], None)
    assert (place.extent, place.centre) == (0.2, None)


def test_the_same_seed_and_try_give_the_same_place(learned: Learned) -> None:
    learned.mask_placements["thing/stain"] = [Placement(0.3, 1.0, None)]
    one, other = placer_of(learned, "thing/stain", 5), placer_of(learned, "thing/stain", 6)
    shape = disc(20, size=64, at=(32, 32))
    assert np.array_equal(one(shape, 7), placer_of(learned, "thing/stain", 5)(shape, 7))
    assert not np.array_equal(one(shape, 7), one(shape, 8))
    assert not np.array_equal(one(shape, 7), other(shape, 7))
    assert placer_of(learned, "thing/scratch", 5)(shape, 0) is shape  # no places known


def test_a_mask_off_the_object_is_moved_onto_it() -> None:
    mask, foreground = disc(21, at=(20, 20)), np.zeros((128, 128), bool)
    foreground[70:110, 30:100] = True
    seen = np.zeros_like(foreground)
    for seed in range(40):
        moved = moved_onto(mask, foreground, 0.9, torch.Generator().manual_seed(seed))
        assert moved is not None and moved.sum() == mask.sum()
        assert (moved & foreground).sum() >= 0.9 * mask.sum()
        seen |= moved
    assert seen[foreground].mean() > 0.9


def test_a_mask_larger_than_the_object_is_not_moved() -> None:
    foreground = disc(10)
    assert moved_onto(disc(30), foreground, 0.9, torch.Generator().manual_seed(0)) is None
    assert moved_onto(disc(30), np.zeros_like(foreground), 0.9, torch.Generator().manual_seed(0)) is None
