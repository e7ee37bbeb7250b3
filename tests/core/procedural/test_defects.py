"""Guards procedural/defects.py and materials.py: surfaces fill the frame, defects stay inside their masks."""

import numpy as np
import pytest

from anomalydiffusion_core.procedural.defects import DEFECTS, Canvas, Spot, apply_defect
from anomalydiffusion_core.procedural.materials import MATERIALS, colour


def test_there_are_enough_materials_and_defect_families_and_each_material_draws_a_full_frame():
    assert len(MATERIALS) >= 8 and len(DEFECTS) >= 6
    for draw, tints in MATERIALS.values():
        rng = np.random.default_rng(0)
        surface = draw(rng, 48, 1.0, colour(rng, tints[0]))
        assert surface.albedo.shape == (48, 48, 3) and surface.height.shape == (48, 48)
        assert np.isfinite(surface.albedo).all() and np.isfinite(surface.height).all()


@pytest.mark.parametrize("family", DEFECTS)
def test_a_defect_changes_the_surface_inside_its_mask_and_nothing_far_outside(family):
    rng = np.random.default_rng(1)
    draw, tints = MATERIALS["painted metal"]
    surface = draw(rng, 96, 1.0, colour(rng, "green"))
    albedo, height = surface.albedo.copy(), surface.height.copy()
    canvas = Canvas(surface, np.ones((96, 96), np.float32))
    mask, words = apply_defect(rng, canvas, family, Spot((48.0, 48.0), 14.0))
    changed = (np.abs(canvas.surface.albedo - albedo).max(-1) > 0.05) | (
        np.abs(canvas.surface.height - height) > 0.3
    )
    assert words.endswith(family)
    assert mask.sum() > 20 and changed[mask].mean() > 0.7
    assert (changed & ~mask).sum() < 0.25 * mask.sum() + 30
    assert not changed[:8].any() and not changed[-8:].any()
