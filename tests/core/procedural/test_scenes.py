"""Guards procedural/scenes.py: a scene follows from seed, index and size, and its caption tells the truth."""

import numpy as np

from anomalydiffusion_core.procedural.materials import MATERIALS
from anomalydiffusion_core.procedural.scenes import draw_scene, place_in_words
from anomalydiffusion_core.training.places import PLACE


def test_a_scene_depends_on_seed_index_and_size_alone():
    again = [draw_scene(3, i, 64) for i in (5, 2, 5)]
    assert np.array_equal(again[0].image, again[2].image) and again[0].caption == again[2].caption
    assert not np.array_equal(again[0].image, again[1].image)
    assert not np.array_equal(draw_scene(4, 5, 64).image, again[0].image)


def test_captions_say_where_and_masks_are_pictures_of_themselves():
    mask = np.zeros((50, 50), bool)
    mask[0:8, 44:50] = True
    assert place_in_words(mask) == "top far right"
    scenes = [draw_scene(11, i, 48) for i in range(300)]
    pictures = [s for s in scenes if s.is_mask_picture]
    assert 10 < len(pictures) < 80
    for scene in pictures:
        assert (
            np.array_equal(scene.image[..., 0] == 255, scene.mask) and "black and white mask" in scene.caption
        )
    for scene in scenes:
        assert (" at the " in scene.caption) == bool(scene.mask.any())
    bare = [s for s in scenes if s.mask.any() and not any(m in s.caption for m in MATERIALS)]
    assert 40 < len(bare) - len(pictures) < 120 and any(" defect at the " in s.caption for s in bare)
    single = next(s for s in scenes if len(PLACE.findall(s.caption)) == 1)
    assert place_in_words(single.mask) in single.caption
