"""Guards that masks have their type's shape before anything is made in them, and lie at the photo's edge as
often as real ones do.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mask_sources import given
from PIL import Image

from anomalydiffusion_core.dataset.layout import Pair, find_dataset
from anomalydiffusion_core.gate.gate import GateConfig
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.drafting import MISSHAPEN, TryNumber, Unusable
from anomalydiffusion_core.generation.generator import PairGenerator
from anomalydiffusion_core.masks.edges import touched_sides
from anomalydiffusion_core.masks.invention import TriesExhausted
from anomalydiffusion_core.masks.sources import MaskSource, SourcedMask
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.reweighting import AARConfig
from anomalydiffusion_core.method.sampling import SamplingConfig

KIND = "thing/stain"
QUICK = SamplingConfig(steps=2, aar=AARConfig("off"))
CONFIG = GenerationConfig(QUICK, gate=GateConfig(("shape",)), foreground="none", tries_per_pair=2)


def drawn(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A mask (64,64) bool of boxes (top, bottom, left, right)."""
    mask = np.zeros((64, 64), bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


BARS = [drawn((20, 24, 10, 50)), drawn((30, 35, 8, 50)), drawn((10, 14, 20, 58))]
FRAGMENTS = drawn(*[(20, 24, x, x + 6) for x in range(4, 60, 10)])


def real_pairs(folder: Path, masks: list[np.ndarray]) -> list[Pair]:
    """Photos with a dark defect in each of the masks."""
    pairs = []
    for number, mask in enumerate(masks):
        photo = np.random.default_rng(number).integers(110, 130, (64, 64, 3)).astype(np.uint8)
        photo[mask] -= 60
        files = folder / f"real_{number}.png", folder / f"real_{number}_mask.png"
        for pixels, path in zip((photo, (255 * mask).astype(np.uint8)), files, strict=True):
            Image.fromarray(pixels).save(path)
        pairs.append(Pair("thing", "stain", f"real_{number}", *files))
    return pairs


@pytest.fixture
def bars(fake_base: LatentDiffusion, learned: Learned, dataset: Path, tmp_path: Path) -> PairGenerator:
    """A generator of a type whose real masks are bars."""
    normals = list(find_dataset(dataset).categories["thing"].normals)
    return PairGenerator(fake_base, learned, normals, CONFIG, real={KIND: real_pairs(tmp_path, BARS)})


def shapes(*masks: np.ndarray, source: str = "invented") -> MaskSource:
    return lambda number: SourcedMask(masks[number % len(masks)], source, placed=True)


def test_what_is_not_shaped_like_real_masks_is_refused_before_it_is_made(bars: PairGenerator) -> None:
    bars.make = lambda *_: pytest.fail("it was made")
    with pytest.raises(TriesExhausted, match=rf"in 0 tries \(\d+ {MISSHAPEN}\)"):
        list(bars.accepted(KIND, {KIND: shapes(FRAGMENTS)}, 1))


def test_of_a_mixture_those_that_are_shaped_like_real_ones_are_made(bars: PairGenerator) -> None:
    pairs = list(bars.accepted(KIND, {KIND: shapes(FRAGMENTS, BARS[0])}, 2))
    assert [pair.mask.sum() for pair in pairs] == [BARS[0].sum()] * 2
    assert all(0 <= pair.scores["shape"] <= pair.limits["shape"] == 1 for pair in pairs)


def test_the_user_s_own_masks_may_have_any_shape(bars: PairGenerator) -> None:
    (pair,) = bars.accepted(KIND, {KIND: given([FRAGMENTS])}, 1)
    assert pair.mask.sum() == FRAGMENTS.sum() and "shape" not in pair.scores


def test_where_shapes_are_not_checked_none_is_refused(bars: PairGenerator) -> None:
    bars.config = bars.drafter.config = replace(CONFIG, gate=GateConfig(()))
    (pair,) = bars.accepted(KIND, {KIND: shapes(FRAGMENTS)}, 1)
    assert pair.mask.any()


BLOB = SourcedMask(drawn((20, 30, 20, 30)), "invented")


def drafted_sides(
    base: LatentDiffusion, learned: Learned, folder: Path, real: list[np.ndarray], mask: SourcedMask
) -> list[list[int]]:
    """The sides that ten drafts of a mask run into, of a type with these real masks."""
    normal = folder / "normal.png"
    Image.fromarray(np.full((64, 64, 3), 120, np.uint8)).save(normal)
    config = replace(CONFIG, gate=GateConfig(()))
    generator = PairGenerator(base, learned, [normal], config, real={KIND: real_pairs(folder, real)})
    drafts = [
        generator.drafter.draft(KIND, TryNumber(number, number), {KIND: lambda _: mask})
        for number in range(10)
    ]
    return [touched_sides(draft.defects[0].mask) for draft in drafts]


AT_TOP, INSIDE = drawn((0, 20, 30, 36)), drawn((20, 40, 30, 36))


def test_masks_run_into_the_side_that_real_ones_do_and_stay_inside_where_these_do(
    fake_base: LatentDiffusion, learned: Learned, tmp_path: Path
) -> None:
    def sides(real: list[np.ndarray], mask: SourcedMask = BLOB) -> list[list[int]]:
        return drafted_sides(fake_base, learned, tmp_path, real, mask)

    assert sides([AT_TOP, AT_TOP]) == [[0]] * 10
    assert 0 < sides([AT_TOP, INSIDE]).count([0]) < 10
    assert [0] not in sides([INSIDE])
    kept = replace(BLOB, placed=True)
    assert sides([AT_TOP], kept) == [[]] * 10


def test_a_mask_may_cover_as_much_of_a_border_as_real_ones_do(
    fake_base: LatentDiffusion, learned: Learned, tmp_path: Path
) -> None:
    along = SourcedMask(drawn((0, 6, 10, 54)), "invented", placed=True)
    assert drafted_sides(fake_base, learned, tmp_path, [drawn((0, 8, 0, 50))], along) == [[0]] * 10
    with pytest.raises(Unusable, match="border"):
        drafted_sides(fake_base, learned, tmp_path, [INSIDE], along)
