"""Pairs by themselves, over a whole dataset: do defects show, inside their masks only, and are they new?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..dataset.layout import Pair
from ..dataset.photos import read_photo
from ..dataset.views import read_pair
from ..export.mvtec import manifest_pairs
from .generation_metrics import PairQuality, defect_patch, memorisation_rate, pair_quality


@dataclass(frozen=True)
class DatasetQuality:
    """Means over pairs of what `PairQuality` holds, None where no manifest names their normal photos; and the
    share of defects that copy a training defect.
    """

    fill: float | None
    background: float | None  # grey levels
    iou: float | None
    memorisation: float


def dataset_quality(root: Path, pairs: Sequence[Pair], few_shot: Sequence[Pair]) -> DatasetQuality:
    """Of `pairs`, which lie below `root`, against the pairs that trained their generator."""
    rows = {image.resolve(): row for row, image, _ in manifest_pairs(root)}
    defects, found = [], []
    for pair in pairs:
        photo, mask = read_pair(pair)
        marked = mask[0].numpy() > 0
        defects.append(defect_patch(photo.pixels, marked))
        row = rows.get(pair.image.resolve(), {})
        if "normal" in row:
            normal = read_photo(root / row["normal"]).pixels
            # methods without an autoencoder have no noise, and any whole grey level is a change
            found.append(pair_quality(normal, photo.pixels, marked, float(row.get("noise", 0.5))))
    known = [defect_patch(photo.pixels, mask[0].numpy() > 0) for photo, mask in map(read_pair, few_shot)]
    return DatasetQuality(*_means(found), memorisation_rate(defects, known))


def _means(found: list[PairQuality]) -> tuple[float | None, float | None, float | None]:
    if not found:
        return None, None, None
    fill, background, iou = np.mean([(q.fill, q.background, q.iou) for q in found], 0)
    return float(fill), float(background), float(iou)
