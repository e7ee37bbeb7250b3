"""Pairs by themselves, over a whole dataset: do defects show, inside their masks only, and are they new?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from ..dataset.layout import Pair
from ..dataset.photos import read_photo
from ..dataset.views import read_pair
from ..export.mvtec import manifest_pairs, manifest_root
from .generation_metrics import (
    PairQuality,
    PublishedNetworks,
    PublishedScores,
    defect_patches,
    memorisation_rate,
    pair_quality,
    published_scores,
)
from .localization import read_images
from .split import Split

PUBLISHED_SIZE = 256  # pixels per side of the published metrics' photos


@dataclass(frozen=True)
class DatasetQuality:
    """Means over pairs of what `PairQuality` holds, None where their normal photos are not known (no manifest
    names them, they are not there, or of another size); the share of defects that copy a training defect; and
    the published metrics, where they were asked for.
    """

    fill: float | None
    background: float | None  # grey levels
    iou: float | None
    precision: float | None
    boundary_iou: float | None
    memorisation: float
    published: PublishedScores | None = None


def dataset_quality(
    root: Path, pairs: Sequence[Pair], split: Split, networks: PublishedNetworks | None = None
) -> DatasetQuality:
    """Of `pairs` of one category, which lie below `root`; `networks` are those of the published metrics."""
    root = manifest_root(root)
    rows = {image.resolve(): row for row, image, _ in manifest_pairs(root)}
    qualities = []
    for pair in pairs:
        row = rows.get(pair.image.resolve(), {})
        source = root / row.get("normal", "")
        if not source.is_file():
            continue
        (photo, mask), normal = read_pair(pair), read_photo(source).pixels
        if normal.shape == photo.pixels.shape:
            # methods without an autoencoder have no noise, and any whole grey level is a change
            noise = float(row.get("noise", 0.5))
            qualities.append(pair_quality(normal, photo.pixels, mask[0].numpy() > 0, noise))
    copies = memorisation_rate(defect_patches(pairs), defect_patches(split.few_shot_pairs))
    published = None
    if networks:
        generated, training, real = (
            read_images([pair.image for pair in some], PUBLISHED_SIZE)
            for some in (pairs, split.few_shot_pairs, split.test_pairs)
        )
        published = published_scores(generated, training, real, networks)
    fill, background, iou, precision, boundary = _means(qualities)
    return DatasetQuality(fill, background, iou, precision, boundary, copies, published)


def _means(qualities: list[PairQuality]) -> list[float | None]:
    values = [astuple(quality) for quality in qualities]
    return np.mean(values, 0).tolist() if values else [None] * len(fields(PairQuality))
