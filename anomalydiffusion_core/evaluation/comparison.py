"""The comparison: one localiser for each contender, category and seed, on equal numbers of pairs; every
result is a file of its own, so that a repeated call continues.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..dataset.layout import find_dataset
from ..dataset.photos import write_png
from ..gate import imagenet
from .baselines import find_baseline
from .classifier import new_resnet, train_and_classify
from .config import ComparisonConfig, ComparisonRun
from .contenders import (
    REAL,
    Contender,
    all_contenders,
    check_names,
    detector_contender,
    find_datasets,
    mixture_weights,
    shared_out,
    split_categories,
)
from .dataset_quality import DatasetQuality, dataset_quality
from .detectors import calibrated_f1, detect, new_detector
from .error_left import MEASURED
from .found import FoundDefect, found_defects
from .generation_metrics import PublishedNetworks, published_networks
from .localization import (
    drawn_photos,
    intervals_of,
    measure_by_defect,
    precision_curve,
    read_test_photos,
    training_data,
)
from .localizer import Localizer, Predictions, predict, train_localizer
from .metrics import rank_pixels
from .results import (
    Confusion,
    ContenderResult,
    Trial,
    read_confusion,
    read_result,
    write_confusion,
    write_result,
)
from .split import Split


@dataclass(frozen=True)
class Comparison:
    """All localisers' results, and what can be said of generated pairs by themselves."""

    results: list[ContenderResult]
    quality: dict[tuple[str, str], DatasetQuality]  # by contender and category


def compare(generated: dict[str, Path], real: Path, against: list[str], run: ComparisonRun) -> Comparison:
    """Evaluates generated datasets by name, the few real pairs alone, and the baselines named in `against`.

    Raises ValueError where categories or defects do not match, pairs are too few, or a training photo is also
    a test photo.
    """
    config = run.config
    _check_folder(run)
    names = [*generated, REAL, *against]
    check_names([*names, *config.mixtures, *map(detector_contender, config.detectors)])
    for text in config.mixtures:
        shared_out(config.pairs_per_type, [*mixture_weights(text, names).values()])  # before the long work
    networks = _check_needs(against, config)
    truth = find_dataset(real, defects=list(config.defects) or None)
    datasets = find_datasets(generated, truth, config)
    splits = split_categories(datasets.values(), truth, config)
    contenders = all_contenders(datasets, against, splits, run)
    results, total = [], sum(len(contender.pairs) for contender in contenders) * config.seeds
    for trial in _trials(contenders, splits, config):
        stage = f"{trial.contender.name}, {trial.split.category}, seed {trial.seed}"
        run.on_stage("localisers", len(results), total, stage)
        result = _result(trial, run)
        results.append(replace(result, confusion=_confusion(trial, run)))
    run.on_stage("localisers", total, total, "")
    quality = {
        (contender.name, category): dataset_quality(contender.root, pairs, splits[category], networks)
        for contender in contenders
        if contender.root
        for category, pairs in contender.pairs.items()
    }
    return Comparison(results, quality)


def _check_folder(run: ComparisonRun) -> None:
    if run.out.is_dir() and any(run.out.iterdir()) and not run.results.is_dir():
        raise ValueError(f"{run.out} is not empty and holds no earlier evaluation: choose a new folder.")
    run.results.mkdir(parents=True, exist_ok=True)


def _check_needs(against: list[str], config: ComparisonConfig) -> PublishedNetworks | None:
    """Fetches all weights, or says that they cannot be had, before the long work."""
    if config.classifier:
        new_resnet(2, config.classifier)
    if config.localizer.pretrained:
        imagenet.check_installed()
    for name in against:
        find_baseline(name)
    for name in config.detectors:
        new_detector(name)
    return published_networks() if config.published_metrics else None


def _trials(
    contenders: list[Contender], splits: dict[str, Split], config: ComparisonConfig
) -> Iterator[Trial]:
    tests = {name: read_test_photos(split, config.localizer.size) for name, split in splits.items()}
    for seed in range(config.seeds):
        for contender in contenders:
            for category in contender.pairs:
                yield Trial(contender, splits[category], tests[category], seed)


def _result(trial: Trial, run: ComparisonRun) -> ContenderResult:
    """Reads the trial's result if it is there, else trains, measures and writes it."""
    identity, config = trial.identity(run.config), run.config
    path = run.results / f"{identity}.json"
    if path.is_file():
        return read_result(path)
    if trial.contender.detector:
        predictions, calibrated = _detected(trial, trial.contender.detector, run)
    else:
        predictions, calibrated = _localised(trial, run), {}
    found = _found(predictions, trial, run.results / f"{identity}.png") if trial.seed == 0 else []
    draws = drawn_photos(predictions, trial.test, config.resamples)
    result = ContenderResult(
        identity,
        trial.contender.name,
        trial.split.category,
        trial.seed,
        config.protocol,
        len(trial.contender.training_pairs(trial.split, config)),
        measure_by_defect(predictions, trial.test),
        intervals_of(draws),
        precision_curve(predictions.maps, trial.test),
        calibrated=calibrated,
        found=found,
        draws=[round(metrics[MEASURED], 5) for metrics in draws if MEASURED in metrics],
    )
    write_result(result, path)
    return result


def _found(predictions: Predictions, trial: Trial, picture: Path) -> list[FoundDefect]:
    """What was found on each test photo; the close-ups are written."""
    picture.unlink(missing_ok=True)  # of a run that was cut before its result was written
    found, image = found_defects(predictions, trial.test, trial.split)
    write_png(image, picture)
    return found


def _localised(trial: Trial, run: ComparisonRun) -> Predictions:
    """What a localiser trained on the contender's pairs says of the test photos; by the paper's protocol,
    what its best checkpoint says.
    """
    config, test, checkpoints = run.config, trial.test, list[tuple[float, Predictions]]()
    pairs = trial.contender.training_pairs(trial.split, config)
    real = len(trial.contender.real_beside(trial.split, config))
    data = training_data(pairs, trial.split.normals, config.localizer.size, real)
    on_step = run.losses_shown(f"{trial.contender.name} {trial.split.category} {trial.seed}")

    def on_checkpoint(network: Localizer) -> None:
        predictions = predict(network, test.images, run.device)
        pixels, _ = rank_pixels(list(predictions.maps.numpy()), list(test.masks))
        candidates = [*checkpoints, (pixels.average_precision(), predictions)]
        checkpoints[:] = [max(candidates, key=lambda checkpoint: checkpoint[0])]

    as_paper = config.protocol == "paper"
    settings = replace(config.localizer, seed=trial.seed)
    network = train_localizer(
        data, settings, run.device, on_step, on_checkpoint=on_checkpoint if as_paper else None
    )
    return checkpoints[0][1] if as_paper else predict(network, test.images, run.device)


def _detected(
    trial: Trial, detector: str, run: ComparisonRun
) -> tuple[Predictions, dict[str, tuple[float, float]]]:
    """What one of anomalib's detectors says of the test photos, and F1 of pixels and photos by the pairs that
    calibrated it.
    """
    predictions, thresholds = detect(
        lambda: new_detector(detector),
        trial.split,
        trial.test,
        trial.contender.calibration_pairs(trial.split.category),
        steps=run.config.localizer.steps,
        seed=trial.seed,
        device=run.device,
    )
    return predictions, {
        name: calibrated_f1(predictions, chosen, trial.test) for name, chosen in thresholds.items()
    }


def _confusion(trial: Trial, run: ComparisonRun) -> Confusion | None:
    """Real test photos by true and predicted type; None where types are not to be told apart, or pairs are of
    no type, or of one alone. Read if it is there, else learned and written.
    """
    classifier, split = run.config.classifier, trial.split
    pairs = trial.contender.training_pairs(split, run.config)
    typed = len(split.defects) > 1 and {pair.defect for pair in pairs} == set(split.defects)
    if classifier is None or not typed:
        return None
    path = run.results / f"{trial.confusion_identity(pairs, classifier)}_classes.json"
    if not path.is_file():
        on_step = run.losses_shown(f"classes, {trial.contender.name} {split.category} {trial.seed}")
        settings = replace(classifier, seed=trial.seed)
        classification = train_and_classify(pairs, split, settings, run.device, on_step=on_step)
        write_confusion(classification.confusion.tolist(), path)
    return read_confusion(path)
