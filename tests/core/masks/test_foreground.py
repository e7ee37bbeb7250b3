"""The foreground: objects on a plain ground are found, also across the frame; textures have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from anomalydiffusion_core.masks.foreground import ground_of, object_foreground, plain_ground

SIZE = 128


def noisy(pixels: np.ndarray, seed: int, sigma: float = 4) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def on_ground(box: tuple[slice, slice], seed: int, shade: int = 200) -> np.ndarray:
    """A red part on a gray ground."""
    pixels = np.full((SIZE, SIZE, 3), shade, float)
    pixels[box] = (150, 30, 40)
    return noisy(pixels, seed)


INSIDE = [np.s_[30:80, 20:100], np.s_[40:90, 30:90], np.s_[50:70, 10:110]]
ACROSS = [np.s_[:, 20:90], np.s_[30:110, :], np.s_[:100, :100]]  # the last fills most of its border


@pytest.mark.parametrize("boxes", [INSIDE, ACROSS])
def test_the_object_is_found_to_the_pixel_but_for_its_outline(boxes: list[tuple[slice, slice]]) -> None:
    shades = (196, 204, 200)  # the light changes a little
    photos = [
        on_ground(box, seed, shade) for seed, (box, shade) in enumerate(zip(boxes, shades, strict=True))
    ]
    ground = plain_ground(photos)
    assert ground is not None
    np.testing.assert_allclose(ground.colour, 200, atol=5)
    for photo, box in zip(photos, boxes, strict=True):
        truth = np.zeros((SIZE, SIZE), bool)
        truth[box] = True
        assert (object_foreground(photo, ground) ^ truth).mean() < 0.02


def test_a_photo_all_of_object_and_one_without_are_told_from_the_category_s_ground() -> None:
    ground = plain_ground([on_ground(box, seed) for seed, box in enumerate(INSIDE)])
    assert ground is not None
    assert object_foreground(on_ground(np.s_[:, :], 7), ground).all()
    assert not object_foreground(on_ground(np.s_[:0, :0], 8), ground).any()


def test_holes_belong_to_the_object() -> None:
    photo = on_ground(np.s_[20:100, 20:100], 0)
    photo[50:70, 50:70] = 200
    ground = plain_ground([photo])
    assert ground is not None and object_foreground(photo, ground)[60, 60]


def test_dust_is_no_object_and_a_second_part_is() -> None:
    photo = on_ground(np.s_[30:80, 20:100], 0)
    photo[100:104, 40:44] = 40
    photo[100:120, 70:90] = 40
    ground = plain_ground([photo])
    assert ground is not None
    foreground = object_foreground(photo, ground)
    assert not foreground[98:106, 38:46].any() and foreground[102:118, 72:88].all()


@pytest.mark.parametrize("size", [(1300, 900), (700, 1023), (513, 2050)])
def test_on_large_photos_the_outline_is_true_to_a_few_pixels(size: tuple[int, int]) -> None:
    height, width = size
    truth = np.zeros(size, bool)
    truth[height // 4 : height // 2, width // 3 : width - 60] = True
    photo = np.where(truth[..., None], np.uint8(60), np.uint8(200)).repeat(3, 2)
    ground = plain_ground([photo])
    assert ground is not None
    wrong = object_foreground(photo, ground) ^ truth
    rim = ndimage.binary_dilation(truth, iterations=10) & ~ndimage.binary_erosion(truth, iterations=10)
    assert not wrong[~rim].any() and wrong.mean() < 0.008


def test_textures_have_no_ground() -> None:
    random = np.random.default_rng(0)
    grain = [noisy(np.full((SIZE, SIZE, 3), 120.0), seed, 25) for seed in range(4)]
    blotches = [random.integers(0, 255, (8, 8, 3)).repeat(16, 0).repeat(16, 1) for _ in range(4)]
    assert plain_ground(grain) is None
    assert plain_ground([noisy(photo, 0) for photo in blotches]) is None
    assert plain_ground([np.full((SIZE, SIZE, 3), 90, np.uint8)]) is None
    light = np.linspace(60, 200, SIZE)[:, None, None].repeat(SIZE, 1).repeat(3, 2)
    assert plain_ground([noisy(light**2 / 200, 0)]) is None  # one piece of it is bright, and no object
    assert plain_ground([]) is None


def test_conductors_across_the_frame_are_a_pattern_and_no_object() -> None:
    board = np.full((SIZE, SIZE, 3), 250, np.uint8)
    for left in range(6, SIZE, 24):
        board[:, left : left + 12] = 5
    assert plain_ground([board, board[:, ::-1]]) is None
    board[60:70, 6:114] = 5  # joined, they are one
    assert plain_ground([board]) is not None


def test_one_photo_that_looks_like_an_object_makes_no_object_of_a_texture(
    tmp_path: Path, write_image: Callable[[Path, np.ndarray], Path]
) -> None:
    texture = noisy(np.full((SIZE, SIZE, 3), 120.0), 0, 25)
    part = on_ground(INSIDE[0], 1)

    def found(*photos: np.ndarray) -> bool:
        images = [write_image(tmp_path / f"{number}.png", photo) for number, photo in enumerate(photos)]
        return ground_of(images) is not None

    assert not found(part, texture, texture)
    assert found(part, part, part)
