"""Guards what denoising starts from: a real defect, noise, or either; and that masks follow what shows."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mask_sources import given

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.photos import Photo, photo_of, read_mask, short_hash
from anomalydiffusion_core.dataset.windows import Region, Window
from anomalydiffusion_core.gate.gate import GateConfig
from anomalydiffusion_core.gate.scores import component_fills, tone
from anomalydiffusion_core.generation import generator as generator_module
from anomalydiffusion_core.generation import output
from anomalydiffusion_core.generation.config import GenerationConfig, Start
from anomalydiffusion_core.generation.drafting import TryNumber, Unusable
from anomalydiffusion_core.generation.generator import GeneratedPair, PairGenerator
from anomalydiffusion_core.generation.pasting import pasted
from anomalydiffusion_core.generation.regions import (
    MOST_GAIN,
    DecodedRegion,
    shown_parts,
    stitched,
    to_image,
    to_pixels,
)
from anomalydiffusion_core.generation.runs import GenerationRun, RunWatch, generate_all, masks_in_folder
from anomalydiffusion_core.masks.sources import MaskRequest, real_masks
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.reweighting import AARConfig
from anomalydiffusion_core.method.sampling import SamplingConfig, image_generator

STAIN, SCRATCH = "thing/stain", "thing/scratch"
LITTLE = SamplingConfig(steps=100, guidance=2.5, denoise=0.01, aar=AARConfig("off"))
CONFIG = GenerationConfig(LITTLE, gate=GateConfig(()), foreground="none", feather=0, vary_contrast=0)


def box(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((64, 64), bool)
    mask[top : top + height, left : left + width] = True
    return mask


MASKS = [box(8, 8, 16, 24), box(40, 16, 16, 16), box(16, 32, 24, 16)]


def generator_of(
    base: LatentDiffusion, learned: Learned, dataset: Path, config: GenerationConfig
) -> PairGenerator:
    category = find_dataset(dataset).categories["thing"]
    real = {name: list(pairs) for name, pairs in find_dataset(dataset).by_type().items()}
    return PairGenerator(base, learned, list(category.normals), config, real=real)


def made(
    base: LatentDiffusion, learned: Learned, dataset: Path, config: GenerationConfig, count: int = 3
) -> list[GeneratedPair]:
    generator = generator_of(base, learned, dataset, config)
    return generator.try_indices(STAIN, range(count), given(MASKS))


def test_a_pair_from_a_real_defect_keeps_its_tone_and_one_from_noise_does_not(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path
) -> None:
    real = [
        tone(p.pixels, m)
        for p, m in generator_of(fake_base, learned, dataset, CONFIG).drafter.real_pairs(STAIN)
    ]
    pasted = made(fake_base, learned, dataset, CONFIG)
    noise = made(fake_base, learned, dataset, replace(CONFIG, start="noise"))
    assert [pair.guidance for pair in pasted] == [CONFIG.pasted_guidance] * 3 == [1] * 3
    assert [pair.guidance for pair in noise] == [2.5] * 3
    for one, other in zip(pasted, noise, strict=True):
        # a step of the untrained fake base moves it by some grey levels
        assert tone(one.pixels, one.mask) == pytest.approx(float(np.mean(real)), abs=15)
        assert abs(tone(other.pixels, other.mask) - np.mean(real)) > 20
        assert np.array_equal(one.mask, other.mask)
        assert np.array_equal(one.pixels[~one.mask], one.photo.pixels[~one.mask])


def test_a_pasted_defect_keeps_the_detail_that_the_autoencoder_cannot_hold(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path
) -> None:
    generator = generator_of(fake_base, learned, dataset, CONFIG)
    stripes = np.float32(90 + 30 * (-1.0) ** np.arange(64))[None, :, None].repeat(64, 0).repeat(3, 2)
    fine = [replace(one, difference=stripes) for one in generator.drafter.real_defects(STAIN)]
    generator.drafter.real_defects = lambda name: fine
    (pair,) = generator.try_indices(STAIN, range(1), given([MASKS[1]]))
    chance = image_generator(CONFIG.seed, 0, f"{STAIN} region 0")
    (number,) = pair.defects[0].pasted
    start = pasted(pair.photo.levels(), pair.mask, fine[number], chance)
    blurred = fake_base.decode(fake_base.encode(to_image(start, len(start))[None]))[0]
    lost = np.abs(to_pixels(blurred, start.shape[:2]) - start)[pair.mask].mean()
    left = np.abs(pair.pixels - start)[pair.mask].mean()
    assert lost > 5 and left < lost / 2


def test_the_more_is_denoised_the_less_of_the_real_defect_is_left(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path
) -> None:
    def of_all(denoise: float, **more: Any) -> GeneratedPair:
        config = replace(CONFIG, sampling=replace(LITTLE, denoise=denoise), **more)
        return made(fake_base, learned, dataset, config, 1)[0]

    least = of_all(0.01).pixels.astype(float)
    changes = [np.abs(of_all(share).pixels - least).mean() for share in (0.01, 0.2, 0.5, 1.0)]
    assert changes == sorted(changes) and changes[0] == 0 < changes[1]
    own = of_all(0.01, denoises=((STAIN, 0.5), (SCRATCH, 0.9)))
    assert np.array_equal(own.pixels, of_all(0.5).pixels), "each type has its own"


def test_the_contrast_of_pasted_defects_varies_where_asked(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path
) -> None:
    plain = made(fake_base, learned, dataset, CONFIG, 6)
    varied = made(fake_base, learned, dataset, replace(CONFIG, vary_contrast=0.4), 6)
    assert {pair.contrast for pair in plain} == {1.0} and len({pair.contrast for pair in varied}) == 6
    tones = [tone(pair.pixels, pair.mask) for pair in varied]
    usual = [tone(pair.pixels, pair.mask) for pair in plain]
    expected = [pair.contrast * value for pair, value in zip(varied, usual, strict=True)]
    # a channel that would be darker than black stays black, and a step of the fake base moves some levels
    assert tones == pytest.approx(expected, abs=10)
    assert np.ptp(expected) > 15 and np.corrcoef(tones, expected)[0, 1] > 0.8


def test_a_real_mask_is_not_filled_by_its_own_defect(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path
) -> None:
    drafter = generator_of(fake_base, learned, dataset, CONFIG).drafter
    pairs = find_dataset(dataset).by_type()[STAIN]
    photos = [short_hash(pair.image) for pair in pairs]
    source = real_masks(MaskRequest(STAIN, real=lambda: [read_mask(pair.mask) for pair in pairs]))
    for index in range(12):
        assert source(index).real == index % 3
        with suppress(Unusable):
            (defect,) = drafter.draft(STAIN, TryNumber(index, index), {STAIN: source}).defects
            used = {drafter.real_defects(STAIN)[number].photo for number in defect.pasted}
            assert used and used <= set(photos) - {photos[index % 3]}


@pytest.mark.parametrize(("start", "shares"), [("pasted", (1, 1)), ("noise", (0, 0)), ("mixed", (0.3, 0.7))])
def test_each_try_starts_as_it_is_said(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path, start: Start, shares: tuple[float, float]
) -> None:
    drafter = generator_of(fake_base, learned, dataset, replace(CONFIG, start=start)).drafter
    drafts = [drafter.draft(STAIN, TryNumber(i, i), {STAIN: given(MASKS)}) for i in range(60)]
    pasted = [bool(draft.defects[0].pasted) for draft in drafts]
    assert shares[0] <= np.mean(pasted) <= shares[1]
    assert [draft.guidance for draft in drafts] == [1.0 if one else 2.5 for one in pasted]
    again = drafter.draft(STAIN, TryNumber(7, 7), {STAIN: given(MASKS)})
    assert again.defects[0].pasted == drafts[7].defects[0].pasted


def test_a_pair_is_the_same_whatever_the_batch(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path
) -> None:
    mixed = replace(CONFIG, start="mixed", sampling=replace(LITTLE, denoise=0.5))
    singles, batch = (
        made(fake_base, learned, dataset, replace(mixed, batch_size=size), 8) for size in (1, 8)
    )
    for one, other in zip(singles, batch, strict=True):
        # sums of other sizes differ in the last bit of a float, which rounding may show as a grey level
        differences = np.abs(one.pixels.astype(int) - other.pixels)
        assert differences.max() <= 1 and (differences > 0).mean() < 1e-3


def run_of(
    base: LatentDiffusion, learned: Learned, dataset: Path, out: Path, notes: list[str], **config: Any
) -> list[dict[str, Any]]:
    given = masks_in_folder(dataset / "thing/ground_truth", None, learned)
    run = GenerationRun(learned, replace(CONFIG, **config), base)
    watch = RunWatch(on_note=notes.append)
    return generate_all(run, find_dataset(dataset), 2, out=out, given=given, watch=watch).rows


def test_the_manifest_says_which_real_defect_a_pair_started_from(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path, tmp_path: Path
) -> None:
    photos = {
        name: [short_hash(p.image) for p in pairs] for name, pairs in find_dataset(dataset).by_type().items()
    }
    for name, hashes in photos.items():
        learned.remember(name, hashes)
    notes: list[str] = []
    for row in run_of(fake_base, learned, dataset, tmp_path / "pasted", notes):
        name = f"thing/{row['defect']}"
        ((key, used),) = row["pasted_from"].items()
        assert key == name and len(used) == 1 and used[0] in photos[name]
        assert row["guidance"] == 1 and row["config"]["sampling"]["denoise"] == 0.01
    assert not any("start from noise" in note for note in notes)
    rows = run_of(fake_base, learned, dataset, tmp_path / "noise", notes, start="noise")
    assert all(row["pasted_from"] == {} and row["guidance"] == 2.5 for row in rows)


def test_without_the_real_pairs_pairs_start_from_noise_and_the_run_says_so(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path, tmp_path: Path
) -> None:
    notes: list[str] = []
    rows = run_of(fake_base, learned, dataset, tmp_path / "out", notes)  # `learned` knows no training photo
    assert all(row["pasted_from"] == {} for row in rows)
    told = "defects start from noise, since none of its training pairs is in the dataset."
    assert [note for note in notes if "noise" in note] == [f"{SCRATCH}: {told}", f"{STAIN}: {told}"]


def test_with_fewer_real_pairs_or_other_features_at_hand_it_is_another_run(
    fake_base: LatentDiffusion,
    learned: Learned,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = find_dataset(dataset).by_type()
    learned.trained_on |= {name: [short_hash(pair.image) for pair in pairs] for name, pairs in found.items()}
    gone = found[STAIN][0]
    all_there = run_of(fake_base, learned, dataset, tmp_path / "out", [])
    assert not any("missing_pairs" in row for row in all_there)
    missing = short_hash(gone.image)
    gone.image.unlink()
    gone.mask.unlink()
    fewer = run_of(fake_base, learned, dataset, tmp_path / "out", [])
    assert all(row["missing_pairs"] == {STAIN: [missing]} for row in fewer)
    monkeypatch.setattr(output, "backbone_name", lambda family: "another network")
    others = run_of(fake_base, learned, dataset, tmp_path / "out", [])
    runs = [{row["run"] for row in rows} for rows in (all_there, fewer, others)]
    assert [len(run) for run in runs] == [1, 1, 1] and len(set.union(*runs)) == 3


# --- masks follow what shows


def decoded(mask: np.ndarray, changed: np.ndarray) -> tuple[Any, DecodedRegion]:
    photo = photo_of(np.full((64, 64, 3), 120, np.uint8))
    values = np.where(changed[..., None], 30.0, 120.0) * np.ones(3)
    return photo, DecodedRegion(Region(Window(0, 0, 64), mask), values.astype(np.float32), noise=3.0)


def test_a_speck_that_does_not_show_is_left_out_of_the_mask() -> None:
    large, speck, shown = box(8, 8, 20, 20), box(50, 50, 3, 3), box(50, 8, 3, 3)
    photo, region = decoded(large | speck | shown, large | shown)
    left = shown_parts(photo, region, 0, 0.3)
    assert np.array_equal(left.region.mask, large | shown)
    assert np.array_equal(left.values, region.values) and left.region.window == region.region.window


def test_a_mask_of_which_much_does_not_show_stays_for_the_gate_to_stop() -> None:
    large, other = box(8, 8, 20, 20), box(40, 40, 12, 12)
    photo, region = decoded(large | other, large)  # 144 of 544 pixels would go
    assert shown_parts(photo, region, 0, 0.3) is region
    photo, nothing = decoded(large, np.zeros_like(large))
    assert shown_parts(photo, nothing, 0, 0.3) is nothing


def test_a_pair_s_mask_is_what_shows_and_nothing_else_changed(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speck = box(60, 60, 2, 2)
    masks = [mask | speck for mask in MASKS]
    config = replace(CONFIG, gate=GateConfig(("fill",), 0.3))
    generator = generator_of(fake_base, learned, dataset, config)
    make = generator.maker.make

    def without_speck(jobs: Any, sampling: Any, watch: Any) -> list[DecodedRegion]:
        return [
            replace(one, values=np.where(speck[..., None], job.photo.levels(), one.values))
            for job, one in zip(jobs, make(jobs, sampling, watch), strict=True)
        ]

    monkeypatch.setattr(generator_module.RegionMaker, "make", lambda self, *given: without_speck(*given))
    for pair in generator.try_indices(STAIN, range(3), given(masks)):
        assert not pair.mask[speck].any() and np.array_equal(pair.mask, pair.defects[0].mask)
        assert any(np.array_equal(pair.mask, mask) for mask in MASKS)
        assert np.array_equal(pair.pixels[~pair.mask], pair.photo.pixels[~pair.mask])
        assert min(component_fills(pair.photo.pixels, pair.pixels, pair.mask, pair.noise)) > 0.3
    unchecked = generator_of(fake_base, learned, dataset, CONFIG)
    assert all(pair.mask[speck].all() for pair in unchecked.try_indices(STAIN, range(3), given(masks)))


def faded(difference: float, *, from_defect: bool) -> tuple[Photo, DecodedRegion]:
    """A plain photo, and a region of 8 x 8 pixels that differs from it by so much."""
    mask = box(20, 20, 8, 8)
    photo = photo_of(np.full((64, 64, 3), 120, np.uint8))
    values = np.full((64, 64, 3), 120 + difference, np.float32)
    return photo, DecodedRegion(Region(Window(0, 0, 64), mask), values, noise=1.0, from_defect=from_defect)


@pytest.mark.parametrize("difference", [-40.0, 40.0])
def test_what_a_feather_takes_from_a_pasted_defect_s_contrast_is_given_back_inside(difference: float) -> None:
    def change(feather: float, *, from_defect: bool) -> float:
        photo, region = faded(difference, from_defect=from_defect)
        after = stitched(photo, region, feather).levels().astype(float)
        assert not (after != photo.levels())[~region.region.mask].any()
        return float((after - photo.levels())[region.region.mask].mean())

    # the outermost 28 of 64 pixels at half of it
    assert change(1.0, from_defect=False) == pytest.approx(difference * (1 - 14 / 64), abs=0.5)
    assert change(1.0, from_defect=True) == pytest.approx(difference * MOST_GAIN * (1 - 14 / 64), abs=0.5)
    assert change(0.5, from_defect=True) == pytest.approx(difference, abs=0.5)
    assert change(0.0, from_defect=True) == pytest.approx(difference, abs=0.5)


def test_a_pasted_defect_that_is_its_ground_s_gray_is_laid_in_as_it_is() -> None:
    photo, region = faded(0.0, from_defect=True)
    assert np.array_equal(stitched(photo, region, 1.0).pixels, photo.pixels)
