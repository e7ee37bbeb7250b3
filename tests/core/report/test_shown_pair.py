"""Guards report/shown_pair.py: what a close-up shows of a photo, and how large."""

from __future__ import annotations

import numpy as np

from anomalydiffusion_core.dataset.photos import Photo, photo_of
from anomalydiffusion_core.report.shown_pair import (
    DETAIL,
    LEAST,
    OUTLINE,
    TILE,
    WHOLE,
    ShownPair,
    around,
    outlined,
    tile,
)


def shown(mask: np.ndarray, changed: np.ndarray | None = None) -> ShownPair:
    """A grey photo that is red where `changed` (default: mask) is."""
    pixels = np.full((*mask.shape, 3), 100, np.uint8)
    after = pixels.copy()
    after[mask if changed is None else changed] = (250, 0, 0)
    return ShownPair(Photo(pixels, gray=False), Photo(after, gray=False), mask)


def test_a_close_up_is_half_as_long_again_as_the_defect_and_never_tiny_nor_beyond_the_photo() -> None:
    mask = np.zeros((900, 1200), bool)
    mask[400:500, 600:700] = True
    assert around(mask) == np.s_[375:525, 575:725]
    dot = np.zeros((900, 1200), bool)
    dot[3, 1199] = True
    assert around(dot) == np.s_[0:LEAST, 1200 - LEAST : 1200]
    line = np.zeros((100, 1200), bool)
    line[50, 100:1100] = True
    assert around(line) == np.s_[0:100, 0:1200]


def test_a_thin_defect_of_a_large_photo_is_seen_four_times_as_wide() -> None:
    cut = np.zeros((2000, 3000), bool)
    cut[1000:1003, 1500:1530] = True
    pair = shown(cut)
    before, _, after = pair.tiles(pair.close_up())
    red = (after[..., 0].astype(int) - after[..., 1]) > 125
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert len(rows) == 3 * 4 and len(columns) == 30 * 4 and (before == 100).all()
    assert pair.detail() is None


def test_a_long_defect_has_a_detail_where_it_changed_most() -> None:
    cut, burr = np.zeros((900, 1200), bool), np.zeros((900, 1200), bool)
    cut[450:453, 100:1100] = True
    burr[450:453, 900:920] = True
    detail = shown(cut, burr).detail()
    assert detail is not None
    rows, columns = detail
    assert rows.stop - rows.start == columns.stop - columns.start == DETAIL
    assert abs((columns.start + columns.stop) / 2 - 910) < 3 and abs((rows.start + rows.stop) / 2 - 451) < 3
    faint = shown(cut, np.zeros_like(cut)).detail()  # where nothing changed, somewhere in the close-up
    assert faint is not None


def test_an_outline_runs_around_a_mark_and_leaves_its_pixels() -> None:
    mask = np.zeros((52, 52), bool)
    mask[20, 10:40] = True
    picture = np.full((TILE, TILE, 3), 9, np.uint8)
    marked = (outlined(picture, mask) == OUTLINE).all(-1)
    inside = np.zeros((TILE, TILE), bool)
    inside[80:84, 40:160] = True
    assert not marked[inside].any()
    assert marked[78:86, 38:162].sum() == marked.sum() == 8 * 124 - 4 * 120


def test_a_thin_mark_keeps_its_outline_where_the_close_up_shrinks_the_photo() -> None:
    mask = np.zeros((3000, 3000), bool)
    mask[1500, 200:2800] = True
    marked = (outlined(np.zeros((TILE, TILE, 3), np.uint8), mask) == OUTLINE).all(-1)
    assert marked[:, 30:180].any(0).all()


def test_photos_keep_their_shape() -> None:
    picture = tile(np.full((20, 40, 3), 100, np.uint8))
    quarter = TILE // 4
    assert (picture[quarter:-quarter] == 100).all()
    assert (picture[: quarter - 1] == 128).all() and (picture[1 - quarter :] == 128).all()
    mask = np.zeros((500, 2000), bool)
    mask[100:200, 500:700] = True
    pair = shown(mask)
    assert pair.whole().size == (WHOLE, WHOLE // 4)
    assert pair.place() == [450 / 2000, 0, 300 / 2000, 300 / 500]


def test_a_defect_that_covers_all_highlights_does_not_change_how_bright_its_photo_is_shown() -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:20, 10:30] = True
    samples = np.full((40, 40), 4000, np.uint16)
    samples[mask] = 60000
    normal = photo_of(samples)
    made = normal.pasted(np.zeros((40, 40, 3), np.float32), mask, feather=0)
    again = photo_of(made.samples, normal.white)  # as a reader sees it that knows the normal photo's white
    pair = ShownPair(normal, again, mask)
    before, _, after = pair.tiles(np.s_[:, :])
    assert (before[-20:] == 15).all() and (after[-20:] == 15).all()
