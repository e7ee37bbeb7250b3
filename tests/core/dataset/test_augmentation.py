"""Views of a pair: the whole defect stays inside, image and mask move as one, nothing is filled in."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import cos, floor, radians, sin

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy import ndimage
from torch import Tensor

from anomalydiffusion_core.dataset.augmentation import (
    bounding_box,
    random_view,
    resize_mask,
    rotate_whole,
    whole_view,
)

SIZE = 48


def painted(mask: np.ndarray) -> tuple[Tensor, Tensor]:
    """An image whose channels are the defect (1 on -1), plain white and a ramp over the height; the mask."""
    ramp = np.repeat(np.linspace(-1, 1, mask.shape[0])[:, None], mask.shape[1], 1)
    image = np.stack([2.0 * mask - 1, np.ones(mask.shape), ramp]).astype(np.float32)
    return torch.from_numpy(image), torch.from_numpy(mask.astype(np.uint8))[None]


@st.composite
def rings(draw: st.DrawFn) -> np.ndarray:
    """(H,W) with a rectangular ring, anywhere up to the border, 3 pixels thick and hollow.

    Wherever a ring is cut its hollow opens, so a closed hollow proves that the whole ring is there.
    """
    height, width = draw(st.integers(40, 96)), draw(st.integers(40, 96))
    h, w = draw(st.integers(20, height)), draw(st.integers(20, width))
    top, left = draw(st.integers(0, height - h)), draw(st.integers(0, width - w))
    mask = np.zeros((height, width), bool)
    mask[top : top + h, left : left + w] = True
    mask[top + 3 : top + h - 3, left + 3 : left + w - 3] = False
    return mask


def hollow(mask: np.ndarray) -> int:
    return int(ndimage.binary_fill_holes(mask).sum() - mask.sum())


@given(rings(), st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_a_random_view_holds_the_whole_defect(mask: np.ndarray, seed: int) -> None:
    image, marked = painted(mask)
    view, view_mask = random_view(image, marked, SIZE, torch.Generator().manual_seed(seed))
    assert view.shape == (3, SIZE, SIZE) and view_mask.shape == (1, SIZE, SIZE)
    assert view_mask.dtype == torch.uint8 and set(view_mask.unique().tolist()) <= {0, 1}
    assert hollow(view_mask[0].numpy() > 0) >= 4


@given(st.integers(4, 12), st.integers(4, 12), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_a_close_up_shows_little_more_than_the_defect(height: int, width: int, seed: int) -> None:
    mask = np.zeros((96, 96), bool)
    mask[50 : 50 + height, 20 : 20 + width] = True
    image, marked = painted(mask)
    view, view_mask = random_view(image, marked, SIZE, torch.Generator().manual_seed(seed), close_up=True)
    top, bottom, left, right = bounding_box(view_mask)
    pixel = SIZE / max(height, width)  # one of the photo's, at the closest
    assert SIZE / 3 - pixel <= max(bottom - top, right - left) <= SIZE / 1.5 + pixel
    red = view[0].numpy() > 0
    assert (red != (view_mask[0].numpy() > 0)).mean() < 0.2


@given(rings(), st.integers(0, 10_000))
@settings(max_examples=80, deadline=None)
def test_image_and_mask_move_together_and_nothing_is_filled_in(mask: np.ndarray, seed: int) -> None:
    image, marked = painted(mask)
    view, view_mask = random_view(image, marked, SIZE, torch.Generator().manual_seed(seed))
    np.testing.assert_allclose(view[1], 1, atol=1e-5)  # grey or black fill would darken the white channel
    # outlines may differ by less than a source pixel, which is up to 2.4 pixels of the view
    there, red, near = view_mask[0].numpy() > 0, view[0].numpy() > 0, np.ones((5, 5))
    assert ndimage.binary_dilation(there, near)[red].all()
    trace = view[0].numpy() > -0.9  # of a sliver at the border
    assert ndimage.binary_dilation(trace, near)[there].all()
    eight = np.ones((3, 3))
    outline = ndimage.binary_dilation(there, eight) & ~ndimage.binary_erosion(there, eight, border_value=1)
    assert (there != red).sum() < outline.sum()


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_every_speck_is_in_every_view(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = np.zeros((64, 80), bool)
    spots = [(int(random.integers(4, 60)), int(random.integers(4, 76))) for _ in range(3)]
    # nearer ones may grow together when turned
    assume(all(max(abs(np.subtract(a, b))) >= 4 for a, b in combinations(spots, 2)))
    image, marked = painted(mask)
    for number, (y, x) in enumerate(spots):
        marked[0, y, x] = 1
        image[0, y - 2 : y + 3, x - 2 : x + 3] = float(number)
    _, view_mask = random_view(image, marked, 128, torch.Generator().manual_seed(seed))
    assert ndimage.label(view_mask[0].numpy(), np.ones((3, 3)))[1] >= len(spots)


def test_views_differ_and_the_same_seed_gives_the_same_view() -> None:
    mask = np.zeros((64, 64), bool)
    mask[20:30, 22:44] = True
    image, marked = painted(mask)

    def views(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [random_view(image, marked, SIZE, generator)[0] for _ in range(4)]

    first, again = views(5), views(5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({a.numpy().tobytes() for a in first}) == 4


@pytest.mark.parametrize("degrees", [-20.0, -7.0, 13.0, 20.0])
def test_a_rotation_turns_the_defect_about_the_centre(degrees: float) -> None:
    mask = np.zeros((80, 100), bool)
    mask[30:36, 60:70] = True  # 15 to the right of the centre, 7 above
    image, marked = painted(mask)
    turned, turned_mask = rotate_whole(image, marked, degrees)
    dx, dy = 64.5 - 49.5, 32.5 - 39.5
    c, s = cos(radians(degrees)), sin(radians(degrees))
    # counter-clockwise as seen, with y pointing down
    expected = (39.5 - s * dx + c * dy, 49.5 + c * dx + s * dy)
    found = ndimage.center_of_mass(turned_mask[0].numpy())
    np.testing.assert_allclose(found, expected, atol=0.5)
    np.testing.assert_allclose(ndimage.center_of_mass(turned[0].numpy() > 0), expected, atol=0.5)


@pytest.mark.parametrize("corner", [(slice(0, 9), slice(0, 9)), (slice(-4, None), slice(-9, None))])
def test_a_defect_at_the_corner_is_not_turned_out_of_the_frame(corner: tuple[slice, slice]) -> None:
    mask = np.zeros((64, 64), bool)
    mask[corner] = True
    image, marked = painted(mask)
    for degrees in (-20.0, 20.0):
        _, turned = rotate_whole(image, marked, degrees)
        assert turned.sum() >= 0.9 * mask.sum()


def test_a_defect_that_fits_only_after_a_smaller_turn_is_turned_less() -> None:
    mask = np.zeros((100, 100), bool)
    mask[10:13, 8:92] = True  # its ends leave the frame at 20 degrees: 50 - 42 cos 20 - 39 sin 20 < 0
    image, marked = painted(mask)
    _, turned = rotate_whole(image, marked, 20.0)
    rows, columns = np.nonzero(turned[0].numpy()[:, 25:75])
    slope = np.polyfit(columns, rows, 1)[0]
    assert 1 < abs(np.degrees(np.arctan(slope))) < 12
    assert abs(int(turned.sum()) - int(mask.sum())) <= 0.05 * mask.sum()


@pytest.mark.parametrize("shape", [(8, 300), (300, 8), (2, 2), (1, 7), (5, 5)])
def test_elongated_and_tiny_photos_have_views_too(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, bool)
    mask[shape[0] // 2, shape[1] // 2] = True
    for seed in range(8):
        view, view_mask = random_view(*painted(mask), SIZE, torch.Generator().manual_seed(seed))
        assert view.shape == (3, SIZE, SIZE) and view_mask.any()


masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda s: st_numpy.arrays(np.bool_, s))


def touched(line: np.ndarray, length: int) -> np.ndarray:
    """One axis of a resize by hand: cells overlapped when shrinking, the nearest source when growing."""
    n = len(line)
    if length <= n:
        ratio = Fraction(n, length)
        return np.array(
            [
                any(line[y] for y in range(n) if y < (i + 1) * ratio and y + 1 > i * ratio)
                for i in range(length)
            ]
        )
    return np.array([line[floor((Fraction(i) + Fraction(1, 2)) * n / length)] for i in range(length)])


@given(masks, st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=150, deadline=None)
def test_a_resized_mask_marks_every_pixel_that_the_defect_touches(mask: np.ndarray, h: int, w: int) -> None:
    columns = np.stack([touched(column, h) for column in mask.T], 1)
    expected = np.stack([touched(row, w) for row in columns])
    resized = resize_mask(torch.from_numpy(mask.astype(np.uint8))[None], (h, w))
    np.testing.assert_array_equal(resized[0].numpy() > 0, expected)
    assert resized.dtype == torch.uint8 and bool(resized.any()) is bool(mask.any())


def test_a_scratch_one_pixel_thin_survives_a_small_view() -> None:
    mask = np.zeros((512, 512), bool)
    mask[np.arange(300), np.arange(300) // 4 + 3] = True
    _, view_mask = whole_view(*painted(mask), 32)
    assert ndimage.label(view_mask[0].numpy(), np.ones((3, 3)))[1] == 1
    assert view_mask[0].any(1).sum() == np.ceil(300 / 16)  # rows reached: 300 of 512 at 16 per pixel


def test_the_whole_view_is_the_pair_itself_at_its_own_size() -> None:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[3, 4:9] = True
    image, marked = painted(mask)
    view, view_mask = whole_view(image, marked, SIZE)
    np.testing.assert_allclose(view, image, atol=1e-6)
    assert torch.equal(view_mask, marked)


def test_the_bounding_box_has_exclusive_ends() -> None:
    mask = torch.zeros(1, 9, 11)
    mask[0, 2, 5] = mask[0, 6, 3] = 1
    assert bounding_box(mask) == (2, 7, 3, 6)
