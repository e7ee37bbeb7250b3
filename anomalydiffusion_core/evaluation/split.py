"""What trains and what measures: photos of each category, and the proof that none does both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..dataset.layout import Category, Dataset, Pair, split_pairs
from ..dataset.photos import SHORT_HASH, pixel_hash, read_photo
from ..export.mvtec import manifest_pairs, manifest_root


@dataclass(frozen=True)
class Split:
    """One category: pairs and normal photos that may train, and those that only measure."""

    category: str
    few_shot: dict[str, list[Pair]]  # by defect: what the generator was trained on
    normals: tuple[Path, ...]
    test_pairs: tuple[Pair, ...]
    test_normals: tuple[Path, ...]

    @property
    def few_shot_pairs(self) -> list[Pair]:
        return [pair for pairs in self.few_shot.values() for pair in pairs]

    @property
    def defects(self) -> list[str]:
        return sorted(self.few_shot)


def split_category(category: Category, share: float | None) -> Split:
    """The first `share` of each type's pairs trains, by the rule of `split_pairs`; the rest measures, with
    `test/good`.

    Raises ValueError where there are no pairs, or no normal photos of one of the two kinds.
    """
    if not category.pairs:
        raise ValueError(f"Category {category.name} has no defect pairs to measure on.")
    if not category.test_normals or category.test_normals == category.normals:
        raise ValueError(
            f"Category {category.name} needs normal photos in both train/good and test/good: move some."
        )
    if "all" in category.defects:
        raise ValueError(f"A defect of {category.name} is called 'all', as the means are: rename its folder.")
    few_shot, test_pairs = {}, []
    for defect in category.defects:
        pairs = [pair for pair in category.pairs if pair.defect == defect]
        few_shot[defect], rest = split_pairs(pairs, share)
        if not rest:
            raise ValueError(
                f"No pair of {category.name}/{defect} is left to measure on: add pairs, or train and measure "
                "with a lower share."
            )
        test_pairs += rest
    return Split(category.name, few_shot, category.normals, tuple(test_pairs), category.test_normals)


def check_apart(split: Split, training: Iterable[Path], roots: Iterable[Path] = ()) -> None:
    """Raises ValueError naming a training photo that is also a test photo, by its pixels, or a test photo
    that trained the generator of a dataset in `roots`, as its manifest has it.
    """
    test = {pixel_hash(read_photo(path)): path for path in _test_photos(split)}
    for path in training:
        same = test.get(pixel_hash(read_photo(path)))
        if same:
            raise ValueError(
                f"{path} trains and {same} measures, and they are the same picture: results would be too "
                "good. Generate from training photos alone, or allow the overlap."
            )
    by_short_hash = {photo[:SHORT_HASH]: path for photo, path in test.items()}
    for root in roots:
        for row, *_ in manifest_pairs(manifest_root(root)):
            for photo in row.get("trained_on", []):
                if photo in by_short_hash:
                    raise ValueError(
                        f"{root} comes from a generator that was trained on {by_short_hash[photo]}, which "
                        "measures: give the share that trained it, or train on a smaller one, or allow the "
                        "overlap."
                    )


def _test_photos(split: Split) -> list[Path]:
    return [*split.test_normals, *(pair.image for pair in split.test_pairs)]


def check_categories(generated: Dataset, real: Dataset) -> list[str]:
    """Categories to evaluate: those with generated pairs. Raises ValueError where one, or one of its defects,
    is unknown to the real dataset.
    """
    for name, category in generated.categories.items():
        if name not in real.categories:
            raise ValueError(
                f"Generated category {name!r} is not in {real.root}, which has {', '.join(real.categories)}: "
                "name them alike."
            )
        unknown = set(category.defects) - set(real.categories[name].defects)
        if unknown:
            raise ValueError(
                f"Generated defects {', '.join(sorted(unknown))} of {name} are not in {real.root}, which has "
                f"{', '.join(real.categories[name].defects)}: name them alike."
            )
    return [name for name, category in generated.categories.items() if category.pairs]
