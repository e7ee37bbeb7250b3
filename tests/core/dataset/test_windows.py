"""Windows: every marked pixel lies in one region, with context, at the canvas's scale where it can."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from anomalydiffusion_core.dataset.windows import CONTEXT, Window, regions_of


@st.composite
def marked_photos(draw: st.DrawFn) -> np.ndarray:
    """(H,W) bool with a few rectangles, some of them one pixel wide."""
    mask = np.zeros((draw(st.integers(20, 300)), draw(st.integers(20, 300))), bool)
    for _ in range(draw(st.integers(1, 6))):
        y, x = (draw(st.integers(0, length - 1)) for length in mask.shape)
        mask[y : y + draw(st.integers(1, 40)), x : x + draw(st.integers(1, 40))] = True
    return mask


@given(marked_photos(), st.sampled_from([32, 64, 128]))
@settings(max_examples=150, deadline=None)
def test_regions_together_mark_what_the_mask_marks_each_pixel_once(mask: np.ndarray, canvas: int) -> None:
    count = np.zeros(mask.shape, int)
    for region in regions_of(mask, canvas):
        assert region.mask.any()
        assert region.mask.sum() == region.mask[region.window.within(mask.shape)].sum()
        count[region.window.box(mask.shape)] += region.mask[region.window.within(mask.shape)]
    assert np.array_equal(count, mask.astype(int))


@given(marked_photos(), st.sampled_from([32, 64, 128]))
@settings(max_examples=150, deadline=None)
def test_connected_parts_stay_whole_and_have_context(mask: np.ndarray, canvas: int) -> None:
    parts = ndimage.label(mask, np.ones((3, 3)))[0]
    for region in regions_of(mask, canvas):
        window, inside = region.window, region.window.cut_mask(mask)
        touched = set(np.unique(window.cut(parts)[region.mask]).tolist())
        assert (np.isin(parts, list(touched)).sum()) == region.mask.sum()
        rows, columns = (np.flatnonzero(region.mask.any(axis)) for axis in (1, 0))
        extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        expected = min(max(canvas, round(CONTEXT * extent)), max(mask.shape))
        assert window.side == expected
        assert (region.mask <= inside).all()


def test_distant_defects_get_windows_of_their_own_and_neighbours_share_one() -> None:
    mask = np.zeros((400, 600), bool)
    for y, x in ((20, 30), (40, 50), (350, 560)):
        mask[y : y + 5, x : x + 5] = True
    regions = regions_of(mask, 64)
    assert [(r.window.side, int(r.mask.sum())) for r in regions] == [(64, 50), (64, 25)]
    assert regions[0].window == Window(0, 10, 64)  # centred on rows 20 to 45, columns 30 to 55, moved inside
    assert regions[1].window == Window(320, 530, 64)


def test_in_a_photo_no_larger_than_the_canvas_there_is_one_window_of_all() -> None:
    mask = np.zeros((50, 64), bool)
    mask[2, 3] = mask[48, 60] = True
    (region,) = regions_of(mask, 64)
    assert region.window == Window(-7, 0, 64)
    assert region.mask.sum() == 2
    assert regions_of(np.zeros((50, 64), bool), 64) == []


def test_beyond_the_photo_the_window_is_its_mirror_image_and_unmarked() -> None:
    photo = np.arange(12).reshape(3, 4)
    window = Window(-1, 0, 5)
    literal = np.array([photo[row] for row in (0, 0, 1, 2, 2)])
    assert np.array_equal(window.cut(photo)[:, :4], literal)
    assert np.array_equal(window.cut(photo)[:, 4], literal[:, 3])
    assert np.array_equal(window.cut(photo)[window.within((3, 4))], photo[window.box((3, 4))])
    assert window.cut_mask(np.ones((3, 4), bool)).sum() == 12


@pytest.mark.parametrize("size", [(3000, 5000), (4096, 4096)])
def test_large_photos_are_told_apart_by_blocks(size: tuple[int, int]) -> None:
    mask = np.zeros(size, bool)
    mask[100:110, 100:200] = mask[2000, 3000] = mask[2900:2999, 100] = True
    regions = regions_of(mask, 256)
    assert sorted(int(region.mask.sum()) for region in regions) == [1, 99, 1000]
    assert all(region.window.side == 256 for region in regions)


def test_what_is_cut_does_not_keep_its_picture_in_memory() -> None:
    photo = np.zeros((9, 9, 3), np.uint8)
    assert not np.shares_memory(Window(2, 2, 4).cut(photo), photo)
