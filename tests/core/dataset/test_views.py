"""The pool of views: which masks, types and latents training draws from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

from anomalydiffusion_core.dataset.augmentation import bounding_box
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.views import (
    RefreshedPool,
    ViewPool,
    make_mask_views,
    make_views,
    read_pair,
)
from anomalydiffusion_core.method.blending import latent_mask


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_pool_holds_the_pair_itself_first_then_views_of_it(fake_base: Any, dataset: Path) -> None:
    pairs = find_dataset(dataset).by_type()
    pool = make_views(fake_base, pairs, 3, 64, generator=generator())
    assert len(pool) == 3 * 7 and pool.names == ["thing/scratch", "thing/stain"]
    assert pool.types.tolist() == [0] * 12 + [1] * 9
    assert pool.latents.shape == (21, 4, 8, 8) and pool.masks.shape == (21, 1, 64, 64)
    for row, pair in zip(range(0, 21, 3), [p for name in pool.names for p in pairs[name]], strict=True):
        photo, mask = read_pair(pair)
        assert torch.equal(pool.masks[row], mask)
        # pooling by hand: 8 x 8 blocks of the photo
        blocks = (photo.pixels / 127.5 - 1).reshape(8, 8, 8, 8, 3).mean((1, 3)).transpose(2, 0, 1)
        np.testing.assert_allclose(pool.latents[row, :3], blocks, atol=1e-5)
        assert not torch.equal(pool.latents[row], pool.latents[row + 1])
    smallest = [min(int(m.sum()) for m in part) / 64**2 for part in (pool.masks[:12], pool.masks[12:])]
    assert list(pool.smallest_areas().values()) == pytest.approx(smallest)


def test_mask_views_are_close_ups_in_black_and_white(fake_base: Any, dataset: Path) -> None:
    pairs = find_dataset(dataset, defects=["stain"]).by_type()
    pool = make_mask_views(fake_base, pairs, 2, 64, generator=generator())
    expected = pool.masks.numpy().reshape(6, 8, 8, 8, 8).mean((2, 4)) * 2 - 1
    for channel in range(4):
        np.testing.assert_allclose(pool.latents[:, channel], expected, atol=1e-6)
    for view in pool.masks:
        top, bottom, left, right = bounding_box(view)
        assert 64 / 3 - 3 < max(bottom - top, right - left) < 64 / 1.5 + 3


def test_the_same_seed_gives_the_same_pool(fake_base: Any, dataset: Path) -> None:
    pairs = find_dataset(dataset).by_type()
    one, two = (make_views(fake_base, pairs, 4, 64, generator=generator()) for _ in range(2))
    assert torch.equal(one.latents, two.latents) and torch.equal(one.masks, two.masks)


def test_a_pool_is_bounded_and_has_every_type(fake_base: Any, dataset: Path) -> None:
    pairs = find_dataset(dataset).by_type()  # 4 scratches, 3 stains
    fewer_views = make_views(fake_base, pairs, 9, 64, generator=generator(), most=15)
    assert fewer_views.types.tolist() == [0] * 8 + [1] * 6
    whole = make_views(fake_base, pairs, 1, 64, generator=generator())
    drawn = set()
    for seed in range(8):
        fewer_pairs = make_views(fake_base, pairs, 9, 64, generator=generator().manual_seed(seed), most=5)
        assert fewer_pairs.types.tolist() == [0, 0, 1, 1]
        same = (fewer_pairs.masks[:, None] == whole.masks[None]).flatten(2).all(2)
        assert same.sum(1).tolist() == [1] * 4  # no pair twice
        drawn |= set(same.nonzero()[:, 1].tolist())
    assert drawn == set(range(7))
    assert len(make_mask_views(fake_base, pairs, 9, 64, generator=generator(), most=15)) == 14


def numbered_pool(number: int) -> ViewPool:
    return ViewPool(
        torch.full((1, 4, 8, 8), float(number)), torch.ones(1, 1, 64, 64), torch.zeros(1), ["a/b"]
    )


def test_a_refreshed_pool_is_ready_before_it_is_due() -> None:
    made, due = [], Event()

    def make(number: int) -> ViewPool:
        made.append(number)
        if number == 1:
            due.set()
        return numbered_pool(number)

    pools = RefreshedPool(make, every=3)
    assert [float(pools.at(step).latents[0, 0, 0, 0]) for step in range(3)] == [0, 0, 0]
    assert due.wait(10)  # nobody asked for it yet
    assert [float(pools.at(step).latents[0, 0, 0, 0]) for step in range(3, 8)] == [1, 1, 1, 2, 2]
    pools.close()
    assert made == sorted(set(made))  # each once
    resumed = RefreshedPool(make, every=3)
    assert float(resumed.at(7).latents[0, 0, 0, 0]) == 2
    resumed.close()


def test_a_pool_that_cannot_be_made_says_why_when_it_is_due() -> None:
    def make(number: int) -> ViewPool:
        if number:
            raise ValueError("photo.png is gone")
        return numbered_pool(number)

    pools = RefreshedPool(make, every=2)
    assert len(pools.at(1)) == 1
    with pytest.raises(ValueError, match=r"photo\.png is gone"):
        pools.at(2)
    pools.close()


def test_a_size_that_splits_a_latent_cell_is_refused(fake_base: Any, dataset: Path) -> None:
    with pytest.raises(ValueError, match="Size 100 is no multiple of 8"):
        make_views(fake_base, find_dataset(dataset).by_type(), 1, 100, generator=generator())


def test_a_mask_of_another_size_is_named(
    fake_base: Any, dataset: Path, write_image: Callable[[Path, np.ndarray], Path]
) -> None:
    small = np.zeros((32, 64), np.uint8)
    small[4:9, 4:9] = 255
    write_image(dataset / "thing/ground_truth/stain/001_mask.png", small)
    with pytest.raises(ValueError, match=r"stain/001_mask\.png is 64x32 but its image is 64x64"):
        make_views(fake_base, find_dataset(dataset).by_type(), 1, 64, generator=generator())


def test_a_latent_mask_marks_every_cell_that_the_defect_touches() -> None:
    mask = torch.zeros(1, 1, 32, 24)
    mask[0, 0, 7, 8] = mask[0, 0, 31, 0] = 1  # cell (0, 1), and cell (3, 0)
    assert latent_mask(mask, 8).tolist() == [[[[0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]]]
    assert latent_mask(mask.to(torch.uint8), 8).dtype == torch.float32
