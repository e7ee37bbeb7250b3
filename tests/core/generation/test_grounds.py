"""Guards generation/grounds.py: on an object, a defect goes where the ground is like that of real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image

from anomalydiffusion_core.dataset.layout import Pair
from anomalydiffusion_core.dataset.photos import Photo
from anomalydiffusion_core.gate.features import Backbone
from anomalydiffusion_core.gate.region_view import RegionView
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.drafting import Drafter, TryNumber
from anomalydiffusion_core.generation.grounds import Grounds
from anomalydiffusion_core.masks.sources import GIVEN, REAL, SourcedMask
from anomalydiffusion_core.method.embeddings import Learned

TYPE, SIZE = "thing/scratch", 128
SHADES = Backbone("shades", lambda image: F.avg_pool2d(image, 4))


def spot(y: int, x: int) -> np.ndarray:
    """A mask (128,128) bool of 12 pixels."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y : y + 12, x : x + 12] = True
    return mask


def bar() -> np.ndarray:
    """A part on white ground: its left half dark, its right half bright."""
    pixels = np.full((SIZE, SIZE, 3), 250, np.uint8)
    pixels[34:94, 14:64], pixels[34:94, 64:114] = 40, 150
    return pixels + np.random.default_rng(0).integers(0, 4, pixels.shape, dtype=np.uint8)


@pytest.mark.parametrize("x", [30, 85])
def test_the_place_with_the_ground_of_real_defects_is_nearest(x: int) -> None:
    defect = bar()
    defect[spot(60, x)] = 0
    grounds = Grounds([RegionView(defect.astype(np.float32), spot(60, x))], SHADES, SIZE)
    places = [spot(56, 84), spot(64, 32), spot(5, 5)]
    assert grounds.nearest(Photo(bar(), gray=False), places) == (1 if x == 30 else 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    defect = bar()
    defect[spot(60, 30)] = 200
    Image.fromarray(bar()).save(tmp_path / "normal.png")
    Image.fromarray(defect).save(tmp_path / "defect.png")
    Image.fromarray(spot(60, 30)).save(tmp_path / "mask.png")
    return tmp_path


def dark_half(drafter: Drafter, source: str = REAL) -> float:
    """The share of 24 drafts whose mask lies in the left half."""
    left = 0
    for number in range(24):
        masks = {TYPE: lambda _: SourcedMask(spot(60, 60)[55:80, 55:80], source)}
        (defect,) = drafter.draft(TYPE, TryNumber(number, number), masks).defects
        left += int(np.nonzero(defect.mask)[1].mean() < SIZE / 2)
    return left / 24


def test_defects_on_an_object_lie_where_real_ones_do(learned: Learned, folder: Path) -> None:
    learned.mask_placements.clear()
    pair = Pair("thing", "scratch", "0", folder / "defect.png", folder / "mask.png")

    def drafter(real: dict[str, list[Pair]], placement: str = "learned") -> Drafter:
        config = GenerationConfig(placement=placement)  # type: ignore[arg-type]
        return Drafter(learned, [folder / "normal.png"], config, real, backbone=SHADES, device="cpu")

    assert dark_half(drafter({TYPE: [pair]})) > 0.9
    for anywhere in (drafter({}), drafter({TYPE: [pair]}, "free")):
        assert 0.2 < dark_half(anywhere) < 0.8
    assert 0.2 < dark_half(drafter({TYPE: [pair]}), GIVEN) < 0.8, "the user's own go where they may"
