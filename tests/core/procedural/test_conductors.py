"""Guards procedural/conductors.py: copper goes or comes where the mask says, by the kind of defect."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label

from anomalydiffusion_core.procedural.conductors import CONDUCTOR_DEFECTS, apply_conductor_defect
from anomalydiffusion_core.procedural.materials import Surface
from anomalydiffusion_core.procedural.scenes import draw_scene

GROUND, COPPER = 0.1, 0.8


@pytest.fixture
def board() -> Surface:
    """One conductor of 8 pixels down the middle of 96 x 96."""
    copper = np.zeros((96, 96), np.float32)
    copper[:, 44:52] = 1
    albedo = np.repeat((GROUND + (COPPER - GROUND) * copper)[..., None], 3, axis=2)
    return Surface(albedo, copper.copy(), 0.4, copper)


@pytest.mark.parametrize("family", [family for family in CONDUCTOR_DEFECTS if family != "short"])
def test_copper_goes_or_comes_inside_the_mask_alone(board: Surface, family: str) -> None:
    was = board.albedo[..., 0] > 0.5
    mask = apply_conductor_defect(np.random.default_rng(2), board, family, 12)
    missing = family in ("open", "mouse bite", "pin hole")
    assert mask.any() and (was[mask] == missing).all()
    changed = np.abs(board.albedo[..., 0] - np.where(was, COPPER, GROUND))
    assert (changed[mask] > 0.2).all() and changed[~mask].max() < 0.22
    assert (board.height[mask].mean() < 0.5) == missing


@pytest.mark.parametrize(("family", "parts"), [("open", 2), ("pin hole", 1)])
def test_an_open_cuts_the_conductor_through_and_a_pin_hole_does_not(
    board: Surface, family: str, parts: int
) -> None:
    for seed in range(5):
        surface = Surface(board.albedo.copy(), board.height.copy(), 0.4, board.conductor)
        mask = apply_conductor_defect(np.random.default_rng(seed), surface, family, 8)
        if 12 < np.nonzero(mask)[0].mean() < 84:
            assert label(surface.albedo[..., 0] > 0.45)[1] == parts


def test_scenes_of_boards_name_them() -> None:
    captions = [draw_scene(4, number, 48).caption for number in range(400)]
    boards = [caption for caption in captions if "circuit board with" in caption]
    named = [caption for caption in boards if any(f" {family} at" in caption for family in CONDUCTOR_DEFECTS)]
    assert boards and len(named) > len(boards) / 4
    others = [caption for caption in captions if "circuit board" not in caption and " with " in caption]
    assert not any(f" {family} at" in caption for caption in others for family in CONDUCTOR_DEFECTS)


def test_a_short_joins_two_conductors_and_is_nothing_where_there_is_one(board: Surface) -> None:
    assert not apply_conductor_defect(np.random.default_rng(0), board, "short", 12).any()
    assert board.conductor is not None
    board.conductor[:, 70:78] = 1
    board.albedo[:, 70:78] = COPPER
    for seed in range(5):
        surface = Surface(board.albedo.copy(), board.height.copy(), 0.4, board.conductor)
        mask = apply_conductor_defect(np.random.default_rng(seed), surface, "short", 12)
        assert mask.any() and label(surface.albedo[..., 0] > 0.45)[1] == 1
