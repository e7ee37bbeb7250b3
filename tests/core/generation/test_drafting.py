"""Guards generation/drafting.py: a mask goes from its source to the windows it is made in, once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mask_sources import given
from PIL import Image

from anomalydiffusion_core.dataset.windows import regions_of
from anomalydiffusion_core.gate.features import Backbone
from anomalydiffusion_core.generation import drafting
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.drafting import Drafter, TryNumber, Unusable
from anomalydiffusion_core.generation.generator import PairGenerator
from anomalydiffusion_core.masks.sources import GIVEN, PROCEDURAL, REAL, SourcedMask
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.sampling import SamplingConfig

SCRATCH, STAIN = "thing/scratch", "thing/stain"
CONFIG = GenerationConfig(SamplingConfig(steps=1), foreground="none")


def box(top: int, left: int, side: int, size: int = 200) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.fixture
def normal(tmp_path: Path) -> Path:
    grain = np.random.default_rng(0).integers(90, 160, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(grain).save(tmp_path / "normal.png")
    return tmp_path / "normal.png"


def drafter(learned: Learned, normal: Path) -> Drafter:
    backbone = Backbone("none", lambda image: image)
    return Drafter(learned, [normal], CONFIG, {}, backbone=backbone, device="cpu")


def test_a_draft_carries_the_regions_of_each_defect(learned: Learned, normal: Path) -> None:
    apart = box(10, 10, 8) | box(150, 150, 8)
    masks = {SCRATCH: given([apart]), STAIN: given([box(80, 20, 9)])}
    draft = drafter(learned, normal).draft("thing/scratch+stain", TryNumber(), masks)
    assert [(d.defect_type, d.source, len(d.regions)) for d in draft.defects] == [
        (SCRATCH, "given", 2),
        (STAIN, "given", 1),
    ]
    assert np.array_equal(draft.defects[0].mask, apart)
    # middles (14, 14) and (154, 154), less half a window of 64, moved inside the photo of 200
    windows = [(region.window.top, region.window.left) for region in draft.defects[0].regions]
    assert windows == [(0, 0), (122, 122)]


@pytest.mark.parametrize("source", [GIVEN, REAL])
@pytest.mark.parametrize(("size", "side"), [(200, 2), (64, 63)])
def test_the_user_s_own_and_real_masks_are_of_any_size(
    learned: Learned, normal: Path, source: str, size: int, side: int
) -> None:
    if size < 200:
        Image.open(normal).crop((0, 0, size, size)).save(normal)
    mask = box(1, 0, side, size)
    masks = {SCRATCH: lambda _: SourcedMask(mask, source, placed=True)}
    draft = drafter(learned, normal).draft(SCRATCH, TryNumber(), masks)
    assert np.array_equal(draft.defects[0].mask, mask)


def test_regions_are_found_once_for_a_pair(
    fake_base: LatentDiffusion, learned: Learned, normal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(mask: np.ndarray, canvas: int) -> list:
        calls.append(canvas)
        return regions_of(mask, canvas)

    monkeypatch.setattr(drafting, "regions_of", counted)
    generator = PairGenerator(fake_base, learned, [normal], CONFIG)
    pairs = generator.try_indices(SCRATCH, range(3), given([box(80, 20, 9)]))
    assert len(pairs) == 3 and calls == [64] * 3


@pytest.mark.parametrize(
    ("masks", "word"),
    [
        ({SCRATCH: given([np.zeros((200, 200), bool)])}, "empty"),
        ({SCRATCH: lambda _: SourcedMask(box(80, 20, 2), PROCEDURAL, placed=True)}, "tiny"),
        ({SCRATCH: given([box(80, 20, 9)]), STAIN: given([box(84, 24, 9)])}, "overlapping"),
        ({SCRATCH: given([box(40, 40, 120)])}, "too large for the model's canvas"),
    ],
)
def test_an_unusable_mask_says_why_in_a_word(learned: Learned, normal: Path, masks: dict, word: str) -> None:
    learned = replace(learned, image_size=16, mask_areas={})
    with pytest.raises(Unusable, match=f"^{word}$"):
        drafter(learned, normal).draft("+".join(masks), TryNumber(), masks)
