"""Generation end to end on a fake base: counts, manifest, resuming, retries, and what a pair depends on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_sources import given
from PIL import Image

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.dataset.layout import find_dataset, split_pairs
from anomalydiffusion_core.dataset.photos import short_hash
from anomalydiffusion_core.gate.checks import CHECKS
from anomalydiffusion_core.gate.gate import GateConfig
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.drafting import TryNumber
from anomalydiffusion_core.generation.generator import GeneratedPair, PairGenerator
from anomalydiffusion_core.generation.regions import restored, to_pixels
from anomalydiffusion_core.generation.runs import (
    CategoryJob,
    GenerationOutcome,
    GenerationRun,
    generate_all,
    generate_dataset,
    masks_in_folder,
)
from anomalydiffusion_core.masks.invention import TriesExhausted
from anomalydiffusion_core.method.artifact import load_artifact, save_artifact
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.sampling import SamplingConfig
from anomalydiffusion_core.method.templates import PHOTO_TEMPLATES
from anomalydiffusion_core.training.config import DefectConfig, MaskEmbeddingConfig, TrainingConfig
from anomalydiffusion_core.training.jobs import TrainingJob

CONFIG = GenerationConfig(sampling=SamplingConfig(steps=2), gate=GateConfig(("fill",), 0.0))
TRAINING = TrainingConfig(
    64,
    0.5,
    DefectConfig(steps=2, batch_size=2, views_per_pair=1, tokens=2),
    MaskEmbeddingConfig(steps=1, batch_size=2, views_per_pair=1, tokens=2),
)


def three_masks() -> list[np.ndarray]:
    masks = []
    for i in range(3):
        mask = np.zeros((64, 64), bool)
        mask[8 + 9 * i : 20 + 9 * i, 30 - 5 * i : 52 - 3 * i] = True
        masks.append(mask)
    return masks


def normals_of(dataset: Path) -> list[Path]:
    return sorted((dataset / "thing/train/good").iterdir())


def make_pairs(
    base: LatentDiffusion, learned: Learned, dataset: Path, config: GenerationConfig, count: int
) -> list[GeneratedPair]:
    generator = PairGenerator(base, learned, normals_of(dataset), config)
    return list(generator.accepted("thing/scratch", {"thing/scratch": given(three_masks())}, count))


@pytest.fixture
def dataset(dataset: Path) -> Path:
    """The shared dataset with normal photos of tiles, which the fake base's codec keeps, and grain."""
    for number, path in enumerate(normals_of(dataset)):
        random = np.random.default_rng(number)
        tiles = random.integers(90, 160, (8, 8, 3)).repeat(8, 0).repeat(8, 1)
        Image.fromarray((tiles + random.integers(-4, 5, tiles.shape)).astype(np.uint8)).save(path)
    return dataset


@pytest.fixture
def artifact(fake_base: LatentDiffusion, dataset: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_artifact(TrainingJob(fake_base, find_dataset(dataset), TRAINING).run().learned, path)
    return path


def run(
    base: LatentDiffusion,
    artifact: Path,
    dataset: Path,
    count: int,
    out: Path,
    config: GenerationConfig = CONFIG,
) -> GenerationOutcome:
    return generate_dataset(
        GenerationRun(load_artifact(artifact, base.fingerprint), config, base, artifact),
        CategoryJob(
            find_dataset(dataset).categories["thing"],
            {d: {f"thing/{d}": given(three_masks())} for d in ("scratch", "stain")},
        ),
        count,
        out=out,
    )


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


# --- whole runs


def test_a_trained_model_generates_the_asked_number_of_pairs_with_a_manifest_row_each(
    fake_base: LatentDiffusion, artifact: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rows = run(fake_base, artifact, dataset, 3, out).rows
    assert manifest(out) == json.loads(json.dumps(rows))
    assert [(row["image"].rpartition("/")[0], int(Path(row["image"]).stem)) for row in rows] == [
        (f"thing/test/{defect}", i) for defect in ("scratch", "stain") for i in range(3)
    ]
    assert len(list((out / "thing/train/good").iterdir())) == 3
    for row in rows:
        image, mask = np.asarray(Image.open(out / row["image"])), np.asarray(Image.open(out / row["mask"]))
        normal = np.asarray(Image.open(out / row["normal"]))
        assert image.shape == normal.shape == (64, 64, 3)
        assert any(np.array_equal(mask, given * 255) for given in three_masks())
        assert np.array_equal(image[mask == 0], normal[mask == 0])
        assert not np.array_equal(image, normal)
        assert row["template"] in PHOTO_TEMPLATES
        assert row["base_family"] == "fake"
    few_shot = find_dataset(dataset).by_type()
    assert {f"thing/{row['defect']}": row["trained_on"] for row in rows} == {
        name: sorted(short_hash(pair.image) for pair in split_pairs(pairs, 0.5)[0])
        for name, pairs in few_shot.items()
    }


def test_what_was_learned_without_a_spatial_encoder_generates_too(
    fake_base: LatentDiffusion, dataset: Path, tmp_path: Path
) -> None:
    plain = replace(TRAINING.defects, spatial_encoder=False, normalisation="unmasked")
    config = replace(TRAINING, defects=plain, masks=None)
    learned = TrainingJob(fake_base, find_dataset(dataset), config).run().learned
    assert not learned.spatial_encoders
    save_artifact(learned, tmp_path / "plain.safetensors")
    learned = load_artifact(tmp_path / "plain.safetensors", fake_base.fingerprint)
    assert len(make_pairs(fake_base, learned, dataset, CONFIG, 3)) == 3


def test_a_complete_run_repeated_adds_nothing(
    fake_base: LatentDiffusion, artifact: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rows = run(fake_base, artifact, dataset, 2, out).rows
    before = contents(out)
    assert len(run(fake_base, artifact, dataset, 2, out).rows) == len(rows) == 4
    assert contents(out) == before


def test_a_run_continued_equals_a_run_in_one_go(
    fake_base: LatentDiffusion, artifact: Path, dataset: Path, tmp_path: Path
) -> None:
    run(fake_base, artifact, dataset, 1, tmp_path / "parts")
    run(fake_base, artifact, dataset, 5, tmp_path / "parts")
    run(fake_base, artifact, dataset, 5, tmp_path / "once")
    parts, once = contents(tmp_path / "parts"), contents(tmp_path / "once")
    order = {name: rows.splitlines() for name, rows in (("parts", parts.pop("manifest.jsonl")),)}["parts"]
    assert sorted(order) == sorted(once.pop("manifest.jsonl").splitlines())
    assert parts == once


def test_another_seed_is_another_run_and_appends(
    fake_base: LatentDiffusion, artifact: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(fake_base, artifact, dataset, 2, out)
    before = contents(out)
    run(fake_base, artifact, dataset, 2, out, replace(CONFIG, seed=1))
    after = contents(out)
    assert len(manifest(out)) == 8
    assert all(after[name] == data for name, data in before.items() if name != "manifest.jsonl")
    first, second = ({row["image_sha256"] for row in rows} for rows in (manifest(out)[:4], manifest(out)[4:]))
    assert not first & second


def test_when_tries_run_out_the_pairs_accepted_so_far_stay(
    fake_base: LatentDiffusion, artifact: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # photos so noisy that not every change exceeds what the autoencoder loses of them
    monkeypatch.setattr("anomalydiffusion_core.generation.generator.visible", lambda noise: noise)
    for number, path in enumerate(normals_of(dataset)):
        grain = np.random.default_rng(number).integers(0, 256, (64, 64, 3))
        Image.fromarray(grain.astype(np.uint8)).save(path)
    learned, soft = load_artifact(artifact), CONFIG
    fills = [pair.fill for pair in make_pairs(fake_base, learned, dataset, soft, 6)]
    threshold = sorted(fills)[3]
    good = [index for index, value in enumerate(fills) if value >= threshold]
    assert 0 < len(good) < 6, fills
    strict = replace(soft, gate=GateConfig(("fill",), threshold), tries_per_pair=1)
    outcome = run(fake_base, artifact, dataset, 6, tmp_path / "out", strict)
    assert outcome.shortfalls["thing/scratch"].startswith(
        f"Only {len(good)} of 6 pairs of thing/scratch were accepted in 6 tries ({6 - len(good)} unfilled). "
    )
    rows = manifest(tmp_path / "out")
    assert [row["index"] for row in rows if row["defect"] == "scratch"] == good
    assert {row["defect"] for row in rows} == {"scratch", "stain"}  # the others are made all the same
    assert all((tmp_path / "out" / row["image"]).is_file() for row in rows)
    # the first three accepted are the same with room for retries
    retried = make_pairs(fake_base, learned, dataset, replace(strict, tries_per_pair=9), 3)
    assert [pair.number.index for pair in retried] == good[:3]


def test_masks_that_are_never_usable_end_in_an_error_that_says_so(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path
) -> None:
    generator = PairGenerator(fake_base, learned, normals_of(dataset), CONFIG)
    empty = {"thing/scratch": given([np.zeros((64, 64), bool)])}
    with pytest.raises(TriesExhausted, match=r"Only 0 of 2 pairs of thing/scratch .*\d+ empty"):
        list(generator.accepted("thing/scratch", empty, 2))


def test_a_shortfall_says_what_to_change_for_the_most_frequent_reason_and_which_check_it_was(
    fake_base: LatentDiffusion, artifact: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PairGenerator, "judged", lambda self, pair: replace(pair, problems=("implausible",)))
    outcome = run(fake_base, artifact, dataset, 1, tmp_path / "out", replace(CONFIG, tries_per_pair=2))
    assert outcome.shortfalls["thing/scratch"] == (
        "Only 0 of 1 pairs of thing/scratch were accepted in 2 tries (2 implausible). "
        f"{CHECKS['plausibility'].remedy} Where such pairs look right to you, leave the check plausibility "
        "out."
    )


def test_masks_are_moved_onto_the_object_where_most_photos_show_one(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path
) -> None:
    for number, path in enumerate(normals_of(dataset)[:2]):
        photo = np.full((64, 64, 3), 10, np.uint8)
        photo[24:64, 8 + 4 * number : 52] = 180
        Image.fromarray(photo).save(path)
    found = make_pairs(fake_base, learned, dataset, CONFIG, 12)
    assert {pair.normal for pair in found} == {0, 1, 2}
    for pair in found:
        given = three_masks()[pair.number.mask % 3]
        assert pair.mask.sum() == given.sum()
        if pair.normal < 2:
            assert (pair.photo.pixels[..., 0][pair.mask] == 180).mean() >= 0.9
        else:
            assert np.array_equal(pair.mask, given)
    anywhere = make_pairs(fake_base, learned, dataset, replace(CONFIG, foreground="none"), 3)
    assert all(np.array_equal(p.mask, three_masks()[p.number.mask % 3]) for p in anywhere)
    assert any((p.photo.pixels[..., 0][p.mask] == 10).any() for p in anywhere)
    Image.open(normals_of(dataset)[2]).save(normals_of(dataset)[0])  # now most are textures
    assert all(
        np.array_equal(p.mask, three_masks()[p.number.mask % 3])
        for p in make_pairs(fake_base, learned, dataset, CONFIG, 6)
    )


def test_all_types_of_an_artifact_are_generated_with_masks_from_a_folder(
    fake_base: LatentDiffusion, artifact: Path, dataset: Path, tmp_path: Path
) -> None:
    learned = load_artifact(artifact)
    run, photos = GenerationRun(learned, CONFIG, fake_base), find_dataset(dataset)
    masks = masks_in_folder(dataset / "thing/ground_truth", None, learned)
    rows = generate_all(run, photos, 2, out=tmp_path / "out", given=masks).rows
    assert [row["defect"] for row in rows] == ["scratch", "scratch", "stain", "stain"]
    with pytest.raises(ValueError, match="lies inside the dataset"):
        generate_all(run, photos, 2, out=dataset / "x")


def test_a_generator_needs_normal_photos(fake_base: LatentDiffusion, learned: Learned) -> None:
    with pytest.raises(ValueError, match="no normal photos"):
        PairGenerator(fake_base, learned, [], CONFIG)


# --- what a pair depends on


def test_a_pair_is_the_same_whatever_the_batch_size(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path
) -> None:
    learned.templates = PHOTO_TEMPLATES  # of different lengths
    one, three = (
        make_pairs(fake_base, learned, dataset, replace(CONFIG, batch_size=size), 7) for size in (1, 3)
    )
    assert [pair.number.index for pair in one] == [pair.number.index for pair in three] == list(range(7))
    assert len({pair.template for pair in one}) > 2
    for a, b in zip(one, three, strict=True):
        assert (a.template, a.normal) == (b.template, b.normal)
        assert np.array_equal(a.pixels, b.pixels)


def test_a_pair_of_a_diffusers_base_differs_by_at_most_one_grey_level_between_batch_sizes(
    small_base: DiffusersModel, learned: Learned, dataset: Path
) -> None:
    learned.templates = PHOTO_TEMPLATES
    one, four = (
        make_pairs(small_base, learned, dataset, replace(CONFIG, batch_size=size), 4) for size in (1, 4)
    )
    for a, b in zip(one, four, strict=True):
        assert np.abs(a.pixels.astype(int) - b.pixels).max() <= 1
        assert not np.array_equal(a.pixels, a.photo.pixels)


def test_a_pair_is_the_same_whichever_pairs_were_made_before(
    fake_base: LatentDiffusion, learned: Learned, dataset: Path
) -> None:
    generator = PairGenerator(fake_base, learned, normals_of(dataset), CONFIG)
    masks = {"thing/scratch": given(three_masks())}
    whole = list(generator.accepted("thing/scratch", masks, 5))
    later = list(generator.accepted("thing/scratch", masks, 2, start=TryNumber(3, 3)))
    for a, b in zip(whole[3:], later, strict=True):
        assert a.number == b.number
        assert np.array_equal(a.pixels, b.pixels)


def test_gray_photos_give_gray_pixels_at_their_own_size(
    fake_base: LatentDiffusion, learned: Learned, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(90, 160, (80, 100), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "gray.png")
    generator = PairGenerator(fake_base, learned, [tmp_path / "gray.png"], CONFIG)
    pair = next(generator.accepted("thing/stain", {"thing/stain": given(three_masks())}, 1))
    assert pair.pixels.shape == (80, 100, 3)
    assert pair.mask.shape == (80, 100)
    assert (pair.pixels == pair.pixels[..., :1]).all()
    assert np.array_equal(pair.pixels[~pair.mask], np.repeat(pixels[..., None], 3, -1)[~pair.mask])


def test_pixels_are_the_image_from_minus_one_to_one_as_0_to_255() -> None:
    image = torch.tensor([-2.0, -1.0, 0.0, 1.0]).view(1, 2, 2).expand(3, -1, -1)
    expected = np.array([[0, 0], [127.5, 255]], np.float32)
    assert np.array_equal(to_pixels(image, (2, 2)), np.repeat(expected[..., None], 3, -1))


def test_a_decoder_that_gives_no_numbers_is_refused() -> None:
    photo, plain = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.float32)
    broken = np.where(np.arange(4)[:, None, None] == 2, np.nan, plain)
    for reconstruction, generated in ((plain, broken), (broken, plain)):
        with pytest.raises(ValueError, match="no numbers, as half precision can give: run the model or its"):
            restored(photo, reconstruction, generated, 1.0)
