"""Guards evaluation/comparison.py: runs are deterministic, resumed and honest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparisons import CONFIG, SMALL
from PIL import Image
from torch import Tensor, nn

from anomalydiffusion_core.dataset.layout import Pair, find_dataset
from anomalydiffusion_core.evaluation import comparison
from anomalydiffusion_core.evaluation.classifier import ClassifierConfig
from anomalydiffusion_core.evaluation.comparison import Comparison, compare
from anomalydiffusion_core.evaluation.config import ComparisonConfig, ComparisonRun
from anomalydiffusion_core.evaluation.contenders import REAL
from anomalydiffusion_core.evaluation.generation_metrics import PublishedNetworks, published_scores
from anomalydiffusion_core.evaluation.localization import read_images
from anomalydiffusion_core.evaluation.localizer import LocalizerData
from anomalydiffusion_core.evaluation.results import ContenderResult
from anomalydiffusion_core.evaluation.split import split_category
from anomalydiffusion_core.evaluation.tables import write_tables
from anomalydiffusion_core.gate import imagenet
from anomalydiffusion_core.report.shown_pair import GAP, TILE


def test_a_comparison_runs_every_contender_and_seed_and_continues(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = compare({"ours": generated}, real, ["crop-paste", "draem"], ComparisonRun(CONFIG, out))
    runs = first.results
    assert [(r.contender, r.seed) for r in runs] == [
        (name, seed) for seed in range(2) for name in ("ours", REAL, "crop-paste", "draem")
    ]
    assert [r.pairs for r in runs[:4]] == [4, 3, 4, 4]  # equal, but for the real ones
    assert set(runs[0].metrics) == {"scratch", "stain", "all"}
    assert all(0 <= value <= 1 for r in runs for m in r.metrics.values() for value in m.values())
    pictures = list((out / "runs").glob("*.png"))
    assert [len(r.found) for r in runs] == [6] * 4 + [0] * 4  # the first seed's, on every test photo
    assert len(pictures) == 4 and Image.open(pictures[0]).width == 3 * TILE + 2 * GAP
    assert set(first.quality) == {("ours", "thing"), ("crop-paste", "thing"), ("draem", "thing")}
    laid = first.quality["crop-paste", "thing"]
    assert (laid.fill, laid.background, laid.iou) == (1, 0, 1)  # flat red on grain

    def no_training(*arguments: object, **options: object) -> None:
        raise AssertionError("a finished run is read, not repeated")

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "train_localizer", no_training)
        assert (
            compare({"ours": generated}, real, ["crop-paste", "draem"], ComparisonRun(CONFIG, out)) == first
        )
    removed = sorted((out / "runs").glob("*.json"))[0]
    removed.unlink()
    assert (
        compare({"ours": generated}, real, ["crop-paste", "draem"], ComparisonRun(CONFIG, out)) == first
    )  # deterministic


def test_the_real_few_shots_can_train_along_with_every_contender(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluated(config: ComparisonConfig) -> Comparison:
        return compare(
            {"ours": generated}, real, ["draem"], ComparisonRun(replace(config, seeds=1), tmp_path / "out")
        )

    alone, seen, read = evaluated(CONFIG), [], comparison.training_data

    def reading(pairs: list[Pair], normals: tuple[Path, ...], size: int, real: int) -> LocalizerData:
        assert real == 3  # the last three
        seen.append([pair.image for pair in pairs])
        return read(pairs, normals, size, real)

    monkeypatch.setattr(comparison, "training_data", reading)
    both = evaluated(replace(CONFIG, with_real=True))
    assert [run.pairs for run in both.results] == [7, 3, 7]
    few = [p.image for p in split_category(find_dataset(real).categories["thing"], 0.5).few_shot_pairs]
    assert [len(images) for images in seen] == [7, 7]  # the real ones alone are known
    assert all(images[-3:] == few for images in seen)
    assert both.results[1] == alone.results[1] and both.results[0].metrics != alone.results[0].metrics
    assert both.quality == alone.quality  # of generated pairs


def test_types_are_told_apart_where_pairs_have_them(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = ClassifierConfig(size=32, steps=1, batch_size=4, pretrained=False)
    config, out, stages = replace(CONFIG, seeds=1), tmp_path / "out", []

    def evaluated(config: ComparisonConfig) -> list[ContenderResult]:
        return compare(
            {"ours": generated},
            real,
            ["draem"],
            ComparisonRun(config, out, lambda stage, *_: stages.append(stage)),
        ).results

    alone = evaluated(config)

    def no_training(*arguments: object, **options: object) -> None:
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
        compare({"ours": generated}, real, [], ComparisonRun(config, tmp_path / "out"))
    assert not list((tmp_path / "out/runs").iterdir())

    class Pooled(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.adaptive_avg_pool2d(images.float(), 1).flatten(1)

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).abs().flatten(1).mean(1)

    networks = PublishedNetworks(Pooled(), Pooled(), distance)
    monkeypatch.setattr(comparison, "published_networks", lambda: networks)
    found = compare({"ours": generated}, real, [], ComparisonRun(config, tmp_path / "out"))
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


def test_that_imagenets_weights_are_missing_is_said_before_the_long_work(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagenet, "PACKAGES", ("no such package",))
    config = replace(CONFIG, localizer=replace(CONFIG.localizer, pretrained=True))
    with pytest.raises(ValueError, match=r"comfyui-anomalydiffusion\[features\]"):
        compare({"ours": generated}, real, ["draem"], ComparisonRun(config, tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.png"))


def test_the_paper_s_protocol_takes_the_best_checkpoint_on_the_test_photos(
    real: Path, generated: Path, tmp_path: Path
) -> None:
    # so high a rate that the last checkpoint is not the best
    config = replace(CONFIG, localizer=replace(SMALL, steps=20, rate=0.2), seeds=2)
    honest = compare({"ours": generated}, real, [], ComparisonRun(config, tmp_path / "out")).results
    as_paper = replace(config, protocol="paper")
    paper = compare({"ours": generated}, real, [], ComparisonRun(as_paper, tmp_path / "out")).results
    assert {run.protocol for run in paper} == {"paper"}
    for one, other in zip(honest, paper, strict=True):
        assert other.metrics["all"]["pixel_ap"] >= one.metrics["all"]["pixel_ap"]
    assert any(
        o.metrics["all"]["pixel_ap"] > h.metrics["all"]["pixel_ap"]
        for h, o in zip(honest, paper, strict=True)
    )


def test_one_defect_alone_is_compared_but_not_classified(real: Path, generated: Path, tmp_path: Path) -> None:
    classifier = ClassifierConfig(size=32, steps=1, batch_size=4, pretrained=False)
    config = replace(CONFIG, classifier=classifier, seeds=1, defects=("stain",))
    with pytest.raises(ValueError, match="Telling types apart needs two"):
        compare({"ours": generated}, real, ["prn"], ComparisonRun(config, tmp_path / "out"))
    config = replace(config, classifier=None)
    runs = compare({"ours": generated}, real, ["prn"], ComparisonRun(config, tmp_path / "out")).results
    assert [run.pairs for run in runs] == [2, 1, 2] and {run.confusion for run in runs} == {None}
    assert set(runs[0].metrics) == {"stain", "all"}
