"""Who takes part in a comparison, and where the pairs that each trains on come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..dataset.layout import Dataset, Pair
from ..masks.sources import named_weights
from .baselines import generate_baseline
from .config import ComparisonConfig, ComparisonRun
from .published import find_generated
from .split import Split, check_apart, check_categories, split_category

REAL = "real few shots"


@dataclass(frozen=True)
class Contender:
    """Where the training pairs of one method lie, by category; `root` is that of generated ones.

    A `detector` of anomalib trains on none; the others' pairs, by name and category, calibrate it.
    """

    name: str
    pairs: dict[str, list[Pair]]
    root: Path | None = None
    normals: dict[str, list[Path]] = field(default_factory=dict)  # that the pairs were made on
    detector: str | None = None
    calibrations: dict[str, dict[str, list[Pair]]] = field(default_factory=dict)

    def training_pairs(self, split: Split, config: ComparisonConfig) -> list[Pair]:
        """What trains on the split's category: generated pairs, with the few real ones where asked for."""
        return self.pairs[split.category] + self.real_beside(split, config)

    def real_beside(self, split: Split, config: ComparisonConfig) -> list[Pair]:
        """The few real pairs that train beside generated ones."""
        generated = self.detector is None and self.name != REAL
        return split.few_shot_pairs if generated and config.with_real else []

    def calibration_pairs(self, category: str) -> dict[str, list[Pair]]:
        """The pairs of a category that calibrate a detector, by the contender they come from."""
        by_contender = {name: pairs.get(category, []) for name, pairs in self.calibrations.items()}
        return {name: pairs for name, pairs in by_contender.items() if pairs}


def named_datasets(given: list[str]) -> dict[str, Path]:
    """`name=folder` or just a folder, whose own name it then takes. Raises ValueError where two are alike."""
    datasets: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        named = bool(equals) and not Path(text).is_dir()  # a folder may have such a name
        path = Path(folder if named else text)
        name = name if named else path.resolve().name
        if name in datasets or name == REAL:
            raise ValueError(f"The name {name!r} is taken: give each dataset its own, as name=folder.")
        datasets[name] = path
    return datasets


def detector_contender(name: str) -> str:
    """What a detector of anomalib is called beside the other contenders."""
    return f"{name} (anomalib)"


def check_names(names: list[str]) -> None:
    """Raises ValueError where two contenders have one name."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"There are two contenders {name!r}: name it once, datasets as name=folder.")


def find_datasets(generated: dict[str, Path], truth: Dataset, config: ComparisonConfig) -> dict[str, Dataset]:
    """The generated datasets by name. Raises ValueError where one holds no pairs."""
    defects = list(config.defects) or None
    datasets = {name: find_generated(path, truth, defects) for name, path in generated.items()}
    for dataset in datasets.values():
        if not dataset.pairs:
            raise ValueError(f"{dataset.root} holds no pairs with usable masks: generate some.")
    return datasets


def split_categories(
    datasets: Iterable[Dataset], truth: Dataset, config: ComparisonConfig
) -> dict[str, Split]:
    """The split of every category that some dataset has. Raises ValueError where the real dataset lacks it,
    or types should be told apart and no category has two.
    """
    names = sorted({name for dataset in datasets for name in check_categories(dataset, truth)})
    splits = {name: split_category(truth.categories[name], config.share) for name in names}
    if config.classifier and all(len(split.defects) < 2 for split in splits.values()):
        raise ValueError("Telling types apart needs two: give more defects, or leave the classifier out.")
    return splits


def all_contenders(
    datasets: dict[str, Dataset], against: list[str], splits: dict[str, Split], run: ComparisonRun
) -> list[Contender]:
    """The datasets, the few real pairs alone, the baselines, whose pairs are made first, and the detectors.

    Raises ValueError where a dataset has too few pairs, or one of its photos also measures.
    """
    contenders = [_of_dataset(name, dataset, splits, run.config) for name, dataset in datasets.items()]
    contenders.append(Contender(REAL, {name: split.few_shot_pairs for name, split in splits.items()}))
    contenders += [_of_baseline(name, splits, run) for name in against]
    contenders += [_of_mixture(text, contenders, splits, run.config) for text in run.config.mixtures]
    contenders += [_of_detector(name, contenders, splits) for name in run.config.detectors]
    if not run.config.allow_overlap:
        _check_overlap(contenders, [dataset.root for dataset in datasets.values()], splits)
    return contenders


def _of_dataset(name: str, dataset: Dataset, splits: dict[str, Split], config: ComparisonConfig) -> Contender:
    categories = [category for category in splits if category in dataset.categories]
    pairs: dict[str, list[Pair]] = {category: [] for category in categories}
    for category in categories:
        for defect in splits[category].defects:
            of_defect = [pair for pair in dataset.categories[category].pairs if pair.defect == defect]
            if len(of_defect) < config.pairs_per_type:
                raise ValueError(
                    f"{dataset.root} has {len(of_defect)} pairs of {category}/{defect}, but "
                    f"{config.pairs_per_type} are compared: generate more, or compare fewer."
                )
            pairs[category] += of_defect[: config.pairs_per_type]
    normals = {category: list(dataset.categories[category].normals) for category in categories}
    return Contender(name, pairs, dataset.root, normals)


def _of_baseline(name: str, splits: dict[str, Split], run: ComparisonRun) -> Contender:
    root = run.out / "baselines" / name
    pairs: dict[str, list[Pair]] = {}
    for category, split in splits.items():

        def on_pair(done: int, total: int, category: str = category) -> None:
            run.on_stage(f"{name} {category}", done, total, "")

        rows = generate_baseline(name, split, run.config.pairs_per_type, root, seed=0, on_pair=on_pair)
        pairs[category] = [
            Pair(category, row["defect"], Path(row["image"]).stem, root / row["image"], root / row["mask"])
            for row in rows
        ]
    return Contender(name, pairs, root)


def mixture_weights(text: str, names: Iterable[str]) -> dict[str, float]:
    """`ours=2,draem=1` as weights by contender; raises ValueError naming those there are."""
    weights = dict(named_weights(text))
    known = [name for name in names if name != REAL]
    if len(weights) < 2 or not set(weights) <= set(known) or not all(0 < w <= 1e6 for w in weights.values()):
        raise ValueError(
            f"A mixture is two contenders or more with weights above 0, such as ours=2,draem=1: got "
            f"{text!r}; there are {', '.join(known)}."
        )
    return weights


def _of_mixture(
    text: str, contenders: list[Contender], splits: dict[str, Split], config: ComparisonConfig
) -> Contender:
    """As many pairs of each type as every contender has, from several of them by weights."""
    by_name = {contender.name: contender for contender in contenders}
    weights = mixture_weights(text, by_name)
    mixed = [by_name[name] for name in weights]
    counts = shared_out(config.pairs_per_type, list(weights.values()))
    pairs = {
        category: [
            pair
            for contender, count in zip(mixed, counts, strict=True)
            for pair in _first(contender.pairs[category], count, config.pairs_per_type)
        ]
        for category in splits
        if all(category in contender.pairs for contender in mixed)
    }
    normals = {
        category: [path for contender in mixed for path in contender.normals.get(category, [])]
        for category in pairs
    }
    return Contender(text, pairs, normals=normals)


def _first(pairs: list[Pair], part: int, whole: int) -> list[Pair]:
    """`part` of every `whole` pairs of each defect; methods without types have as many of one as of all."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.defect, []).append(pair)
    return [pair for group in groups.values() for pair in group[: part * len(group) // whole]]


def shared_out(count: int, weights: list[float]) -> list[int]:
    """`count` in whole parts by weights, which add up to it: the largest remainders get one more. Raises
    ValueError where a part is 0.
    """
    exact = [count * weight / sum(weights) for weight in weights]
    parts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: count - sum(parts)]:
        parts[i] += 1
    if 0 in parts:
        named = ", ".join(f"{weight:g}" for weight in weights)
        raise ValueError(
            f"Of {count} pairs a mixture by the weights {named} takes none of one contender: compare more "
            "pairs (--count), or give weights that differ less."
        )
    return parts


def _of_detector(name: str, others: list[Contender], splits: dict[str, Split]) -> Contender:
    return Contender(
        detector_contender(name),
        {category: [] for category in splits},
        detector=name,
        calibrations={other.name: other.pairs for other in others if other.detector is None},
    )


def _check_overlap(contenders: list[Contender], roots: list[Path], splits: dict[str, Split]) -> None:
    for category, split in splits.items():
        photos = {pair.image for contender in contenders for pair in contender.pairs.get(category, [])}
        photos |= {path for contender in contenders for path in contender.normals.get(category, [])}
        check_apart(split, sorted(photos | set(split.normals)), roots)
