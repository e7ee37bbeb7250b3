"""Finding image-mask pairs on disk: MVTec's layout, or folders `images` and `masks` with equal stems."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from .photos import file_hash, list_images

MOST_HELD_OUT = 5  # pairs of a type, of which more would say little more
LEAST_TRAINING = 3  # with fewer pairs of a type the gate cannot tell how much they differ


@dataclass(frozen=True)
class Pair:
    """One defect photo and its mask."""

    category: str
    defect: str
    stem: str
    image: Path
    mask: Path

    @property
    def defect_type(self) -> str:
        return f"{self.category}/{self.defect}"


@dataclass(frozen=True)
class Category:
    """One product: its pairs, sorted by type and stem, and its normal photos.

    Those of `test/good` are kept apart for measuring, and serve as `normals` only where there are no others.
    """

    name: str
    normals: tuple[Path, ...]
    pairs: tuple[Pair, ...]
    test_normals: tuple[Path, ...] = ()

    @property
    def training_normals(self) -> tuple[Path, ...]:
        """The normal photos that are not of `test/good`."""
        return tuple(path for path in self.normals if path not in self.test_normals)

    @property
    def defects(self) -> list[str]:
        return sorted({pair.defect for pair in self.pairs})


@dataclass(frozen=True)
class Dataset:
    """All categories found under one root, by name."""

    root: Path
    categories: dict[str, Category]

    @property
    def pairs(self) -> list[Pair]:
        return [pair for category in self.categories.values() for pair in category.pairs]

    def by_type(self) -> dict[str, list[Pair]]:
        """Pairs of each `category/defect`, in order of stems."""
        groups: dict[str, list[Pair]] = defaultdict(list)
        for pair in self.pairs:
            groups[pair.defect_type].append(pair)
        return dict(groups)

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) over every pair's type, stem and bytes."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(
                f"{pair.defect_type}/{pair.stem} {file_hash(pair.image)} {file_hash(pair.mask)}".encode()
            )
        return digest.hexdigest()[:16]


def check_outside(out: Path, dataset: Path) -> None:
    """Raises ValueError where `out` is the dataset's folder or below it: what is written would be read."""
    if dataset.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"{out} lies inside the dataset {dataset}: choose a folder outside it.")


def picture_file(root: Path, name: str) -> Path:
    """The file below `root` that a manifest names. Raises ValueError where a link leads it out of there, so
    that nobody's other pictures get into a page or an export.
    """
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{path} is a link that leads out of the dataset: put the picture itself there.")
    return path


def find_dataset(root: Path, category: str | None = None, defects: list[str] | None = None) -> Dataset:
    """Finds the pairs under `root`: one category's folder, a folder of categories, or `images` with `masks`.

    Raises ValueError when there is none, when a category or defect asked for does not exist (naming those
    that do), and when an image has no mask or several, or a mask several images.
    """
    if not root.is_dir():
        raise ValueError(f"Dataset {root} is no folder: give the folder that holds the categories.")
    categories = {entry.name: entry for entry in _categories(root)}
    if not categories:
        raise ValueError(f"{root} holds no dataset: {_what_lacks(root)}.")
    if category and category not in categories:
        raise ValueError(f"There is no category {category!r} in {root}: it has {', '.join(categories)}.")
    chosen = {name: entry for name, entry in categories.items() if category in (None, name)}
    if defects:
        known = sorted({defect for entry in chosen.values() for defect in entry.defects})
        for defect in defects:
            if defect not in known:
                raise ValueError(
                    f"There is no defect {defect!r} in {root}: it has {', '.join(known) or 'none'}."
                )
        chosen = {
            name: replace(entry, pairs=tuple(p for p in entry.pairs if p.defect in defects))
            for name, entry in chosen.items()
        }
    return Dataset(root, chosen)


def normals_folder(root: Path, category: str) -> Path:
    """Where a category's normal photos are looked for."""
    if (root / "images").is_dir() and (root / "masks").is_dir():
        return root / "good"
    return (root if _is_category(root) else root / category) / "train" / "good"


def _categories(root: Path) -> list[Category]:
    name = root.resolve().name
    if (root / "images").is_dir() and (root / "masks").is_dir():
        pairs = match_pairs(name, "defect", list_images(root / "images"), root / "masks")
        return [Category(name, tuple(list_images(root / "good")), tuple(pairs))]
    if _is_category(root):
        return [_mvtec_category(root, name)]
    return [
        _mvtec_category(folder, folder.name)
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not folder.name.startswith(".") and _is_category(folder)
    ]


def _what_lacks(root: Path) -> str:
    """What is there instead of a dataset, and what to do."""
    for there, lacking in (("images", "masks"), ("masks", "images"), ("test", "ground_truth")):
        if (root / there).is_dir():
            return (
                f"it has a folder {there} and none named {lacking}; add it, with a mask for each photo under "
                "the same name"
            )
    if photos := len(list_images(root)):
        return (
            f"it has {photos} photos and no masks; put good ones into <category>/train/good, those with a "
            "defect into <category>/test/<defect>, and their masks into <category>/ground_truth/<defect>"
        )
    return (
        "expected <category>/test/<defect> with <category>/ground_truth/<defect>, or folders images and masks"
    )


def _is_category(folder: Path) -> bool:
    return (folder / "train" / "good").is_dir() or (
        (folder / "test").is_dir() and (folder / "ground_truth").is_dir()
    )


def _mvtec_category(folder: Path, name: str) -> Category:
    normals, test_normals = (tuple(list_images(folder / part / "good")) for part in ("train", "test"))
    pairs: list[Pair] = []
    test = folder / "test"
    for defect in sorted(path for path in test.iterdir() if path.is_dir()) if test.is_dir() else []:
        if defect.name != "good" and not defect.name.startswith("."):
            pairs += match_pairs(
                name, defect.name, list_images(defect), folder / "ground_truth" / defect.name
            )
    return Category(name, normals or test_normals, tuple(pairs), test_normals)


def match_pairs(category: str, defect: str, images: list[Path], masks: Path) -> list[Pair]:
    """Pairs images with masks by name: `<stem>_mask.*` or `<stem>.*`."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in list_images(masks):
        by_stem[path.stem].append(path)
    pairs: dict[str, Pair] = {}
    for image in images:
        candidates = [*by_stem.get(f"{image.stem}_mask", []), *by_stem.get(image.stem, [])]
        if image.stem in pairs:
            raise ValueError(f"Images {pairs[image.stem].image} and {image.name} share a name: keep one.")
        if not candidates:
            raise ValueError(
                f"Image {image} has no mask: add {masks / (image.stem + '_mask.png')} or remove the image."
            )
        if len(candidates) > 1:
            names = ", ".join(path.name for path in candidates)
            raise ValueError(f"Image {image} has several masks in {masks} ({names}): keep one.")
        pairs[image.stem] = Pair(category, defect, image.stem, image, candidates[0])
    return list(pairs.values())


def split_pairs(pairs: list[Pair], share: float | None = None) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs of one type: the floor(n * share) lowest ids, at least one; none in both.

    Without a share all train but the few that are needed to measure: a third, at most `MOST_HELD_OUT`, and
    none that would leave fewer than `LEAST_TRAINING`. Numbers in stems count as numbers: 2 comes before 10.
    """
    ordered = sorted(pairs, key=_id_order)
    if share is None:
        spare = max(0, len(ordered) - LEAST_TRAINING)
        count = len(ordered) - min(len(ordered) // 3, MOST_HELD_OUT, spare)
    else:
        count = max(1, int(len(ordered) * share + 1e-9))
    return ordered[:count], ordered[count:]


def _id_order(pair: Pair) -> tuple[list[str | int], str]:
    # re.split with a group alternates text and digits, so text meets text and numbers meet numbers
    parts = re.split(r"([0-9]+)", pair.stem)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], pair.stem
