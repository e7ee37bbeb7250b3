"""What pairs must be: at the photo's own resolution and depth, good enough, varied, whatever the batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_sources import given
from PIL import Image
from scipy.ndimage import label

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.photos import photo_of, read_mask, read_photo, short_hash
from anomalydiffusion_core.dataset.windows import regions_of
from anomalydiffusion_core.gate.gate import GateConfig
from anomalydiffusion_core.gate.scores import change, component_fills
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.generator import GeneratedPair, PairGenerator
from anomalydiffusion_core.generation.regions import RegionJob, RegionMaker, in_window
from anomalydiffusion_core.generation.runs import (
    GenerationOutcome,
    GenerationRun,
    generate_all,
    masks_in_folder,
    single_types,
    training_pairs,
)
from anomalydiffusion_core.masks.invention import TriesExhausted, usable_for
from anomalydiffusion_core.masks.sources import MaskSource, SourcedMask
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.reweighting import AARConfig
from anomalydiffusion_core.method.sampling import SamplingConfig

NO_GATE = GateConfig((), 0.0)
CONFIG = GenerationConfig(SamplingConfig(steps=2, guidance=2.0), gate=NO_GATE, foreground="none")
KIND = "thing/scratch"
WritePhoto = Callable[[Path, np.ndarray], Path]


def photo(height: int, width: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    high = np.iinfo(dtype).max
    grain = np.random.default_rng(seed).integers(high // 3, high // 2, (-(-height // 8), -(-width // 8)))
    return grain.repeat(8, 0).repeat(8, 1)[:height, :width].astype(dtype)


def rectangle(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    for top, left, height, width in boxes:
        mask[top : top + height, left : left + width] = True
    return mask


def pairs_of(
    base: LatentDiffusion,
    learned: Learned,
    normals: list[Path],
    masks: dict[str, MaskSource],
    count: int,
    config: GenerationConfig = CONFIG,
) -> list[GeneratedPair]:
    name = "+".join(masks)
    return list(PairGenerator(base, learned, normals, config).accepted(name, masks, count))


def trained(learned: Learned, dataset: Path) -> Learned:
    """The model, as if all pairs of the dataset had trained it."""
    for name, pairs in find_dataset(dataset).by_type().items():
        learned.remember(name, [short_hash(pair.image) for pair in pairs])
    return learned


def generated(
    base: LatentDiffusion, learned: Learned, dataset: Path, out: Path, count: int, **more: Any
) -> GenerationOutcome:
    run = GenerationRun(
        learned, more.pop("config", CONFIG), base, keep_rejected=more.pop("keep_rejected", False)
    )
    folder = dataset / "thing/ground_truth"
    more.setdefault("given", masks_in_folder(folder, more.get("defect_types"), learned))
    return generate_all(run, find_dataset(dataset), count, out=out, **more)


# --- at the photo's own resolution and depth


@pytest.mark.parametrize("size", [(150, 333), (64, 64), (40, 57), (201, 90)])
def test_outside_the_mask_nothing_changes_and_every_part_inside_does(
    fake_base: LatentDiffusion, learned: Learned, tmp_path: Path, write_image: WritePhoto, size: tuple
) -> None:
    path = write_image(tmp_path / "n.png", photo(*size))
    height, width = size
    mask = rectangle(size, (4, 6, 9, 12), (height - 20, width - 24, 10, 14), (height // 2, width // 2, 1, 8))
    (pair,) = pairs_of(fake_base, learned, [path], {KIND: given([mask])}, 1)
    assert pair.result.gray and pair.pixels.shape == (*size, 3)
    assert np.array_equal(pair.pixels[~mask], pair.photo.pixels[~mask])
    fills = component_fills(pair.photo.pixels, pair.pixels, mask, 0.5)
    assert len(fills) == label(mask, np.ones((3, 3)))[1] and min(fills) > 0.5  # type: ignore[operator]


def test_a_window_of_the_canvas_s_size_is_not_resampled(fake_base: LatentDiffusion, learned: Learned) -> None:
    tall = np.repeat(photo(150, 333)[..., None], 3, -1)  # in blocks of 8, which the codec keeps
    known = photo_of(tall)
    (region,) = regions_of(rectangle((150, 333), (72, 160, 10, 10)), 64)
    region = replace(region, window=replace(region.window, top=40, left=136))
    job = RegionJob(
        KIND, learned.templates[0], region, in_window(known, region.window), torch.Generator(), 1.0, 1.0
    )
    (made,) = RegionMaker(fake_base, learned, 1).make([job], {KIND: SamplingConfig(steps=1)})
    outside = np.ones((64, 64), bool)
    for y, x in np.argwhere(region.mask):
        outside[8 * (y // 8) : 8 * (y // 8) + 8, 8 * (x // 8) : 8 * (x // 8) + 8] = False
    window = tall[40:104, 136:200].astype(np.float32)
    np.testing.assert_allclose(made.values[outside], window[outside], atol=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_dataset_keeps_the_depth_of_its_photos(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path, tmp_path: Path, dtype: type
) -> None:
    for number, path in enumerate(sorted((dataset / "thing/train/good").iterdir())):
        Image.fromarray(photo(70, 101, dtype, number)).save(path)
    outcome = generated(fake_base, learned, dataset, tmp_path / "out", 2, defect_types=[KIND])
    for row in outcome.rows:
        image, normal, mask = (
            np.asarray(Image.open(tmp_path / "out" / row[k])) for k in ("image", "normal", "mask")
        )
        assert image.dtype == normal.dtype == dtype and image.shape == (70, 101)
        assert np.array_equal(image[mask == 0], normal[mask == 0])
        assert not np.array_equal(image[mask > 0], normal[mask > 0])


def test_a_region_too_large_for_the_canvas_is_a_problem_that_says_so(
    fake_base: LatentDiffusion, learned: Learned, tmp_path: Path, write_image: WritePhoto
) -> None:
    path = write_image(tmp_path / "n.png", photo(600, 600))
    mask = rectangle((600, 600), (20, 20, 20, 500))
    small = replace(learned, image_size=64)
    with pytest.raises(TriesExhausted, match="too large for the model's canvas"):
        pairs_of(fake_base, replace(small, image_size=56), [path], {KIND: given([mask])}, 1)
    assert len(pairs_of(fake_base, replace(small, image_size=96), [path], {KIND: given([mask])}, 1)) == 1


# --- accepted, or told why not


def test_an_accepted_pair_is_filled_everywhere_and_lies_on_its_object(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path
) -> None:
    """Five hundred pairs, of masks of any shape, on photos with an object."""
    for number, path in enumerate(sorted((dataset / "thing/train/good").iterdir())):
        part, random = np.full((64, 64, 3), 10, np.uint8), np.random.default_rng(number)
        part[10:58, 8 + 4 * number : 54] = random.integers(150, 200, (48, 46 - 4 * number, 1))
        Image.fromarray(part).save(path)
    trained(learned, dataset)
    category = find_dataset(dataset).categories["thing"]
    checks = ("fill", "contrast")
    config = replace(
        CONFIG, gate=GateConfig(checks, 0.3), foreground="auto", tries_per_pair=50, batch_size=16
    )
    random = np.random.default_rng(1)
    boxes = random.integers((2, 2, 1, 1), (50, 50, 12, 12), (2000, 2, 4))
    masks = [rectangle((64, 64), *map(tuple, pair)) for pair in boxes.tolist()]
    real = {KIND: training_pairs(category, learned, KIND)}
    generator = PairGenerator(fake_base, learned, list(category.normals), config, real=real)
    gate, seen = generator.gate(KIND), 0
    assert len(real[KIND]) == 4 and "fill" in gate.limits
    for pair in generator.accepted(KIND, {KIND: given(masks)}, 500):
        seen += 1
        assert pair.mask.any() and np.array_equal(pair.pixels[~pair.mask], pair.photo.pixels[~pair.mask])
        fills = component_fills(pair.photo.pixels, pair.pixels, pair.mask, pair.noise)
        assert min(fills) >= gate.limits["fill"]
        assert pair.scores["contrast"] >= gate.limits["contrast"]
        on_object = pair.photo.pixels[..., 0][pair.mask] > 100
        assert on_object.mean() >= usable_for(config.masks, learned, KIND).on_object
    assert seen == 500


def test_when_all_are_rejected_the_shortfall_names_every_check_and_the_rejected_are_kept_apart(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path, tmp_path: Path
) -> None:
    trained(learned, dataset)
    strict = replace(CONFIG, gate=GateConfig(("fill",), 1.01), tries_per_pair=3)
    out = tmp_path / "out"
    outcome = generated(
        fake_base, learned, dataset, out, 2, config=strict, keep_rejected=True, defect_types=[KIND]
    )
    assert outcome.rows == []
    assert outcome.shortfalls[KIND].startswith(
        f"Only 0 of 2 pairs of {KIND} were accepted in 6 tries (6 unfilled). "
    )
    rows = [json.loads(line) for line in (out / "rejected/manifest.jsonl").read_text().splitlines()]
    assert [row["rejected"] for row in rows] == ["unfilled"] * 6
    assert all(
        (out / "rejected" / row["image"]).is_file() and (out / row["normal"]).is_file() for row in rows
    )
    assert not (out / "thing/test").exists() and list(find_dataset(out).categories) == ["thing"]
    apart = generated(fake_base, learned, dataset, tmp_path / "b", 2, config=strict, defect_types=[KIND])
    assert apart.shortfalls and not (tmp_path / "b/rejected").exists()


def test_photos_that_show_no_object_are_told(
    fake_base: LatentDiffusion, learned: Learned, tmp_path: Path, write_image: WritePhoto
) -> None:
    part = np.full((64, 64, 3), 10, np.uint8)
    part[20:50, 20:50] = 180
    paths = [write_image(tmp_path / f"{i}.png", part) for i in range(3)]
    paths.append(write_image(tmp_path / "3.png", np.full((64, 64, 3), 10, np.uint8)))
    mask = rectangle((64, 64), (22, 22, 8, 8))
    auto = replace(CONFIG, foreground="auto")
    pairs = pairs_of(fake_base, learned, paths, {KIND: given([mask])}, 6, auto)
    assert {pair.normal for pair in pairs} == {0, 1, 2}
    huge = rectangle((64, 64), (2, 2, 45, 45))  # fits no object
    with pytest.raises(TriesExhausted, match=r"\d+ off the object, \d+ no object"):
        pairs_of(fake_base, learned, paths, {KIND: given([huge])}, 2, auto)


def test_a_continued_run_knows_earlier_pairs_as_duplicates(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path, tmp_path: Path
) -> None:
    trained(learned, dataset)
    config = replace(CONFIG, gate=GateConfig(("duplicate",), 0.0), tries_per_pair=100)
    names = ["thing/scratch+stain", KIND]
    manifests = []
    for name, counts in (("parts", (1, 3)), ("once", (3,))):
        (tmp_path / name).mkdir()
        out = tmp_path / name / "out"
        for count in counts:
            generated(fake_base, learned, dataset, out, count, config=config, defect_types=names)
        manifests.append(sorted((out / "manifest.jsonl").read_text().splitlines()))
    parts, once = manifests
    assert len(once) == 6 and parts == once


# --- varied


def test_every_normal_photo_is_tried_before_one_comes_again(
    fake_base: LatentDiffusion, learned: Learned, tmp_path: Path, write_image: WritePhoto
) -> None:
    paths = [write_image(tmp_path / f"{i}.png", photo(64, 64, seed=i)) for i in range(5)]
    mask = given([rectangle((64, 64), (20, 20, 9, 9))])
    order = [pair.normal for pair in pairs_of(fake_base, learned, paths, {KIND: mask}, 15)]
    turns = [order[start : start + 5] for start in (0, 5, 10)]
    assert all(sorted(turn) == list(range(5)) for turn in turns) and turns[0] != turns[1]


def test_strength_and_guidance_vary_where_asked_and_are_told(
    calm_base: LatentDiffusion, learned: Learned, dataset: Path, tmp_path: Path
) -> None:
    varied = replace(CONFIG, vary_strength=0.3, vary_guidance=0.5)
    rows = generated(calm_base, learned, dataset, tmp_path / "v", 8, config=varied, defect_types=[KIND]).rows
    assert all(0.7 <= row["strength"] <= 1.3 and 1.0 <= row["guidance"] <= 3.0 for row in rows)
    assert len({row["strength"] for row in rows}) == len({row["guidance"] for row in rows}) == 8
    plain = generated(calm_base, learned, dataset, tmp_path / "p", 8, defect_types=[KIND]).rows
    assert {row["strength"] for row in plain} == {1.0} and {row["guidance"] for row in plain} == {2.0}
    assert not {row["image_sha256"] for row in rows} & {row["image_sha256"] for row in plain}


def test_a_type_may_have_its_own_strength_of_re_weighting(
    calm_base: LatentDiffusion, learned: Learned, tmp_path: Path, write_image: WritePhoto
) -> None:
    path = write_image(tmp_path / "n.png", photo(64, 64))
    masks = given([rectangle((64, 64), (16, 16, 24, 24))])
    steps = SamplingConfig(steps=4, aar=AARConfig("adaptive", 8.0))

    def pixels(config: GenerationConfig, kind: str) -> np.ndarray:
        return pairs_of(calm_base, learned, [path], {kind: masks}, 1, config)[0].pixels

    own = replace(CONFIG, sampling=steps, aar_strengths=((KIND, 0.0),))
    off = replace(CONFIG, sampling=replace(steps, aar=AARConfig("off")))
    everywhere = replace(CONFIG, sampling=steps)
    assert np.array_equal(pixels(own, KIND), pixels(off, KIND))
    assert np.array_equal(pixels(own, "thing/stain"), pixels(everywhere, "thing/stain"))
    assert not np.array_equal(pixels(everywhere, KIND), pixels(off, KIND))


def test_two_defects_share_an_image_each_with_a_mask_of_its_own(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path, tmp_path: Path
) -> None:
    config, out = replace(CONFIG, tries_per_pair=50), tmp_path / "out"
    outcome = generated(
        fake_base, learned, dataset, out, 3, config=config, defect_types=["thing/scratch+stain", KIND]
    )
    both = "thing/scratch+stain"
    assert set(outcome.diversity) == {f"{KIND} of {both}", f"thing/stain of {both}", KIND}
    rows = [row for row in outcome.rows if row["defect"] == "scratch+stain"]
    assert len(rows) == 3
    for row in rows:
        labels, mask = np.asarray(Image.open(out / row["labels"])), read_mask(out / row["mask"])
        image, normal = read_photo(out / row["image"]).pixels, read_photo(out / row["normal"]).pixels
        assert row["classes"] == {"1": "scratch", "2": "stain"} and set(np.unique(labels)) == {0, 1, 2}
        assert np.array_equal(labels > 0, mask)
        assert row["masks_from"] == {"thing/scratch": "given", "thing/stain": "given"}
        assert (change(normal, image)[labels == 1] > 0).any() and (
            change(normal, image)[labels == 2] > 0
        ).any()
        assert np.array_equal(image[~mask], normal[~mask])


def test_masks_that_overlap_do_not_share_an_image(
    fake_base: LatentDiffusion, learned: Learned, tmp_path: Path, write_image: WritePhoto
) -> None:
    path = write_image(tmp_path / "n.png", photo(64, 64))
    same = given([rectangle((64, 64), (16, 16, 24, 24))])
    with pytest.raises(TriesExhausted, match="overlapping"):
        pairs_of(fake_base, learned, [path], {KIND: same, "thing/stain": same}, 1)


def test_joined_types_are_told_apart_from_a_type_of_that_name(learned: Learned) -> None:
    assert single_types("thing/scratch+stain", learned) == ["thing/scratch", "thing/stain"]
    learned.anomaly["thing/scratch+stain"] = learned.anomaly[KIND]
    assert single_types("thing/scratch+stain", learned) == ["thing/scratch+stain"]
    with pytest.raises(ValueError, match="names a defect twice"):
        single_types("thing/stain+stain", learned)
    with pytest.raises(ValueError, match="no anomaly embedding for 'thing/dent'"):
        single_types("thing/scratch+dent", learned)


# --- whatever else is made


def test_a_batch_of_eight_masks_equals_eight_single_runs() -> None:
    base = load_base("tiny")
    learned = Learned(base.fingerprint, 128, ("a photo of a {}", "a close photo of the {}"))
    tokens = base.word_vectors("rust stain")
    learned.anomaly[KIND], learned.spatial_encoders = tokens, base.spatial_encoders
    random, jobs = np.random.default_rng(0), []
    for number in range(8):
        known = photo_of(random.integers(80, 160, (128, 128, 3)).astype(np.uint8))
        mask = rectangle((128, 128), (10 + 9 * number, 20 + 5 * number, 12 + number, 30 - number))
        (region,) = regions_of(mask, 128)
        jobs.append((learned.templates[number % 2], region, known, number))

    def made(batch_size: int) -> list[np.ndarray]:
        wanted = [
            RegionJob(KIND, template, region, known, torch.Generator().manual_seed(n), 1.0, 2.5)
            for template, region, known, n in jobs
        ]
        results = RegionMaker(base, learned, batch_size).make(wanted, {KIND: SamplingConfig(steps=3)})
        return [result.values / 127.5 - 1 for result in results]

    for alone, together in zip(made(1), made(8), strict=True):
        np.testing.assert_allclose(alone, together, atol=1e-4)


def test_masks_may_come_as_shapes_to_be_laid(
    fake_base: LatentDiffusion, learned: Learned, tmp_path: Path, write_image: WritePhoto
) -> None:
    path = write_image(tmp_path / "n.png", photo(64, 96))
    shape = rectangle((32, 32), (8, 8, 12, 12))
    learned.mask_placements[KIND] = learned.mask_placements["thing/dent"][:1]
    laid = pairs_of(fake_base, learned, [path], {KIND: lambda n: SourcedMask(shape, "invented")}, 6)
    assert len({pair.mask.tobytes() for pair in laid}) == 6
    assert all(pair.mask.shape == (64, 96) and pair.defects[0].source == "invented" for pair in laid)
