"""The comparison: one localiser for each contender, category and seed, on equal numbers of pairs; every run's
result is a file of its own, so that a repeated call continues.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from PIL import Image

from .. import __version__
from ..dataset.layout import Dataset, Pair, find_dataset
from ..dataset.photos import file_hash, write_new, write_png
from ..method.progress import OnStage
from .baselines import find_baseline, generate_baseline
from .classifier import ClassifierConfig, new_resnet, train_and_classify
from .dataset_quality import DatasetQuality, dataset_quality
from .detectors import calibrated_f1, detect, new_detector
from .generation_metrics import published_networks
from .localization import (
    Localization,
    TestPhotos,
    bootstrap,
    measure,
    measure_by_defect,
    precision_curve,
    predictions_beside_truth,
    read_test_photos,
    training_data,
)
from .localizer import Localizer, LocalizerConfig, LocalizerData, Predictions, predict, train_localizer
from .published import find_generated
from .split import Split, check_apart, check_categories, split_category

REAL = "real few shots"
Protocol = Literal["honest", "paper"]
Result = TypeVar("Result")


@dataclass(frozen=True)
class ComparisonConfig:
    """What is compared, and how much of it."""

    localizer: LocalizerConfig = LocalizerConfig()
    classifier: ClassifierConfig | None = None  # None: types are not told apart
    share: float = 1 / 3  # of each type's real pairs: those that the generator was trained on
    pairs_per_type: int = 20  # the same for every contender
    seeds: int = 3
    protocol: Protocol = "honest"  # paper: the best of ten checkpoints on the test photos, as printed tables
    published_metrics: bool = False  # Inception Score, KID and IC-LPIPS, which need their networks' weights
    detectors: tuple[str, ...] = ()  # anomalib's names
    resamples: int = 200  # of test photos, for the intervals
    allow_overlap: bool = False
    with_real: bool = False  # every contender's pairs together with the few real ones
    defects: tuple[str, ...] = ()  # only these; none: all


@dataclass(frozen=True)
class ContenderResult:
    """One localiser's result on one category; `identity` hashes all that it depends on."""

    identity: str
    contender: str
    category: str
    seed: int
    protocol: Protocol
    pairs: int
    metrics: dict[str, Localization]  # by defect, and "all"
    intervals: dict[str, tuple[float, float]]  # of "all", over test photos
    precision: list[float]  # of pixels, where recall reaches 0, 0.01, ... 1
    # true types in rows, found ones in columns, both in alphabetical order
    confusion: list[list[int]] | None = None
    # of a detector: F1 of pixels and of photos at thresholds that were calibrated on the contender's pairs
    calibrated: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class Contender:
    """Where the training pairs of one method lie, by category; `root` is that of generated ones.

    A `detector` of anomalib trains on none; the others' pairs, by name and category, calibrate it.
    """

    name: str
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    root: Path | None = None
    normals: dict[str, list[Path]] = field(default_factory=dict)  # that the pairs were made on
    detector: str | None = None
    calibrations: dict[str, dict[str, list[Pair]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """All localisers' results, and what can be said of generated pairs by themselves."""

    runs: list[ContenderResult]
    quality: dict[tuple[str, str], DatasetQuality]  # by contender and category


def named_datasets(given: list[str]) -> dict[str, Path]:
    """`name=folder` or just a folder, whose own name it then takes. Raises ValueError where two are alike."""
    found: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        named = bool(equals) and not Path(text).is_dir()  # a folder may have such a name
        path = Path(folder if named else text)
        name = name if named else path.resolve().name
        if name in found or name == REAL:
            raise ValueError(f"The name {name!r} is taken: give each dataset its own, as name=folder.")
        found[name] = path
    return found


def compare(
    generated: dict[str, Path],
    real: Path,
    against: list[str],
    out: Path,
    config: ComparisonConfig,
    on_stage: OnStage = lambda *_: None,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Evaluates generated datasets by name, the few real pairs alone, and the baselines named in `against`.

    Raises ValueError where categories or defects do not match, pairs are too few, or a training photo is also
    a test photo.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / "runs").is_dir():
        raise ValueError(f"{out} is not empty and holds no earlier evaluation: choose a new folder.")
    (out / "runs").mkdir(parents=True, exist_ok=True)
    names = [*generated, REAL, *against, *map(_detector_name, config.detectors)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"There are two contenders {name!r}: name it once, datasets as name=folder.")
    if config.classifier:
        new_resnet(2, config.classifier)  # fetches its weights, or says that it cannot, before the long work
    for name in against:
        find_baseline(name)
    for name in config.detectors:
        new_detector(name)
    networks = published_networks() if config.published_metrics else None
    chosen = list(config.defects) or None
    truth = find_dataset(real, defects=chosen)
    sources = {name: find_generated(path, truth, chosen) for name, path in generated.items()}
    for source in sources.values():
        if not source.pairs:
            raise ValueError(f"{source.root} holds no pairs with usable masks: generate some.")
    categories = sorted({name for source in sources.values() for name in check_categories(source, truth)})
    splits = {name: split_category(truth.categories[name], config.share) for name in categories}
    if config.classifier and all(len(split.defects) < 2 for split in splits.values()):
        raise ValueError("Telling types apart needs two: give more defects, or leave the classifier out.")
    contenders = [_of_dataset(name, source, splits, config) for name, source in sources.items()]
    contenders.append(Contender(REAL, {name: split.few_shot_pairs for name, split in splits.items()}))
    contenders += [_of_baseline(name, splits, out, config, on_stage) for name in against]
    contenders += _of_detectors(contenders, splits, config)
    if not config.allow_overlap:
        for category, split in splits.items():
            photos = {pair.image for c in contenders for pair in c.pairs.get(category, [])}
            photos |= {path for c in contenders for path in c.normals.get(category, [])}
            roots = [source.root for source in sources.values()]
            check_apart(split, sorted(photos | set(split.normals)), roots)
    tests = {name: read_test_photos(split, config.localizer.size) for name, split in splits.items()}
    runs, total = [], sum(len(c.pairs) for c in contenders) * config.seeds
    for contender, category, seed in _all_runs(contenders, config):
        stage = f"{contender.name}, {category}, seed {seed}"
        on_stage("localisers", len(runs), total, stage)
        split, folder = splits[category], out / "runs"
        run = _run(contender, split, tests[category], seed, folder, config, on_stage, device)
        if config.classifier:
            pairs = _training_pairs(contender, split, config)
            classes = _confusion(run, pairs, split, folder, config.classifier, on_stage, device)
            run = replace(run, confusion=classes)
        runs.append(run)
    on_stage("localisers", total, total, "")
    quality = {
        (contender.name, category): dataset_quality(contender.root, pairs, splits[category], networks)
        for contender in contenders
        if contender.root
        for category, pairs in contender.pairs.items()
    }
    return Comparison(runs, quality)


def _all_runs(contenders: list[Contender], config: ComparisonConfig) -> Iterator[tuple[Contender, str, int]]:
    for seed in range(config.seeds):
        for contender in contenders:
            for category in contender.pairs:
                yield contender, category, seed


def _of_dataset(name: str, source: Dataset, splits: dict[str, Split], config: ComparisonConfig) -> Contender:
    contender = Contender(name, root=source.root)
    for category in (name for name in splits if name in source.categories):
        found, chosen = source.categories[category], []
        for defect in splits[category].defects:
            pairs = [pair for pair in found.pairs if pair.defect == defect][: config.pairs_per_type]
            if len(pairs) < config.pairs_per_type:
                raise ValueError(
                    f"{source.root} has {len(pairs)} pairs of {category}/{defect}, but "
                    f"{config.pairs_per_type} are compared: generate more, or compare fewer."
                )
            chosen += pairs
        contender.pairs[category], contender.normals[category] = chosen, list(found.normals)
    return contender


def _of_baseline(
    name: str, splits: dict[str, Split], out: Path, config: ComparisonConfig, on_stage: OnStage
) -> Contender:
    root = out / "baselines" / name
    contender = Contender(name, root=root)
    for category, split in splits.items():
        rows = generate_baseline(
            name,
            split,
            config.pairs_per_type,
            root,
            0,
            lambda done, total, category=category: on_stage(f"{name} {category}", done, total, ""),
        )
        contender.pairs[category] = [
            Pair(category, row["defect"], Path(row["image"]).stem, root / row["image"], root / row["mask"])
            for row in rows
        ]
    return contender


def _of_detectors(
    others: list[Contender], splits: dict[str, Split], config: ComparisonConfig
) -> list[Contender]:
    return [
        Contender(
            _detector_name(name),
            {category: [] for category in splits},
            detector=name,
            calibrations={other.name: other.pairs for other in others},
        )
        for name in config.detectors
    ]


def _detector_name(name: str) -> str:
    return f"{name} (anomalib)"


def _run(
    contender: Contender,
    split: Split,
    test: TestPhotos,
    seed: int,
    folder: Path,
    config: ComparisonConfig,
    on_stage: OnStage,
    device: torch.device | str,
) -> ContenderResult:
    """Reads the localiser's result if it is there, else trains, measures and writes it."""
    identity = _identity(contender, split, seed, config)
    path = folder / f"{identity}.json"
    if path.is_file():
        return _read_run(path)
    pairs = _training_pairs(contender, split, config)
    if contender.detector:
        found, calibrated = _detected(contender, split, test, seed, config, device)
    else:
        stage = f"{contender.name} {split.category} {seed}"
        data = training_data(pairs, split.normals, config.localizer.size)
        found, calibrated = _localised(stage, data, test, seed, config, on_stage, device), {}
    run = ContenderResult(
        identity,
        contender.name,
        split.category,
        seed,
        config.protocol,
        len(pairs),
        measure_by_defect(found, test),
        bootstrap(found, test, config.resamples),
        precision_curve(found.maps, test),
        calibrated=calibrated,
    )
    if seed == 0:
        picture = folder / f"{identity}.png"
        picture.unlink(missing_ok=True)  # of a run that was cut before its result was written
        maps = found.maps
        if contender.detector:  # in units of its own
            maps = (maps - maps.min()) / (maps.max() - maps.min()).clamp(min=1e-12)
        write_png(Image.fromarray(predictions_beside_truth(maps, test)), picture)
    write_new(json.dumps(asdict(run), indent=1).encode(), path)
    return run


def _training_pairs(contender: Contender, split: Split, config: ComparisonConfig) -> list[Pair]:
    generated = contender.root is not None
    return contender.pairs[split.category] + (split.few_shot_pairs if generated and config.with_real else [])


def _localised(
    stage: str,
    data: LocalizerData,
    test: TestPhotos,
    seed: int,
    config: ComparisonConfig,
    on_stage: OnStage,
    device: torch.device | str,
) -> Predictions:
    """What a localiser trained on the data finds; by the paper's protocol, what its best checkpoint does."""
    settings = replace(config.localizer, seed=seed)
    checkpoints: list[tuple[float, Predictions]] = []

    def on_step(step: int, total: int, loss: float) -> None:
        on_stage(stage, step, total, f"loss {loss:.4f}")

    def on_checkpoint(network: Localizer) -> None:
        found = predict(network, test.images, device)
        ap = measure(found, test, range(len(test.defects))).pixel_ap
        checkpoints[:] = [max([*checkpoints, (ap, found)], key=lambda checkpoint: checkpoint[0])]

    as_paper = config.protocol == "paper"
    network = train_localizer(data, settings, device, on_step, on_checkpoint if as_paper else None)
    return checkpoints[0][1] if as_paper else predict(network, test.images, device)


def _detected(
    contender: Contender,
    split: Split,
    test: TestPhotos,
    seed: int,
    config: ComparisonConfig,
    device: torch.device | str,
) -> tuple[Predictions, dict[str, tuple[float, float]]]:
    """What one of anomalib's detectors finds, and F1 of pixels and photos by what calibrated it."""
    name, sets = str(contender.detector), _calibrations(contender, split)
    steps = config.localizer.steps
    found, thresholds = detect(lambda: new_detector(name), split, test, sets, steps, seed, device)
    return found, {name: calibrated_f1(found, chosen, test) for name, chosen in thresholds.items()}


def _confusion(
    run: ContenderResult,
    pairs: list[Pair],
    split: Split,
    folder: Path,
    config: ClassifierConfig,
    on_stage: OnStage,
    device: torch.device | str,
) -> list[list[int]] | None:
    """Real test photos by true and found type; None for pairs that are of no type, or of one alone. Read if
    it is there, else learned and written.
    """
    if len(split.defects) < 2 or {pair.defect for pair in pairs} != set(split.defects):
        return None
    config = replace(config, seed=run.seed)
    identity = _hash([asdict(config), _hashes(pairs), _hashes(split.test_pairs), __version__])
    path = folder / f"{identity}_classes.json"
    if not path.is_file():

        def on_step(step: int, total: int, loss: float) -> None:
            stage = f"classes, {run.contender} {run.category} {run.seed}"
            on_stage(stage, step, total, f"loss {loss:.4f}")

        found = train_and_classify(pairs, split, config, device, on_step).confusion.tolist()
        write_new(json.dumps(found).encode(), path)
    return _read_result(path, lambda content: [[int(count) for count in row] for row in content])


def _calibrations(contender: Contender, split: Split) -> dict[str, list[Pair]]:
    found = {name: pairs.get(split.category, []) for name, pairs in contender.calibrations.items()}
    return {name: pairs for name, pairs in found.items() if pairs}


def _identity(contender: Contender, split: Split, seed: int, config: ComparisonConfig) -> str:
    """Hash (16 hex digits) of everything that makes a result what it is, the pictures' bytes included."""
    pictures = [
        _hashes(_training_pairs(contender, split, config)),
        _hashes(split.test_pairs),
        [file_hash(path) for path in split.normals],
        [file_hash(path) for path in split.test_normals],
        {name: _hashes(pairs) for name, pairs in _calibrations(contender, split).items()},
    ]
    networks = [asdict(config.localizer)]
    settings = [contender.name, split.category, seed, config.protocol, config.resamples, networks]
    return _hash([settings, pictures, __version__])


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _hashes(pairs: Iterable[Pair]) -> list[tuple[str, str, str]]:
    return [(pair.defect, file_hash(pair.image), file_hash(pair.mask)) for pair in pairs]


def _read_run(path: Path) -> ContenderResult:
    def run(row: dict[str, Any]) -> ContenderResult:
        metrics = {name: Localization(**values) for name, values in row.pop("metrics").items()}
        intervals = {name: (low, high) for name, (low, high) in row.pop("intervals").items()}
        calibrated = {name: (pixel, image) for name, (pixel, image) in row.pop("calibrated").items()}
        return ContenderResult(**row, metrics=metrics, intervals=intervals, calibrated=calibrated)

    return _read_result(path, run)


def _read_result(path: Path, parse: Callable[[Any], Result]) -> Result:
    try:
        return parse(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and the run is repeated.") from None
