"""Crops of a dataset's photos at full resolution, as a dataset of its own: small defects on large photos are
more than a pixel where a model, or a localiser, sees 256 px.

Each pair gives one crop with its whole defect somewhere in it, or what fits of a larger one; each normal
photo gives `--per-normal` crops around random places of the object, or of the photo where none stands out.

    .venv/bin/python benchmarks/crops.py data/screw screw-crops --size 256
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.photos import Photo, read_mask, read_photo, write_png
from anomalydiffusion_core.masks.foreground import ground_of, object_foreground


def around(random: np.random.Generator, marked: np.ndarray, size: int) -> tuple[slice, slice]:
    """A square of `size` px, inside the picture, that holds all that is marked at a random place of it, or
    around a random marked pixel where that is more than fits.
    """
    rows, columns = np.nonzero(marked)
    if max(np.ptp(rows), np.ptp(columns)) >= size:
        chosen = random.integers(len(rows))
        rows, columns = rows[[chosen]], columns[[chosen]]
    if min(marked.shape) < size:
        raise ValueError(
            f"A photo of {marked.shape[1]}x{marked.shape[0]} px has no crop of {size}: lower --size."
        )
    starts = [
        int(random.integers(max(0, used.max() + 1 - size), min(used.min(), length - size) + 1))
        for used, length in zip((rows, columns), marked.shape, strict=True)
    ]
    return np.s_[starts[0] : starts[0] + size, starts[1] : starts[1] + size]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--per-normal", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = np.random.default_rng(options.seed)
    for category in find_dataset(options.dataset).categories.values():
        root = options.out / category.name
        for pair in category.pairs:
            photo, mask = read_photo(pair.image), read_mask(pair.mask)
            box = around(random, mask, options.size)
            while mask[box].all():  # inside a defect that is larger than the crop
                box = around(random, mask, options.size)
            crop = Photo(photo.pixels[box], photo.gray).image()
            write_png(crop, root / "test" / pair.defect / f"{pair.stem}.png")
            truth = root / "ground_truth" / pair.defect / f"{pair.stem}_mask.png"
            write_png(Image.fromarray(mask[box].astype(np.uint8) * 255), truth)
        ground = ground_of(category.normals)
        for folder, normals in (("train", category.normals), ("test", category.test_normals)):
            for index, path in enumerate(normals):
                photo = read_photo(path)
                everywhere = np.ones(photo.pixels.shape[:2], bool)
                places = np.argwhere(object_foreground(photo.pixels, ground) if ground else everywhere)
                for number in range(options.per_normal):
                    marked = np.zeros(photo.pixels.shape[:2], bool)
                    marked[tuple(places[random.integers(len(places))])] = True
                    crop = Photo(photo.pixels[around(random, marked, options.size)], photo.gray).image()
                    write_png(crop, root / folder / "good" / f"{index:03d}_{number}.png")


if __name__ == "__main__":
    main()
