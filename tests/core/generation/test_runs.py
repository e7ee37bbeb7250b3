"""Runs: budgets kept to the try, shortfalls told, rows that say what made a pair, parts equal the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mask_sources import given
from PIL import Image

from anomalydiffusion_core import __version__
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.photos import read_mask, read_photo, short_hash
from anomalydiffusion_core.dataset.windows import regions_of
from anomalydiffusion_core.gate.checks import CHECKS, Scores
from anomalydiffusion_core.gate.gate import Gate, GateConfig
from anomalydiffusion_core.gate.scores import component_fills, contrast, seam
from anomalydiffusion_core.generation import generator as generation
from anomalydiffusion_core.generation import output
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.generator import PairGenerator
from anomalydiffusion_core.generation.regions import RegionJob, RegionMaker, in_window, stitched
from anomalydiffusion_core.generation.runs import (
    GenerationOutcome,
    GenerationRun,
    generate_all,
    masks_in_folder,
)
from anomalydiffusion_core.masks import invention
from anomalydiffusion_core.masks.invention import TriesExhausted
from anomalydiffusion_core.masks.sources import MaskSource, SourcedMask
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.sampling import SamplingConfig, image_generator

KIND, OTHER, MIXED = "thing/scratch", "thing/stain", "thing/scratch+stain"
ALIKE = 86.0  # grey levels
CONFIG = GenerationConfig(
    SamplingConfig(steps=2, guidance=2.0), gate=GateConfig((), 0.0), foreground="none", tries_per_pair=3
)
NEVER = replace(CONFIG, gate=GateConfig(("fill",), 1.01))


def box(top: int, left: int, height: int = 9, width: int = 9) -> np.ndarray:
    mask = np.zeros((64, 64), bool)
    mask[top : top + height, left : left + width] = True
    return mask


BOX = given([box(20, 20)])
EMPTY = np.zeros((64, 64), bool)


@pytest.fixture
def normals(dataset: Path) -> list[Path]:
    return sorted((dataset / "thing/train/good").iterdir())


@pytest.fixture
def calibrated(learned: Learned, dataset: Path) -> Learned:
    """The model, as if all pairs of the dataset had trained it: its gates measure by them."""
    for name, pairs in find_dataset(dataset).by_type().items():
        learned.remember(name, [short_hash(pair.image) for pair in pairs])
    return learned


@pytest.fixture
def generate(
    fake_base: LatentDiffusion, calibrated: Learned, dataset: Path, tmp_path: Path
) -> Callable[..., GenerationOutcome]:
    """Runs `generate_all` into a folder; masks are those of the dataset unless given."""

    def run(out: Path, count: int, *types: str, config: GenerationConfig = CONFIG, **more: Any) -> Any:
        kept = more.pop("keep_rejected", False)
        settings = GenerationRun(more.pop("learned", calibrated), config, fake_base, keep_rejected=kept)
        folder, names = more.pop("mask_folder", dataset / "thing/ground_truth"), list(types)
        given = masks_in_folder(folder, names, settings.learned) if folder else None
        return generate_all(
            settings, find_dataset(dataset), count, out=out, defect_types=names, given=given, **more
        )

    return run


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    """Every file's bytes, the manifest's lines in the order of their text."""
    files = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    return {
        name: b"\n".join(sorted(data.splitlines())) if name.endswith("jsonl") else data
        for name, data in files.items()
    }


# --- budgets and shortfalls


@pytest.mark.parametrize("batch", [1, 4, 5, 16])
def test_a_budget_is_spent_to_the_try_and_unusable_masks_cost_none(
    fake_base: LatentDiffusion, learned: Learned, normals: list[Path], batch: int
) -> None:
    config, rejected, reports = replace(NEVER, batch_size=batch), [], []
    generator = PairGenerator(fake_base, learned, normals, config)
    every_second = {KIND: given([box(20, 20), EMPTY])}
    with pytest.raises(TriesExhausted) as shortfall:
        list(
            generator.accepted(
                KIND,
                every_second,
                2,
                on_pair=lambda *done: reports.append(done),
                on_rejected=rejected.append,
            )
        )
    assert [pair.number.index for pair in rejected] == [0, 1, 2, 3, 4, 5]
    assert [pair.number.mask for pair in rejected] == [0, 2, 4, 6, 8, 10]
    assert reports[-1] == (0, 6) and len(reports) == 6 // min(batch, 2)
    assert "were accepted in 6 tries (6 unfilled, 5 empty). " in str(shortfall.value)


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_exactly_the_asked_number_is_accepted(
    fake_base: LatentDiffusion, learned: Learned, normals: list[Path], batch: int
) -> None:
    generator = PairGenerator(fake_base, learned, normals, replace(CONFIG, batch_size=batch))
    assert [pair.number.index for pair in generator.accepted(KIND, {KIND: BOX}, 5)] == [0, 1, 2, 3, 4]


def test_no_more_pairs_are_made_than_are_missing(
    fake_base: LatentDiffusion, learned: Learned, normals: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, made = PairGenerator(fake_base, learned, normals, replace(CONFIG, batch_size=4)), []
    make = generator.make
    monkeypatch.setattr(generator, "make", lambda *a: made.append(len(a[1])) or make(*a))
    assert len(list(generator.accepted(KIND, {KIND: BOX}, 6))) == 6
    assert made == [4, 2]


def test_a_shortfall_counts_every_check_that_failed_and_nothing_is_written(
    generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated_gate = generation.calibrated_gate

    def out_of_reach(*arguments: Any) -> Gate:
        gate = calibrated_gate(*arguments)
        gate.limits = Scores(dict(zip(CHECKS, (1.01, 1.01, -1.0, -1.0, 1e9, -1.0, 1e9), strict=True)))
        return gate

    monkeypatch.setattr(generation, "calibrated_gate", out_of_reach)
    outcome = generate(tmp_path / "out", 2, KIND, OTHER, config=replace(CONFIG, gate=GateConfig()))
    for name in (KIND, OTHER):
        start, _, rest = outcome.shortfalls[name].partition("(")
        assert start == f"Only 0 of 2 pairs of {name} were accepted in 6 tries "
        counts = rest.partition(")")[0].split(", ")
        words = [check.problem for name, check in CHECKS.items() if name != "shape"]
        assert sorted(counts) == sorted(f"6 {word}" for word in words)
    assert outcome.rows == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize("foreground", ["auto", "none"])
def test_a_source_of_empty_masks_is_told(
    fake_base: LatentDiffusion, learned: Learned, normals: list[Path], placed: bool, foreground: str
) -> None:
    for path in normals:
        part = np.full((64, 64, 3), 10, np.uint8)
        part[12:52, 12:52] = 180
        Image.fromarray(part).save(path)
    learned.mask_placements[KIND] = learned.mask_placements["thing/dent"]
    generator = PairGenerator(fake_base, learned, normals, replace(CONFIG, foreground=foreground))
    assert (generator.drafter.find_object is None) == (foreground == "none")
    with pytest.raises(TriesExhausted, match=r"Only 0 of 2 pairs .* in 0 tries \(\d+ empty\)"):
        list(generator.accepted(KIND, {KIND: given([EMPTY], placed)}, 2))


@pytest.mark.parametrize("batch", [1, 4])
def test_when_masks_run_out_what_they_sufficed_for_is_made(
    fake_base: LatentDiffusion, learned: Learned, normals: list[Path], batch: int
) -> None:
    def three(number: int) -> SourcedMask:
        if number > 2:
            raise TriesExhausted("Only 3 masks were usable.")
        return SourcedMask(box(20, 20 + number), "invented", placed=True)

    generator, made = PairGenerator(fake_base, learned, normals, replace(CONFIG, batch_size=batch)), []
    with pytest.raises(TriesExhausted, match="Only 3 masks were usable"):
        for pair in generator.accepted(KIND, {KIND: three}, 5):
            made.append(pair.number.index)
    assert made == [0, 1, 2]


def test_photos_without_an_object_among_others_are_left_out_and_counted(
    fake_base: LatentDiffusion, learned: Learned, normals: list[Path]
) -> None:
    for number, path in enumerate(normals):
        part = np.full((64, 64, 3), 10, np.uint8)
        part[12:52, 12:52] = 180 if number else 10
        Image.fromarray(part).save(path)
    config = replace(NEVER, foreground="auto")
    generator, rejected = PairGenerator(fake_base, learned, normals, config), []
    with pytest.raises(TriesExhausted, match=r"in 6 tries \(6 unfilled, [23] no object\)"):
        list(generator.accepted(KIND, {KIND: BOX}, 2, on_rejected=rejected.append))
    assert {pair.normal for pair in rejected} == {1, 2}


# --- rows


def test_a_row_says_what_made_its_pair_and_what_it_scores(generate: Any, tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        gate=GateConfig(("fill", "contrast"), 0.2),
        vary_strength=0.2,
        vary_guidance=0.3,
        feather=2.0,
        softest=4.0,
        tries_per_pair=50,
    )
    out = tmp_path / "out"
    generate(out, 3, KIND, config=config, keep_rejected=True)
    rows = manifest(out)
    rejected = manifest(out / "rejected") if (out / "rejected").exists() else []
    assert len(rows) == 3
    for row in rows + rejected:
        root = out / "rejected" if "rejected" in row else out
        image, mask = read_photo(root / row["image"]).pixels, read_mask(root / row["mask"])
        normal = read_photo(out / row["normal"]).pixels
        scores, limits = row["scores"], row["thresholds"]
        fills = component_fills(normal, image, mask, row["noise"])
        assert scores["fill"] == pytest.approx(min(fills), abs=0.02)  # of values that are no integers yet
        assert scores["contrast"] == pytest.approx(contrast(image, mask), abs=1e-4)
        assert scores["seam"] == pytest.approx(seam(image, mask), abs=1e-4)
        assert limits.keys() == set(CHECKS) and scores.keys() == {*CHECKS} - {"shape"}  # masks were given
        good = scores["fill"] >= limits["fill"] and scores["contrast"] >= limits["contrast"]
        assert good == ("rejected" not in row) and limits["fill"] >= 0.2
        assert row["backbone"] == generation.find_backbone(abs, "fake").name and row["masks_from"] == {
            KIND: "given"
        }
        assert 0.8 <= row["strength"] <= 1.2 and 0.7 <= row["guidance"] <= 1.3  # from a real defect
        assert row["feather"] in (2.0, 4.0) and row["config"]["gate"]["checks"] == ["fill", "contrast"]
    assert len({row["strength"] for row in rows}) == len({row["guidance"] for row in rows}) == 3


def test_attention_is_shown_for_so_many_pairs_as_asked(generate: Any, tmp_path: Path) -> None:
    config = replace(CONFIG, attention_maps=2)
    for name, counts in (("once", (5,)), ("parts", (1, 3, 5))):
        for count in counts:
            generate(tmp_path / name, count, KIND, config=config)
        shown = [row["index"] for row in manifest(tmp_path / name) if "attention" in row]
        assert shown == [0, 1]
    assert contents(tmp_path / "once") == contents(tmp_path / "parts")
    plain = generate(tmp_path / "plain", 5, KIND).rows
    assert not any("attention" in row for row in plain)
    assert [row["image_sha256"] for row in plain] == [
        row["image_sha256"] for row in manifest(tmp_path / "once")
    ]


# --- parts and wholes


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates that take what is alike to so many grey levels for duplicates."""
    calibrated_gate = generation.calibrated_gate

    def gate(*arguments: Any) -> Gate:
        gate = calibrated_gate(*arguments)
        gate.limits = Scores({"duplicate": ALIKE})
        return gate

    monkeypatch.setattr(generation, "calibrated_gate", gate)


@pytest.mark.usefixtures("picky")
@pytest.mark.parametrize("types", [[KIND], [MIXED], [KIND, MIXED], [MIXED, KIND]])
def test_a_run_in_parts_equals_a_run_in_one_go_when_duplicates_are_left_out(
    generate: Any, tmp_path: Path, types: list[str]
) -> None:
    more = {
        "config": replace(CONFIG, gate=GateConfig(("duplicate",), 0.0), tries_per_pair=20, start="mixed"),
        "mask_folder": None,
        "weights": {"real": 1.0},
    }
    for name, calls in (("once", [(4, types)]), ("parts", [(1, types), (2, types[:1]), (4, types)])):
        for count, chosen in calls:
            assert not generate(tmp_path / name, count, *chosen, **more).shortfalls
    for name in types:
        tried = [row["index"] for row in manifest(tmp_path / "once") if row["defect"] == name.split("/")[1]]
        assert len(tried) == 4 and max(tried) > 3, tried  # some were left out
    assert contents(tmp_path / "once") == contents(tmp_path / "parts")


def test_masks_that_are_given_are_not_left_out_without_a_word(generate: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="Masks were given, but the mask sources leave them out: add given=1"
    ):
        generate(tmp_path / "out", 1, KIND, weights={"procedural": 1.0})
    assert not (tmp_path / "out").exists()


def test_a_run_that_goes_on_invents_no_mask_again(
    generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invented: list[int] = []

    def shapes(_base: Any, _learned: Any, _type: str, indices: list[int], **_: Any) -> list[np.ndarray]:
        invented.extend(indices)
        return [box(5 + i, 10, 9, 5 + i % 7) if i % 3 else EMPTY for i in indices]

    monkeypatch.setattr(invention, "invent_shapes", shapes)
    for sources in ({"invented": 1.0}, {"invented": 2.0, "procedural": 1.0}):
        once, parts = (tmp_path / f"{name}{len(sources)}" for name in ("once", "parts"))
        generate(once, 18, KIND, mask_folder=None, weights=sources)
        generate(parts, 15, KIND, mask_folder=None, weights=sources)
        invented.clear()
        generate(parts, 18, KIND, mask_folder=None, weights=sources)
        assert min(invented) >= 8  # 15 or so masks took the first two or three batches of eight
        assert contents(once) == contents(parts)


def test_each_part_of_a_mixed_pair_looks_like_its_own_type(
    calm_base: LatentDiffusion, learned: Learned, normals: list[Path]
) -> None:
    masks: dict[str, MaskSource] = {KIND: given([box(4, 6)]), OTHER: given([box(40, 38, 12, 7)])}
    config = replace(CONFIG, vary_strength=0.3, vary_guidance=0.3, feather=0.0)
    pairs = list(PairGenerator(calm_base, learned, normals, config).accepted(MIXED, masks, 3))
    maker = RegionMaker(calm_base, learned, 1)
    for pair in pairs:
        assert [part.defect_type for part in pair.defects] == [KIND, OTHER]
        assert np.array_equal(pair.mask, pair.defects[0].mask | pair.defects[1].mask)
        assert not (pair.defects[0].mask & pair.defects[1].mask).any()
        expected = pair.photo
        for part in pair.defects:
            (region,) = regions_of(part.mask, 64)
            job = RegionJob(
                part.defect_type,
                pair.template,
                region,
                in_window(pair.photo, region.window),
                image_generator(0, pair.number.index, f"{part.defect_type} region 0"),
                pair.strength,
                pair.guidance,
            )
            (made,) = maker.make([job], {part.defect_type: CONFIG.sampling})
            expected = stitched(expected, made, 0.0)
            with_other = replace(
                job,
                defect_type=OTHER if part.defect_type == KIND else KIND,
                generator=image_generator(0, pair.number.index, f"{part.defect_type} region 0"),
            )
            (other,) = maker.make([with_other], {with_other.defect_type: CONFIG.sampling})
            assert not np.allclose(other.values[part.mask], made.values[part.mask])
        assert np.array_equal(pair.pixels, expected.pixels)


def test_a_varied_pair_is_the_plain_one_with_scaled_tokens_and_guidance(
    calm_base: LatentDiffusion, learned: Learned, normals: list[Path]
) -> None:
    varied = replace(CONFIG, vary_strength=0.4, vary_guidance=0.4)
    for pair in PairGenerator(calm_base, learned, normals, varied).try_indices(KIND, range(3), BOX):
        tokens = {name: e_a * pair.strength for name, e_a in learned.anomaly[KIND].items()}
        scaled = replace(learned, anomaly={KIND: tokens})
        sampling = replace(CONFIG.sampling, guidance=pair.guidance)
        plain = PairGenerator(calm_base, scaled, normals, replace(CONFIG, sampling=sampling))
        (same,) = plain.try_indices(KIND, range(pair.number.index, pair.number.index + 1), BOX)
        assert (same.template, same.normal) == (pair.template, pair.normal)
        assert same.strength == 1 and same.guidance == pair.guidance
        assert np.array_equal(same.pixels, pair.pixels)
        unscaled = PairGenerator(calm_base, learned, normals, CONFIG)
        (other,) = unscaled.try_indices(KIND, range(pair.number.index, pair.number.index + 1), BOX)
        assert not np.array_equal(other.pixels, pair.pixels)


# --- versions


def test_what_continues_a_run_is_the_method_s_version_and_not_the_package_s(
    generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = generate(out, 1, KIND).rows
    assert {(row["method_version"], row["package_version"]) for row in first} == {
        (output.METHOD, __version__)
    }
    monkeypatch.setattr(output, "__version__", "99.0")
    second = generate(out, 2, KIND).rows
    assert second[0] == json.loads(json.dumps(first[0])) and [row["index"] for row in second] == [0, 1]
    assert {row["run"] for row in second} == {first[0]["run"]} and second[1]["package_version"] == "99.0"
    monkeypatch.setattr(output, "METHOD", "generation/0")
    other = generate(out, 1, KIND).rows
    assert len(manifest(out)) == 3 and other[0]["run"] != first[0]["run"] and other[0]["index"] == 0
