"""Blending and pasting: outside the mask nothing changes; inside, something always may."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from anomalydiffusion_core.method.blending import blend, paste, restore_detail, soft_mask

MASKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12))


def test_blending_takes_the_sample_inside_and_the_noised_normal_outside() -> None:
    sample, normal = torch.full((1, 2, 2, 2), 7.0), torch.full((1, 2, 2, 2), -3.0)
    m_z = torch.tensor([[[[1.0, 0.0], [0.25, 1.0]]]])
    expected = torch.tensor([[7.0, -3.0], [-0.5, 7.0]])
    assert torch.equal(blend(sample, normal, m_z), expected.expand(1, 2, 2, 2))


@given(mask=MASKS, feather=st.floats(0, 5), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=80)
def test_outside_the_mask_pixels_are_bit_identical(mask: np.ndarray, feather: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    photo = random.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    generated = random.uniform(-30, 300, (*mask.shape, 3)).astype(np.float32)
    result = paste(photo, generated, mask, feather)
    assert result.dtype == np.uint8
    assert np.array_equal(result[~mask], photo[~mask])


@given(mask=MASKS, feather=st.floats(0, 5))
@settings(deadline=None, max_examples=80)
def test_every_pixel_of_a_mask_takes_part_whatever_the_feather(mask: np.ndarray, feather: float) -> None:
    soft = soft_mask(mask, feather)
    assert ((soft > 0) == mask).all()
    assert soft.max(initial=0) <= 1
    photo = np.zeros((*mask.shape, 3), np.uint8)
    result = paste(photo, np.full((*mask.shape, 3), 255, np.float32), mask, feather)
    assert ((result > 0).all(-1) == mask).all()


def test_a_one_pixel_mask_changes_its_pixel_wholly_however_soft_the_outline() -> None:
    mask = np.zeros((5, 5), bool)
    mask[2, 3] = True
    result = paste(np.full((5, 5, 3), 100, np.uint8), np.full((5, 5, 3), 201, np.float32), mask)
    assert result[2, 3].tolist() == [201, 201, 201]
    assert (np.delete(result.reshape(25, 3), 13, 0) == 100).all()


def test_the_soft_mask_ramps_with_the_distance_to_the_edge_inside() -> None:
    mask = np.zeros((7, 7), bool)
    mask[1:6, 1:6] = True
    # distances to the outside are 1, 2, 3 from rim to centre
    row = soft_mask(mask, 2.0)[3]
    np.testing.assert_allclose(row, [0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0], rtol=1e-6)
    assert np.array_equal(soft_mask(mask, 0), mask.astype(np.float32))
    # the middle is three from the outside: a wider feather ramps up to it
    np.testing.assert_allclose(soft_mask(mask, 5.0)[3], row, rtol=1e-6)
    line = np.zeros((7, 7), bool)
    line[2, 1:6] = True
    assert np.array_equal(soft_mask(line, 3.0), line.astype(np.float32))


def test_the_soft_mask_does_not_ramp_towards_the_picture_s_border() -> None:
    mask = np.zeros((4, 9), bool)
    mask[:, 5:] = True
    np.testing.assert_allclose(soft_mask(mask, 1.0)[0], [0, 0, 0, 0, 0, 0.5, 1, 1, 1])
    assert (soft_mask(np.ones((4, 6), bool), 3.0) == 1).all()


def test_deep_inside_the_result_is_the_generated_picture_rounded_and_clipped() -> None:
    mask, photo = np.zeros((9, 9), bool), np.full((9, 9, 3), 50, np.uint8)
    mask[1:8, 1:8] = True
    generated = np.zeros((9, 9, 3), np.float32)
    generated[4, 4] = (12.4, 12.6, 300)
    assert paste(photo, generated, mask)[4, 4].tolist() == [12, 13, 255]


@pytest.mark.parametrize(("dtype", "white"), [(np.uint16, 65535), (np.uint16, 4095), (np.uint8, 255)])
def test_levels_are_laid_in_on_the_scale_of_the_photo(dtype: type, white: int) -> None:
    photo, mask = np.full((3, 5), 100, dtype), np.zeros((3, 5), bool)
    mask[1, 1:4] = True
    generated = np.zeros((3, 5), np.float32)
    generated[1, 1:4] = (255, 51, 400)
    result = paste(photo, generated, mask, feather=0, white=white)
    assert result.dtype == dtype and result[1].tolist() == [100, white, white // 5, white, 100]
    assert (result[[0, 2]] == 100).all()
    # at the rim of a feathered mask, halfway between the photo's 100 and white
    photo, mask = np.full((5, 5), 100, dtype), np.zeros((5, 5), bool)
    mask[1:4, 1:4] = True
    white_square = np.full((5, 5), 255, np.float32)
    assert paste(photo, white_square, mask, feather=1.0, white=white)[1, 1] == (100 + white + 1) // 2


@pytest.mark.parametrize(
    ("change", "share_of_detail"),
    [(0.0, 1.0), (4.0, 1.0), (8.0, 0.5), (10.0, 0.25), (12.0, 0.0), (90.0, 0.0)],
)
def test_lost_detail_returns_where_the_change_is_near_the_autoencoder_s_noise(
    change: float, share_of_detail: float
) -> None:
    photo, reconstruction = np.full((1, 1, 3), 120, np.uint8), np.full((1, 1, 3), 110.0, np.float32)
    generated = reconstruction + np.array([0, -change, change / 2], np.float32)
    result = restore_detail(photo, reconstruction, generated, noise=4.0)
    np.testing.assert_allclose(result, generated + 10 * share_of_detail, rtol=1e-6)
    # elsewhere that of what was denoised
    start_detail = np.full((1, 1, 3), -7.0, np.float32)
    result = restore_detail(photo, reconstruction, generated, 4.0, start_detail)
    expected = generated + 10 * share_of_detail - 7 * (1 - share_of_detail)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
