"""Evaluation: what trains and what measures stay apart, and runs are deterministic, resumed and honest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from anomalydiffusion_core.dataset.layout import Pair, find_dataset
from anomalydiffusion_core.dataset.photos import read_mask, read_photo, short_hash
from anomalydiffusion_core.evaluation import comparison
from anomalydiffusion_core.evaluation.baselines import BASELINES, extended_anomaly, generate_baseline, perlin
from anomalydiffusion_core.evaluation.classifier import ClassifierConfig
from anomalydiffusion_core.evaluation.comparison import ComparisonConfig, compare
from anomalydiffusion_core.evaluation.dataset_quality import dataset_quality
from anomalydiffusion_core.evaluation.generation_metrics import PublishedNetworks, published_scores
from anomalydiffusion_core.evaluation.localization import bootstrap, measure, read_images, read_test_photos
from anomalydiffusion_core.evaluation.localizer import (
    Localizer,
    LocalizerConfig,
    LocalizerData,
    Predictions,
    focal_loss,
    image_scores,
    train_localizer,
)
from anomalydiffusion_core.evaluation.split import Split, check_apart, split_category
from anomalydiffusion_core.evaluation.tables import write_tables
from anomalydiffusion_core.export.mvtec import read_manifest

SMALL = LocalizerConfig(size=32, width=2, steps=3, batch_size=4)
CONFIG = ComparisonConfig(SMALL, share=0.5, pairs_per_type=2, seeds=2, resamples=3)
Write = Callable[[Path, np.ndarray], Path]


@pytest.fixture
def real(dataset: Path, write_image: Write) -> Path:
    random = np.random.default_rng(7)
    for number in range(2):
        grain = random.integers(90, 160, (64, 64, 3), dtype=np.uint8)
        write_image(dataset / "thing/test/good" / f"{number:03d}.png", grain)
    return dataset


@pytest.fixture
def generated(real: Path, tmp_path: Path) -> Path:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    generate_baseline("prn", split, 3, tmp_path / "generated", 5)
    return tmp_path / "generated"


def test_each_real_photo_either_trains_or_measures(real: Path) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    assert {d: [p.stem for p in pairs] for d, pairs in split.few_shot.items()} == {
        "scratch": ["000", "001"],
        "stain": ["000"],
    }
    assert [(p.defect, p.stem) for p in split.test_pairs] == [
        ("scratch", "002"),
        ("scratch", "003"),
        ("stain", "001"),
        ("stain", "002"),
    ]
    assert len(split.normals) == 3 and len(split.test_normals) == 2
    check_apart(split, [pair.image for pairs in split.few_shot.values() for pair in pairs])


def test_a_category_without_photos_to_measure_on_is_refused(dataset: Path, real: Path) -> None:
    with pytest.raises(ValueError, match="No pair of thing/scratch is left to measure on"):
        split_category(find_dataset(real).categories["thing"], 1.0)
    for folder in ("test", "ground_truth"):
        (dataset / "thing" / folder / "stain").rename(dataset / "thing" / folder / "all")
    with pytest.raises(ValueError, match="A defect of thing is called 'all'"):
        split_category(find_dataset(real).categories["thing"], 0.5)
    shutil.rmtree(dataset / "thing/test/good")
    with pytest.raises(ValueError, match="thing needs normal photos in both train/good and test/good"):
        split_category(find_dataset(real).categories["thing"], 0.5)


def test_the_same_picture_in_another_format_is_still_an_overlap(real: Path, tmp_path: Path) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    copy = tmp_path / "copy.bmp"
    Image.open(split.test_pairs[0].image).save(copy)
    with pytest.raises(ValueError, match=r"copy\.bmp trains and .*scratch/002\.png measures"):
        check_apart(split, [copy])


def test_the_localiser_follows_its_widths_and_keeps_the_size() -> None:
    network = Localizer(4)
    shapes = [tuple(block[0].weight.shape[:2]) for block in network.down]  # type: ignore[index,union-attr]
    assert shapes == [(4, 3), (8, 4), (16, 8), (32, 16), (32, 32), (32, 32)]
    assert network(torch.zeros(2, 3, 64, 96)).shape == (2, 2, 64, 96)


def test_the_focal_loss_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 2.0]], [[1.0, 0.0]]]])  # (1,2,1,2)
    mask = torch.tensor([[[[1, 0]]]])
    p = torch.tensor([torch.sigmoid(torch.tensor(1.0)), torch.sigmoid(torch.tensor(2.0))])
    expected = -((1 - p) ** 2 * p.log()).mean()
    assert focal_loss(logits, mask, 2.0) == pytest.approx(float(expected))
    assert focal_loss(logits, 1 - mask, 2.0) > 3 * expected


def test_the_image_score_is_the_greatest_window_mean() -> None:
    maps = torch.zeros(2, 64, 64)
    maps[0, 20:41, 10:31] = 1
    maps[1, 5, 5] = 1
    assert image_scores(maps).tolist() == pytest.approx([1.0, 1 / 441])


def test_a_localiser_learns_to_find_bright_squares_and_the_same_seed_gives_the_same_one() -> None:
    random = torch.Generator().manual_seed(0)
    normals = torch.randint(90, 130, (8, 3, 32, 32), generator=random).to(torch.uint8)
    images, masks = normals.clone(), torch.zeros(8, 1, 32, 32, dtype=torch.uint8)
    for i in range(8):
        masks[i, :, 2 * i : 2 * i + 10, 3 : 3 + 12] = 1
    images[masks.expand(-1, 3, -1, -1) > 0] = 220
    config = LocalizerConfig(size=32, width=4, steps=60, rate=1e-2, seed=1)
    data, seen = LocalizerData(images, masks, normals), []
    network = train_localizer(data, config, on_checkpoint=lambda n: seen.append(n.training))
    assert seen == [False] * 10 and not network.training
    found = network(images.float() / 127.5 - 1).argmax(1)
    assert (found == masks[:, 0]).float().mean() > 0.95
    again = train_localizer(data, config)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=False))
    with pytest.raises(ValueError, match="there are 8 and 0"):
        train_localizer(LocalizerData(images, masks, normals[:0]), config)
    with pytest.raises(ValueError, match="size 100 is no multiple of 32"):
        train_localizer(data, replace(config, size=100))


def test_perfect_maps_measure_as_perfect_and_intervals_hold_the_figure(real: Path) -> None:
    test = read_test_photos(split_category(find_dataset(real).categories["thing"], 0.5), 32)
    assert test.defects == ["scratch"] * 2 + ["stain"] * 2 + [None] * 2
    truth = torch.from_numpy(test.masks).float()
    perfect = measure(Predictions(truth, image_scores(truth)), test, range(6))
    assert list(vars(perfect).values()) == pytest.approx([1.0] * 7)
    noise = torch.rand(6, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = 0.5 * truth + noise
    found = Predictions(maps, image_scores(maps))
    figures, intervals = measure(found, test, range(6)), bootstrap(found, test, resamples=40)
    assert intervals["pixel_ap"][0] <= figures.pixel_ap <= intervals["pixel_ap"][1]
    assert intervals["pixel_ap"][0] < intervals["pixel_ap"][1]
    assert bootstrap(found, test, resamples=40) == intervals


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_changes_pixels_inside_its_masks_alone_and_continues(
    name: str, real: Path, tmp_path: Path
) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    once, twice = tmp_path / "once", tmp_path / "twice"
    generate_baseline(name, split, 4, once, 3)
    generate_baseline(name, split, 2, twice, 3)
    generate_baseline(name, split, 4, twice, 3)
    normals = {path.name: read_photo(path).pixels for path in (once / "thing/train/good").iterdir()}
    assert len(normals) == 3
    pairs = find_dataset(once).pairs
    assert len(pairs) == 8
    for pair in pairs:
        pixels, mask = read_photo(pair.image).pixels, np.asarray(Image.open(pair.mask)) > 0
        assert mask.any()
        outside = [np.array_equal(pixels[~mask], normal[~mask]) for normal in normals.values()]
        assert sum(outside) >= 1
    if BASELINES[name].typed:
        assert {pair.defect for pair in pairs} == {"scratch", "stain"}
        for a, b in zip(pairs, find_dataset(twice).pairs, strict=True):
            assert a.image.read_bytes() == b.image.read_bytes() and a.mask.read_bytes() == b.mask.read_bytes()


def test_crop_paste_lays_down_real_pixels(real: Path, tmp_path: Path) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    generate_baseline("crop-paste", split, 3, tmp_path / "out", 0)
    for pair in find_dataset(tmp_path / "out").pairs:
        mask = np.asarray(Image.open(pair.mask)) > 0
        assert (read_photo(pair.image).pixels[mask] == (200, 30, 30)).all()  # what the real defects are


def test_perlin_noise_is_zero_on_its_lattice_and_smooth_between() -> None:
    field = perlin(np.random.default_rng(0), 64, (4, 8))
    assert np.abs(field[::16, ::8]).max() < 1e-12
    assert 0.5 < np.abs(field).max() <= 1 + 1e-9
    assert np.abs(np.diff(field, axis=0)).max() < 0.3 and np.abs(np.diff(field, axis=1)).max() < 0.6


def test_an_unknown_baseline_is_told_which_exist(real: Path, tmp_path: Path) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    with pytest.raises(ValueError, match="no baseline 'gan': there are crop-paste, cutpaste, draem, prn"):
        generate_baseline("gan", split, 1, tmp_path / "out", 0)


def test_a_comparison_runs_every_contender_and_seed_and_continues(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = compare({"ours": generated}, real, ["crop-paste", "draem"], out, CONFIG)
    runs = first.runs
    assert [(r.contender, r.seed) for r in runs] == [
        (name, seed) for seed in range(2) for name in ("ours", comparison.REAL, "crop-paste", "draem")
    ]
    assert [r.pairs for r in runs[:4]] == [4, 3, 4, 4]  # equal, but for the real ones
    assert set(runs[0].metrics) == {"scratch", "stain", "all"}
    assert all(0 <= value <= 1 for r in runs for m in r.metrics.values() for value in vars(m).values())
    pictures = list((out / "runs").glob("*.png"))
    assert len(pictures) == 4 and Image.open(pictures[0]).size == (3 * 32, 2 * 32)
    assert set(first.quality) == {("ours", "thing"), ("crop-paste", "thing"), ("draem", "thing")}
    laid = first.quality["crop-paste", "thing"]
    assert (laid.fill, laid.background, laid.iou) == (1, 0, 1)  # flat red on grain

    def no_training(*arguments: object) -> None:
        raise AssertionError("a finished run is read, not repeated")

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "train_localizer", no_training)
        assert compare({"ours": generated}, real, ["crop-paste", "draem"], out, CONFIG) == first
    removed = sorted((out / "runs").glob("*.json"))[0]
    removed.unlink()
    assert compare({"ours": generated}, real, ["crop-paste", "draem"], out, CONFIG) == first  # deterministic


def test_the_real_few_shots_can_train_along_with_every_contender(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluated(config: ComparisonConfig) -> comparison.Comparison:
        return compare({"ours": generated}, real, ["draem"], tmp_path / "out", replace(config, seeds=1))

    alone, seen, read = evaluated(CONFIG), [], comparison.training_data

    def reading(pairs: list[Pair], normals: tuple[Path, ...], size: int) -> LocalizerData:
        seen.append([pair.image for pair in pairs])
        return read(pairs, normals, size)

    monkeypatch.setattr(comparison, "training_data", reading)
    both = evaluated(replace(CONFIG, with_real=True))
    assert [run.pairs for run in both.runs] == [7, 3, 7]
    few = [p.image for p in split_category(find_dataset(real).categories["thing"], 0.5).few_shot_pairs]
    assert [len(images) for images in seen] == [7, 7]  # the real ones alone are known
    assert all(images[-3:] == few for images in seen)
    assert both.runs[1] == alone.runs[1] and both.runs[0].metrics != alone.runs[0].metrics
    assert both.quality == alone.quality  # of generated pairs


def test_types_are_told_apart_where_pairs_have_them(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = ClassifierConfig(size=32, steps=1, batch_size=4, pretrained=False)
    config, out, stages = replace(CONFIG, seeds=1), tmp_path / "out", []

    def evaluated(config: ComparisonConfig) -> list[comparison.ContenderResult]:
        return compare(
            {"ours": generated}, real, ["draem"], out, config, lambda stage, *_: stages.append(stage)
        ).runs

    alone = evaluated(config)

    def no_training(*arguments: object) -> None:
        raise AssertionError("a finished part is read, not repeated")

    monkeypatch.setattr(comparison, "train_localizer", no_training)  # classes are learned beside it
    both = evaluated(replace(config, classifier=classifier))
    assert "classes, ours thing 0" in stages
    found = {run.contender: run.confusion for run in both}
    assert np.sum(found["ours"], 1).tolist() == [2, 2]  # two test photos of each type
    assert found["draem"] is None
    assert [replace(run, confusion=None) for run in both] == alone
    monkeypatch.setattr(comparison, "train_and_classify", no_training)
    assert evaluated(replace(config, classifier=classifier)) == both
    with pytest.raises(AssertionError):
        evaluated(replace(config, classifier=replace(classifier, steps=2)))


def test_the_published_metrics_are_had_before_the_long_work_and_stand_in_the_tables(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline() -> PublishedNetworks:
        raise ValueError("cannot be fetched")

    config = replace(CONFIG, seeds=1, published_metrics=True)
    monkeypatch.setattr(comparison, "published_networks", offline)
    with pytest.raises(ValueError, match="cannot be fetched"):
        compare({"ours": generated}, real, [], tmp_path / "out", config)
    assert not list((tmp_path / "out/runs").iterdir())

    class Pooled(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.adaptive_avg_pool2d(images.float(), 1).flatten(1)

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).abs().flatten(1).mean(1)

    networks = PublishedNetworks(Pooled(), Pooled(), distance)
    monkeypatch.setattr(comparison, "published_networks", lambda: networks)
    found = compare({"ours": generated}, real, [], tmp_path / "out", config)
    scores = found.quality["ours", "thing"].published
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    made = [
        p for d in split.defects for p in find_dataset(generated).pairs if p.defect == d and p.stem < "00002"
    ]
    expected = published_scores(
        *(
            read_images([p.image for p in some], 256)
            for some in (made, split.few_shot_pairs, split.test_pairs)
        ),
        networks,
    )
    assert scores is not None and scores == expected
    page = Path(write_tables(found, config, tmp_path / "out")["html"]).read_text()
    assert f'<td class="n">{scores.ic_lpips:.3f}</td>' in page and "Inception Score" in page


def test_the_paper_s_protocol_takes_the_best_checkpoint_on_the_test_photos(
    real: Path, generated: Path, tmp_path: Path
) -> None:
    # so high a rate that the last checkpoint is not the best
    config = replace(CONFIG, localizer=replace(SMALL, steps=20, rate=0.2), seeds=2)
    honest = compare({"ours": generated}, real, [], tmp_path / "out", config).runs
    as_paper = replace(config, protocol="paper")
    paper = compare({"ours": generated}, real, [], tmp_path / "out", as_paper).runs
    assert {run.protocol for run in paper} == {"paper"}
    for one, other in zip(honest, paper, strict=True):
        assert other.metrics["all"].pixel_ap >= one.metrics["all"].pixel_ap
    assert any(
        o.metrics["all"].pixel_ap > h.metrics["all"].pixel_ap for h, o in zip(honest, paper, strict=True)
    )


def test_what_cannot_be_compared_is_refused(real: Path, generated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="There is no baseline 'gan': there are crop-paste, "):
        compare({"ours": generated}, real, ["draem", "gan"], out, CONFIG)
    assert not (out / "baselines").exists()
    shutil.copytree(generated / "thing/train/good", tmp_path / "empty/thing/train/good")
    with pytest.raises(ValueError, match="empty holds no pairs with usable masks"):
        compare({"ours": tmp_path / "empty"}, real, [], out, CONFIG)
    with pytest.raises(ValueError, match="has 3 pairs of thing/scratch, but 9 are compared: generate more"):
        compare({"ours": generated}, real, [], out, replace(CONFIG, pairs_per_type=9))
    shutil.copy(real / "thing/test/stain/002.png", generated / "thing/test/stain/00000.png")
    with pytest.raises(ValueError, match=r"stain/00000\.png trains and .*stain/002\.png measures"):
        compare({"ours": generated}, real, [], out, CONFIG)
    (generated / "thing/test/stain").rename(generated / "thing/test/dent")
    (generated / "thing/ground_truth/stain").rename(generated / "thing/ground_truth/dent")
    with pytest.raises(ValueError, match="Generated defects dent of thing are not in .* scratch, stain"):
        compare({"ours": generated}, real, [], out, CONFIG)
    (generated / "thing").rename(generated / "bolt")
    with pytest.raises(ValueError, match="Generated category 'bolt' is not in .* which has thing"):
        compare({"ours": generated}, real, [], out, CONFIG)


def test_baselines_of_other_real_photos_are_not_mixed_in(real: Path, tmp_path: Path, generated: Path) -> None:
    out, config = tmp_path / "out", replace(CONFIG, seeds=1)
    first = compare({"ours": generated}, real, ["crop-paste"], out, config)
    fewer = compare(
        {"ours": generated}, real, ["crop-paste"], out, replace(config, share=0.25, pairs_per_type=1)
    )
    assert [run.pairs for run in first.runs] == [4, 3, 4] and [run.pairs for run in fewer.runs] == [2, 2, 2]
    rows = read_manifest(out / "baselines/crop-paste")
    assert len({row["run"] for row in rows}) == 2 and len(rows) == 4 + 2


def test_pairs_made_on_test_photos_are_refused(real: Path, generated: Path, tmp_path: Path) -> None:
    shutil.copy(real / "thing/test/good/001.png", generated / "thing/train/good/00077.png")
    with pytest.raises(ValueError, match=r"00077\.png trains and .*test/good/001\.png measures"):
        compare({"ours": generated}, real, [], tmp_path / "out", CONFIG)
    allowed = replace(CONFIG, seeds=1, allow_overlap=True)
    assert compare({"ours": generated}, real, [], tmp_path / "out", allowed).runs


def test_a_generator_that_was_trained_on_test_photos_is_found_out(
    real: Path, generated: Path, tmp_path: Path
) -> None:
    manifest = generated / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    split = split_category(find_dataset(real).categories["thing"], 0.5)

    def trained_on(photo: Path) -> None:
        last = {**rows[-1], "trained_on": [short_hash(photo)]}
        manifest.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:-1], last]))

    one = replace(CONFIG, seeds=1)
    trained_on(split.few_shot_pairs[0].image)
    assert compare({"ours": generated}, real, [], tmp_path / "out", one).runs
    trained_on(split.test_pairs[0].image)
    for folder in (generated, generated / "thing"):  # whose manifest lies above it
        with pytest.raises(
            ValueError, match=r"generated.* comes from .* trained on .*/scratch/.*: give the share"
        ):
            compare({"ours": folder}, real, [], tmp_path / "out", one)
    allowed = replace(one, allow_overlap=True)
    assert compare({"ours": generated}, real, [], tmp_path / "out", allowed).runs


def test_pairs_whose_normal_photo_is_gone_or_of_another_size_are_measured_without_it(
    real: Path, generated: Path, tmp_path: Path
) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    pairs = list(find_dataset(generated).pairs)
    assert (
        dataset_quality(generated, pairs, split).fill
        == dataset_quality(generated / "thing", pairs, split).fill
    )
    for row in read_manifest(generated):
        Image.new("RGB", (96, 96)).save(generated / row["normal"])
    assert dataset_quality(generated, pairs, split).fill is None
    shutil.rmtree(generated / "thing/train")
    assert dataset_quality(generated, pairs, split).fill is None


def test_prn_lays_defects_on_the_object_also_where_one_photo_hides_the_ground(
    real: Path, tmp_path: Path, write_image: Write
) -> None:
    ground = np.full((64, 64, 3), 200, np.uint8)
    for number, box in enumerate((np.s_[8:40, 10:50], np.s_[:, 20:60], np.s_[4:, 2:])):
        photo = ground.copy()
        photo[box] = 40
        write_image(real / "thing/train/good" / f"{number:03d}.png", photo)
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    assert len(split.normals) == 3
    rows = generate_baseline("prn", split, 12, tmp_path / "prn", 0)
    assert {row["normal"] for row in rows} == {f"thing/train/good/{i:05d}.png" for i in range(3)}
    for row in rows:
        normal = read_photo(tmp_path / "prn" / row["normal"]).pixels[..., 0]
        mask = read_mask(tmp_path / "prn" / row["mask"])
        assert (normal[mask] == 40).mean() > 0.85


def test_two_contenders_of_one_name_are_refused(real: Path, generated: Path, tmp_path: Path) -> None:
    for name, against in (("draem", ["draem"]), ("ours", ["prn", "prn"])):
        with pytest.raises(ValueError, match="There are two contenders '(draem|prn)'"):
            compare({name: generated}, real, against, tmp_path / "out", CONFIG)


def test_one_defect_alone_is_compared_but_not_classified(real: Path, generated: Path, tmp_path: Path) -> None:
    classifier = ClassifierConfig(size=32, steps=1, batch_size=4, pretrained=False)
    config = replace(CONFIG, classifier=classifier, seeds=1, defects=("stain",))
    with pytest.raises(ValueError, match="Telling types apart needs two"):
        compare({"ours": generated}, real, ["prn"], tmp_path / "out", config)
    config = replace(config, classifier=None)
    runs = compare({"ours": generated}, real, ["prn"], tmp_path / "out", config).runs
    assert [run.pairs for run in runs] == [2, 1, 2] and {run.confusion for run in runs} == {None}
    assert set(runs[0].metrics) == {"stain", "all"}


def test_thin_defects_are_turned_and_mirrored_too() -> None:
    normal, real = np.full((64, 64, 3), 120, np.uint8), np.full((64, 64, 3), 30, np.uint8)
    line = np.zeros((64, 64), bool)
    line[10:30, 20] = True
    widths = set()
    for seed in range(40):
        _, mask = extended_anomaly(np.random.default_rng(seed), normal, [(real, line)], None)
        assert mask.any()
        widths.add(int(np.ptp(np.nonzero(mask)[1])))
    assert len(widths) > 5  # an upright line alone has one


def test_a_moved_or_renamed_photo_is_another_run(real: Path, generated: Path, tmp_path: Path) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    contender = comparison.Contender("ours", {"thing": list(find_dataset(generated).pairs)})

    def identity(changed: Split, config: ComparisonConfig = CONFIG) -> str:
        return comparison._identity(contender, changed, 0, config)

    first, last = split.normals[:-1], split.normals[-1:]
    moved = replace(split, normals=first, test_normals=(*last, *split.test_normals))
    renamed = replace(split, test_pairs=tuple(replace(p, defect="dent") for p in split.test_pairs))
    fewer = replace(split, normals=first)
    found = {identity(s) for s in (split, moved, renamed, fewer)} | {
        identity(split, replace(CONFIG, resamples=9))
    }
    assert len(found) == 5 and identity(split) in found


def test_categories_without_the_defects_asked_for_are_left_out(
    real: Path, tmp_path: Path, generated: Path
) -> None:
    shutil.copytree(real / "thing", real / "bolt")
    for folder in ("test", "ground_truth"):
        (real / "bolt" / folder / "scratch").rename(real / "bolt" / folder / "dent")
    shutil.copytree(generated / "thing", generated / "bolt")
    for folder in ("test", "ground_truth"):
        (generated / "bolt" / folder / "scratch").rename(generated / "bolt" / folder / "dent")
    config = replace(CONFIG, seeds=1, defects=("scratch",))
    found = compare({"ours": generated}, real, [], tmp_path / "out", config)
    assert {run.category for run in found.runs} == {"thing"}


@pytest.mark.parametrize("name", ["crop-paste", "prn"])
def test_a_defect_larger_than_the_photo_is_shrunk(name: str) -> None:
    pixels, mask = np.full((200, 200, 3), 250, np.uint8), np.zeros((200, 200), bool)
    mask[10:190, 10:30] = mask[170:190, 10:190] = True  # an L
    normal = np.full((64, 50, 3), 90, np.uint8)
    for seed in range(5):
        made, marked = BASELINES[name].method(np.random.default_rng(seed), normal, [(pixels, mask)], None)
        assert made.shape == normal.shape and 0 < marked.sum() < marked.size
        assert (made[~marked] == 90).all()


def test_a_damaged_result_is_named(real: Path, generated: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, seeds=1)
    compare({"ours": generated}, real, [], tmp_path / "out", config)
    damaged = sorted((tmp_path / "out" / "runs").glob("*.json"))[0]
    damaged.write_text("{}")
    with pytest.raises(ValueError, match=rf"{damaged.name} is damaged .*: remove it"):
        compare({"ours": generated}, real, [], tmp_path / "out", config)
