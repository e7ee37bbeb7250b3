"""The result of one network, what it depends on, and the file that keeps it.

A file may lack metrics that the table got later, and hold some that the table has no more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..dataset.layout import Pair
from ..dataset.photos import file_hash, write_new
from . import classifier, detectors, localizer, metrics
from .classifier import ClassifierConfig
from .config import ComparisonConfig, Protocol
from .contenders import Contender
from .found import FoundDefect
from .localization import TestPhotos
from .metrics import Metrics
from .split import Split

Parsed = TypeVar("Parsed")
Confusion = list[list[int]]  # true types in rows, predicted ones in columns, both in alphabetical order


@dataclass(frozen=True)
class ContenderResult:
    """One localiser's result on one category; `identity` hashes all that it depends on."""

    identity: str
    contender: str
    category: str
    seed: int
    protocol: Protocol
    pairs: int
    metrics: dict[str, Metrics]  # by defect, and "all"
    intervals: dict[str, tuple[float, float]]  # of "all", over test photos
    precision: list[float]  # of pixels, where recall reaches 0, 0.01, ... 1
    confusion: Confusion | None = None
    # of a detector: F1 of pixels and of photos at thresholds that were calibrated on the contender's pairs
    calibrated: dict[str, tuple[float, float]] = field(default_factory=dict)
    # on every test photo, those with a close-up first; of the first seed, and of none that was kept before
    found: list[FoundDefect] = field(default_factory=list)
    # pixel AP on each draw of test photos, the same for all contenders; none, of one that was kept before
    draws: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """One network to train and measure: a contender on a category, its test photos, and a seed."""

    contender: Contender
    split: Split
    test: TestPhotos
    seed: int

    def identity(self, config: ComparisonConfig) -> str:
        """Hash (16 hex digits) of everything that makes a result what it is, the pictures' bytes included."""
        contender, split = self.contender, self.split
        calibrations = contender.calibration_pairs(split.category)
        pictures = [
            _hashes(contender.training_pairs(split, config)),
            _hashes(split.test_pairs),
            [file_hash(path) for path in split.normals],
            [file_hash(path) for path in split.test_normals],
            {name: _hashes(pairs) for name, pairs in calibrations.items()},
        ]
        settings = [contender.name, split.category, self.seed, config.protocol, config.resamples]
        trained_by = detectors.METHOD if contender.detector else localizer.METHOD
        return _hash([settings, asdict(config.localizer), pictures, trained_by, metrics.METHOD])

    def confusion_identity(self, pairs: Iterable[Pair], config: ClassifierConfig) -> str:
        """The same of a classifier that is trained on `pairs`."""
        settings = asdict(replace(config, seed=self.seed))
        return _hash([settings, _hashes(pairs), _hashes(self.split.test_pairs), classifier.METHOD])


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _hashes(pairs: Iterable[Pair]) -> list[tuple[str, str, str]]:
    return [(pair.defect, file_hash(pair.image), file_hash(pair.mask)) for pair in pairs]


def write_result(result: ContenderResult, path: Path) -> None:
    """Writes a new file; raises FileExistsError where there is one."""
    write_new(json.dumps(asdict(result), indent=1).encode(), path)


def read_result(path: Path) -> ContenderResult:
    """Raises ValueError naming a file that holds no result."""
    return _read(path, _parsed_result)


def write_confusion(confusion: Confusion, path: Path) -> None:
    """Writes a new file; raises FileExistsError where there is one."""
    write_new(json.dumps(confusion).encode(), path)


def read_confusion(path: Path) -> Confusion:
    """Raises ValueError naming a file that holds no confusion matrix."""
    return _read(path, lambda rows: [[int(count) for count in row] for row in rows])


def _parsed_result(row: dict[str, Any]) -> ContenderResult:
    by_defect = {
        name: {key: float(value) for key, value in values.items()}
        for name, values in row.pop("metrics").items()
    }
    intervals = {key: (low, high) for key, (low, high) in row.pop("intervals").items()}
    calibrated = {name: (pixel, image) for name, (pixel, image) in row.pop("calibrated").items()}
    found = [FoundDefect(**one) for one in row.pop("found", [])]
    return ContenderResult(**row, metrics=by_defect, intervals=intervals, calibrated=calibrated, found=found)


def _read(path: Path, parse: Callable[[Any], Parsed]) -> Parsed:
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and the run is repeated.") from None
