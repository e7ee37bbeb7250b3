"""Generated pairs as their methods publish them: ours in MVTec's layout, others' in folders of their own."""

from __future__ import annotations

from pathlib import Path

from ..dataset.layout import Category, Dataset, Pair, find_dataset, match_pairs
from ..dataset.photos import UnusableMask, list_images, read_mask

FOLDERS = (("image", "mask"), ("images", "masks"))
IMAGE_ENDING, MASK_ENDING = "_img", "_mask"


def find_generated(root: Path, real: Dataset, defects: list[str] | None = None) -> Dataset:
    """The pairs under `root` of the real dataset's categories and defects.

    Besides what `find_dataset` reads: `<category>/<defect>/image` with `mask` (AnomalyDiffusion's authors,
    and what their evaluation scripts are fed, such as DualAnoDiff's), and `<k>_img.png` with `<k>_mask.png`
    in `<category>/<defect>` or `<category>_<defect>` (DFMGAN). Masks may be JPEG; pairs whose mask marks
    nothing, or everything, are left out. Raises ValueError where there are no pairs.
    """
    categories = {}
    for name, category in real.categories.items():
        pairs = [
            pair
            for defect in category.defects
            if defects is None or defect in defects
            for folder in (root / name / defect, root / f"{name}_{defect}")
            for pair in _published(name, defect, folder)
        ]
        if pairs:
            categories[name] = Category(name, (), tuple(filter(_is_usable, pairs)))
    return Dataset(root, categories) if categories else find_dataset(root, defects=defects)


def _published(category: str, defect: str, folder: Path) -> list[Pair]:
    for images, masks in FOLDERS:
        if (folder / images).is_dir():
            return match_pairs(category, defect, list_images(folder / images), folder / masks)
    pairs = []
    for image in list_images(folder):
        stem = image.stem.removesuffix(IMAGE_ENDING)
        mask = image.with_stem(stem + MASK_ENDING)
        if stem != image.stem and not mask.is_file():
            raise ValueError(f"Image {image} has no mask: generate {mask.name} too, or remove the image.")
        if stem != image.stem:
            pairs.append(Pair(category, defect, stem, image, mask))
    return pairs


def _is_usable(pair: Pair) -> bool:
    try:
        read_mask(pair.mask)
    except UnusableMask:
        return False
    return True
