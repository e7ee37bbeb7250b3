"""Scores of a pair, by hand and by literal loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from anomalydiffusion_core.gate.scores import (
    LOOK,
    VISIBLE,
    Look,
    component_fills,
    contrast,
    edges,
    filled_in,
    look_distance,
    look_of,
    seam,
    surroundings,
    visible,
)
from anomalydiffusion_core.method.blending import paste


def square(size: int = 64, top: int = 24, left: int = 20, side: int = 14) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def texture(size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(90, 160, (size, size, 3)).astype(np.uint8)


def test_every_component_is_filled_for_itself_and_touching_corners_make_one() -> None:
    mask = np.zeros((6, 8), bool)
    mask[0, 0] = mask[1, 1] = mask[1, 2] = True  # one, by its corner
    mask[4, 5:8] = True
    normal, generated = np.full((6, 8, 3), 100, np.uint8), np.full((6, 8, 3), 100, np.uint8)
    generated[0, 0, 2] = 111  # one channel of one pixel, by more than 10
    generated[4, 5:8] = [[110] * 3, [111] * 3, [89] * 3]  # 10 is not more than 10
    assert component_fills(normal, generated, mask, 10.0) == pytest.approx([1 / 3, 2 / 3])


def test_contrast_is_the_largest_kolmogorov_smirnov_distance_of_colours_and_edges() -> None:
    mask, pixels = square(), texture()
    pixels[mask, 1] += 20
    around = surroundings(mask)
    literal = []
    for channel in [*np.moveaxis(pixels.astype(np.float32), -1, 0), edges(pixels)]:
        inside, outside = np.sort(channel[mask]), np.sort(channel[around])
        at = np.concatenate([inside, outside])
        literal.append(max(abs(np.mean(inside <= x) - np.mean(outside <= x)) for x in at))
    assert contrast(pixels, mask) == pytest.approx(max(literal))
    assert contrast(np.full((64, 64, 3), 7, np.uint8), mask) == 0
    pixels[mask] = 255
    assert contrast(pixels, mask) == 1


def test_the_surroundings_are_a_ring_beside_the_mask_that_does_not_touch_it() -> None:
    mask, around = square(side=20), surroundings(square(side=20))
    grown = np.zeros_like(mask)
    grown[23:45, 19:41] = True
    assert not (around & grown).any()
    # the mean distance inside a square of 20 is 3.85 pixels: the ring is twice as wide
    rows = np.flatnonzero(around[:, 30])
    assert rows.min() == 24 - 8 and rows.max() == 43 + 8
    assert surroundings(np.ones((8, 8), bool)).sum() == 0


def test_a_hard_outline_has_a_stronger_seam_than_a_soft_one_and_nothing_has_none() -> None:
    mask = square()
    soft, seams = mask.astype(np.float32), []
    for width in (0.0, 1.0, 2.0, 4.0):
        painted = 100 + 80 * (gaussian_filter(soft, width) if width else soft)
        seams.append(seam(np.repeat(painted[..., None], 3, -1), mask))
    assert seams == sorted(seams, reverse=True) and seams[0] > 2 * seams[-1]
    ramp = np.repeat(np.arange(64)[:, None, None], 64, 1).repeat(3, -1)
    assert seam(ramp, mask) == pytest.approx(1, abs=1e-3)


def test_a_guess_at_what_was_there_before_takes_the_nearest_pixel_outside() -> None:
    mask, pixels = np.zeros((7, 9), bool), np.random.default_rng(0).integers(0, 255, (7, 9, 3))
    mask[2:5, 3:6] = True
    filled = filled_in(pixels, mask)
    outside = np.argwhere(~mask)
    for y, x in np.argwhere(mask):
        distances = ((outside - (y, x)) ** 2).sum(1)
        nearest = outside[distances == distances.min()]
        assert any(np.array_equal(filled[y, x], pixels[a, b]) for a, b in nearest)
    assert np.array_equal(filled[~mask], pixels[~mask])


def test_a_look_is_cut_out_around_the_middle_of_what_is_marked() -> None:
    mask, pixels = np.zeros((80, 100), bool), texture(100)[:80]
    mask[10 : 10 + LOOK, 40 : 40 + LOOK // 2] = True
    look = look_of(pixels, mask)
    quarter = LOOK // 4
    assert np.array_equal(look.mask, mask[10 : 10 + LOOK, 40 - quarter : 40 + 3 * quarter])
    assert np.array_equal(look.pixels, pixels[10 : 10 + LOOK, 40 - quarter : 40 + 3 * quarter])


def test_looks_do_not_differ_by_how_they_are_turned_mirrored_or_enlarged() -> None:
    mask, pixels = square(side=LOOK), texture()
    look = look_of(pixels, mask)
    for turn in range(4):
        turned = look_of(np.rot90(pixels, turn)[:, ::-1], np.rot90(mask, turn)[:, ::-1])
        assert look_distance(look, turned) == 0
    large = look_of(pixels.repeat(3, 0).repeat(3, 1), mask.repeat(3, 0).repeat(3, 1))
    assert look_distance(look, large) == 0


@pytest.mark.parametrize("height", [1, 5, 8, 12, 23, 24, 48, 72])
@pytest.mark.parametrize("width", [1, 2, 9, 24, 48])
def test_a_mirrored_or_turned_copy_of_any_size_has_the_same_look(height: int, width: int) -> None:
    pixels = texture(110)[:101]
    for top, left in ((13, 17), (14, 17), (13, 18)):
        mask = np.zeros((101, 110), bool)
        mask[top : top + height, left : left + width] = True
        look = look_of(pixels, mask)
        for turn in range(4):
            for way in (1, -1):
                copy = [np.rot90(part, turn)[:, ::way] for part in (pixels, mask)]
                assert look_distance(look, look_of(*copy)) == 0


def test_looks_differ_by_the_root_mean_square_over_both_shapes() -> None:
    a, b = (Look(np.zeros((LOOK, LOOK, 3), np.float32), np.zeros((LOOK, LOOK), bool)) for _ in range(2))
    middle = slice(LOOK // 2 - 1, LOOK // 2 + 1)
    a.mask[middle, middle] = True  # four pixels in the middle, which every turn keeps there
    b.mask[middle, middle] = True
    b.pixels[middle, middle] = 6
    b.pixels[0, 0] = 200  # outside both
    assert look_distance(a, b) == look_distance(b, a) == pytest.approx(6)
    b.mask[0, 0] = True
    assert look_distance(a, b) == pytest.approx(np.sqrt((4 * 36 + 200**2) / 5))


def test_a_thin_line_has_a_look() -> None:
    mask = np.zeros((200, 200), bool)
    mask[100, 3:197] = True
    assert look_of(texture(200), mask).mask.any()
    for column in (40, 41):  # as long as a look is wide: its middle two samples both see the line
        mask, pixels = np.zeros((80, 80), bool), texture(80)
        mask[30 : 30 + LOOK, column] = True
        look = look_of(pixels, mask)
        assert np.array_equal(np.flatnonzero(look.mask.any(0)), [LOOK // 2 - 1, LOOK // 2])
        assert np.array_equal(look.pixels[:, LOOK // 2], pixels[30 : 30 + LOOK, column])


@given(st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_the_distance_of_two_looks_is_symmetric(one: int, other: int) -> None:
    looks = []
    for seed in (one, other):
        random = np.random.default_rng(seed)
        mask, pixels = np.zeros((40, 50), bool), random.integers(0, 255, (40, 50, 3))
        y, x, height, width = random.integers((2, 2, 1, 1), (20, 20, 20, 30))
        mask[y : y + height, x : x + width] = True
        looks.append(look_of(pixels, mask))
    a, b = looks
    assert look_distance(a, b) == pytest.approx(look_distance(b, a))
    assert (look_distance(a, b) == 0) == (one == other)


def test_a_speck_is_a_component_of_its_own() -> None:
    mask, normal = square(), texture()
    mask[2, 60] = True
    generated = normal.astype(np.float32)
    generated[square()] += 50
    assert component_fills(normal, generated, mask, 49.0) == [0, 1]
    assert component_fills(normal, generated, mask, 50.0) == [0, 0]


def test_the_wider_the_feather_of_a_pasted_square_the_weaker_its_seam() -> None:
    photo, mask = texture(), square(side=20)
    stain = np.full((64, 64, 3), 250, np.float32)
    seams = [seam(paste(photo, stain, mask, feather), mask) for feather in (0, 1, 2, 4, 8)]
    assert all(wider < harder for harder, wider in zip(seams, seams[1:], strict=False)), seams
    assert seams[0] > 2 * seam(photo, mask)


def test_of_large_autoencoder_noise_what_can_be_seen_shows() -> None:
    assert [visible(noise) for noise in (1.0, 4.9, 13.0)] == [1.0, 4.9, VISIBLE]
