"""Guards procedural/photographed.py: surfaces of pictures, their words, and scenes on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anomalydiffusion_core.procedural.photographed import Photographs, nearest_colour
from anomalydiffusion_core.procedural.scenes import caption_words, draw_scene

WritePhoto = Callable[[Path, np.ndarray], Path]


def stripes(colour: tuple[int, int, int], size: int = 96) -> np.ndarray:
    """Columns of the colour, every other one a third darker; its first row is black."""
    pixels = np.tile(np.array(colour, np.uint8), (size, size, 1))
    pixels[:, ::2] = pixels[:, ::2] // 3 * 2
    pixels[0] = 0
    return pixels


@pytest.fixture
def photographs(tmp_path: Path, write_image: WritePhoto) -> Photographs:
    write_image(tmp_path / "textures/metal/1.png", stripes((180, 30, 30)))
    write_image(tmp_path / "textures/wall_paper/1.png", stripes((40, 70, 150)))
    (tmp_path / "textures/empty").mkdir()
    (tmp_path / "textures/README.md").write_text("about")
    return Photographs.of(tmp_path / "textures")


def test_folders_name_the_materials_and_those_without_pictures_are_none(
    photographs: Photographs, tmp_path: Path
) -> None:
    assert list(photographs.files) == ["metal", "wall paper"] and photographs.rigid == ["metal"]
    assert {"metal", "wall paper"} <= set(caption_words(photographs)) > set(caption_words())
    for nothing in (tmp_path / "textures/empty", tmp_path / "absent"):
        with pytest.raises(ValueError, match="holds no pictures"):
            Photographs.of(nothing)


@pytest.mark.parametrize("size", [48, 128, 256])
def test_a_surface_has_the_picture_s_colour_and_relief_where_it_is_dark(
    photographs: Photographs, size: int
) -> None:
    surface, tint = photographs.surface(np.random.default_rng(1), size, "metal")
    assert surface.albedo.shape == (size, size, 3) and surface.albedo.dtype == np.float32
    assert tint == "red" and 0 <= surface.gloss <= 0.6
    assert 0.3 < surface.albedo[..., 0].mean() < 0.7 and surface.albedo[..., 1].max() < 0.2
    shade, height = surface.albedo.mean(-1), surface.height
    assert height.shape == (size, size) and np.corrcoef(shade.ravel(), height.ravel())[0, 1] > 0.8


def test_materials_of_many_pictures_come_more_often_by_the_root_of_their_number() -> None:
    known = Photographs({"metal": (Path("1"),) * 9, "cork": (Path("1"),)})
    rng = np.random.default_rng(0)
    assert 0.7 < np.mean([known.choose(rng) == "metal" for _ in range(400)]) < 0.8


def test_a_surface_is_fixed_by_its_generator_and_turns_with_it(photographs: Photographs) -> None:
    def drawn(seed: int) -> np.ndarray:
        return photographs.surface(np.random.default_rng(seed), 64, "metal")[0].albedo

    assert np.array_equal(drawn(3), drawn(3))
    across = [float(np.abs(np.diff(drawn(seed), axis=1)).mean()) for seed in range(12)]
    along = [float(np.abs(np.diff(drawn(seed), axis=0)).mean()) for seed in range(12)]
    lying = [a > b for a, b in zip(along, across, strict=True)]
    assert any(lying) and not all(lying)


def test_colours_have_the_nearest_word() -> None:
    for word, colour in (("red", (0.6, 0.1, 0.1)), ("white", (0.95, 0.95, 0.95)), ("grey", (0.5, 0.5, 0.5))):
        assert nearest_colour(np.full((4, 4, 3), colour)) == word


def test_a_share_of_scenes_lies_on_photographs_and_the_others_stay_as_they_were(
    photographs: Photographs,
) -> None:
    with_them = [draw_scene(7, number, 64, photographs) for number in range(60)]
    again = [draw_scene(7, number, 64, photographs) for number in range(60)]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(with_them, again, strict=True))
    surfaces = ("red metal", "blue wall paper")
    named = [scene for scene in with_them if any(surface in scene.caption for surface in surfaces)]
    assert 0.2 < len(named) / 60 < 0.6  # some captions tell the defect alone
    parts = [scene.caption for scene in named if "wall paper" in scene.caption]
    assert parts and not any(word in caption for caption in parts for word in ("screw", "gear", "washer"))
    drawn = [draw_scene(7, number, 64) for number in range(60)]
    assert not any("wall paper" in scene.caption for scene in drawn)
