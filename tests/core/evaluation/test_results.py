"""Guards evaluation/results.py: what a result depends on, and the file that keeps it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from comparisons import CONFIG

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.evaluation import classifier, comparison, detectors, localizer, metrics
from anomalydiffusion_core.evaluation.classifier import ClassifierConfig
from anomalydiffusion_core.evaluation.comparison import compare
from anomalydiffusion_core.evaluation.config import ComparisonConfig, ComparisonRun
from anomalydiffusion_core.evaluation.contenders import Contender
from anomalydiffusion_core.evaluation.localization import read_test_photos
from anomalydiffusion_core.evaluation.results import ContenderResult, Trial, read_result, write_result
from anomalydiffusion_core.evaluation.split import Split, split_category


def test_a_moved_or_renamed_photo_is_another_run(real: Path, generated: Path, tmp_path: Path) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    test = read_test_photos(split, 32)
    contender = Contender("ours", {"thing": list(find_dataset(generated).pairs)})

    def identity(changed: Split, config: ComparisonConfig = CONFIG) -> str:
        return Trial(contender, changed, test, 0).identity(config)

    first, last = split.normals[:-1], split.normals[-1:]
    moved = replace(split, normals=first, test_normals=(*last, *split.test_normals))
    renamed = replace(split, test_pairs=tuple(replace(p, defect="dent") for p in split.test_pairs))
    fewer = replace(split, normals=first)
    found = {identity(s) for s in (split, moved, renamed, fewer)} | {
        identity(split, replace(CONFIG, resamples=9))
    }
    assert len(found) == 5 and identity(split) in found


def test_a_damaged_result_is_named(real: Path, generated: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, seeds=1)
    compare({"ours": generated}, real, [], ComparisonRun(config, tmp_path / "out"))
    damaged = sorted((tmp_path / "out" / "runs").glob("*.json"))[0]
    damaged.write_text("{}")
    with pytest.raises(ValueError, match=rf"{damaged.name} is damaged .*: remove it"):
        compare({"ours": generated}, real, [], ComparisonRun(config, tmp_path / "out"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was trained, one entry a network."""
    networks: list[str] = []
    for name in ("train_localizer", "train_and_classify"):

        def training(
            *arguments: Any, name: str = name, original: Any = getattr(comparison, name), **options: Any
        ) -> Any:
            networks.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(comparison, name, training)
    return networks


def test_results_depend_on_the_methods_that_made_them_and_not_on_the_package_s_version(
    real: Path, generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    classes = ClassifierConfig(size=32, steps=1, batch_size=4, pretrained=False)
    run = ComparisonRun(replace(CONFIG, seeds=1, classifier=classes), tmp_path / "out")

    def newly_trained() -> list[str]:
        trained.clear()
        compare({"ours": generated}, real, [], run)
        return sorted(trained)

    both = ["train_and_classify"] * 2 + ["train_localizer"] * 2  # our pairs, and the real ones alone
    assert newly_trained() == both
    for module in [
        module for name, module in sys.modules.items() if name.startswith("anomalydiffusion_core")
    ]:
        if hasattr(module, "__version__"):
            monkeypatch.setattr(module, "__version__", "99.0.0")
    assert newly_trained() == []
    monkeypatch.setattr(localizer, "METHOD", "localiser/other")
    assert newly_trained() == ["train_localizer"] * 2
    monkeypatch.setattr(metrics, "METHOD", "metrics/other")
    assert newly_trained() == ["train_localizer"] * 2
    monkeypatch.setattr(classifier, "METHOD", "classifier/other")
    assert newly_trained() == ["train_and_classify"] * 2
    monkeypatch.setattr(detectors, "METHOD", "detectors/other")  # none takes part
    assert newly_trained() == []


def test_a_detector_s_result_depends_on_the_detectors_method_and_not_on_the_localiser_s(
    real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_category(find_dataset(real).categories["thing"], 0.5)
    trial = Trial(
        Contender("padim (anomalib)", {"thing": []}, detector="padim"), split, read_test_photos(split, 32), 0
    )
    identity = trial.identity(CONFIG)
    monkeypatch.setattr(localizer, "METHOD", "localiser/other")
    assert trial.identity(CONFIG) == identity
    monkeypatch.setattr(detectors, "METHOD", "detectors/other")
    assert trial.identity(CONFIG) != identity


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = ContenderResult(
        "0123", "ours", "thing", 1, "honest", 4, {"all": {"pro": 0.25}}, {"pro": (0.125, 0.5)}, [1.0, 0.5],
        confusion=[[2, 0], [1, 1]], calibrated={"ours": (0.5, 0.75)},
    )  # fmt: skip
    write_result(result, tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == result
