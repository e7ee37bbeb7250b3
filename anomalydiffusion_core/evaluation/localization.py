"""Measuring a localiser on real test photos: per defect and per category, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..dataset.augmentation import resize_mask
from ..dataset.layout import Pair
from ..dataset.photos import read_photo
from ..dataset.views import read_pair
from ..generation.regions import fit_image
from .localizer import LocalizerData, Predictions
from .metrics import Metrics, Ranking, Rankings, ResampledPixels, rank_photos, rank_pixels
from .split import Split

HEAT_MAPS = 4  # test photos shown


@dataclass(frozen=True)
class TestPhotos:
    """Test photos (N,3,S,S) uint8, masks (N,S,S) bool (empty for normal ones), and each one's defect."""

    images: Tensor
    masks: np.ndarray
    defects: list[str | None]

    @property
    def names(self) -> list[str]:
        return sorted({defect for defect in self.defects if defect})


def read_images(paths: Iterable[Path], size: int) -> Tensor:
    """Photos (N,3,S,S) uint8."""
    return stack_images((read_photo(path).tensor() for path in paths), size)


def stack_images(images: Iterable[Tensor], size: int) -> Tensor:
    """Photos (3,H,W) in [-1,1] of any size, one at a time -> (N,3,S,S) uint8."""
    small = [((fit_image(x, size) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) for x in images]
    return torch.stack(small) if small else torch.empty(0, 3, size, size, dtype=torch.uint8)


def read_pairs(pairs: Iterable[Pair], size: int) -> tuple[Tensor, Tensor]:
    """Photos (N,3,S,S) and masks (N,1,S,S) in {0,1}, both uint8; thin defects keep a pixel."""
    masks: list[Tensor] = []

    def photos() -> Iterator[Tensor]:
        for photo, mask in map(read_pair, pairs):
            masks.append(resize_mask(mask, (size, size)))
            yield photo.tensor()

    images = stack_images(photos(), size)
    return images, torch.stack(masks) if masks else torch.empty(0, 1, size, size, dtype=torch.uint8)


def training_data(pairs: Iterable[Pair], normals: Iterable[Path], size: int, real: int = 0) -> LocalizerData:
    """What a localiser trains on, read into memory; the last `real` pairs are real ones beside generated."""
    return LocalizerData(*read_pairs(pairs, size), read_images(normals, size), real)


def read_test_photos(split: Split, size: int) -> TestPhotos:
    """The photos that only measure, at the localiser's size."""
    images, masks = read_pairs(split.test_pairs, size)
    normals = read_images(split.test_normals, size)
    marked = np.concatenate([masks[:, 0].numpy() > 0, np.zeros((len(normals), size, size), bool)])
    defects: list[str | None] = [pair.defect for pair in split.test_pairs]
    return TestPhotos(torch.cat([images, normals]), marked, defects + [None] * len(normals))


def measure(predictions: Predictions, test: TestPhotos, rows: Sequence[int]) -> Metrics:
    """All metrics of the test photos `rows`."""
    chosen, masks = list(rows), test.masks[list(rows)]
    pixels, regions = rank_pixels(list(predictions.maps[chosen].numpy()), list(masks))
    photos = rank_photos(predictions.scores[chosen].numpy(), np.any(masks, axis=(1, 2)))
    return Rankings(pixels, regions, photos).metrics()


def measure_by_defect(predictions: Predictions, test: TestPhotos) -> dict[str, Metrics]:
    """Metrics by defect, each with all normal photos, and of all photos under "all"."""
    normal = [i for i, defect in enumerate(test.defects) if defect is None]
    defective = {name: [i for i, d in enumerate(test.defects) if d == name] for name in test.names}
    by_defect = {name: measure(predictions, test, rows + normal) for name, rows in defective.items()}
    return by_defect | {"all": measure(predictions, test, range(len(test.defects)))}


def predictions_beside_truth(maps: Tensor, test: TestPhotos) -> np.ndarray:
    """The first test photo of each defect, up to four: photo, truth and map side by side, in rows; maps in
    [0,1] -> (H,W,3) uint8.
    """
    rows = []
    for i in [test.defects.index(name) for name in test.names][:HEAT_MAPS]:
        photo = test.images[i].permute(1, 2, 0).numpy()  # CHW -> HWC
        truth, heat = (np.repeat((255 * m)[..., None], 3, -1) for m in (test.masks[i], maps[i].numpy()))
        rows.append(np.concatenate([photo, truth.astype(np.uint8), heat.astype(np.uint8)], 1))
    return np.concatenate(rows)


def precision_curve(maps: Tensor, test: TestPhotos) -> list[float]:
    """Precision of all pixels at the threshold where recall first reaches 0, 0.01, ... 1 (101 values)."""
    scores = maps.numpy()
    precision, recall = Ranking.of(scores[test.masks], scores[~test.masks]).precision_recall()
    at = np.searchsorted(recall, np.linspace(0, 1, 101) - 1e-9)
    return [round(float(value), 4) for value in precision[at.clip(max=len(precision) - 1)]]


def drawn_photos(predictions: Predictions, test: TestPhotos, resamples: int, seed: int = 0) -> list[Metrics]:
    """The metrics on test photos drawn with replacement, again and again; defective and normal ones apart, so
    that there are always some of both. Equal seeds draw equal photos.
    """
    random = np.random.default_rng(seed)
    resampled = ResampledPixels(list(predictions.maps.numpy()), list(test.masks))
    scores, anomalous = predictions.scores.numpy(), np.any(test.masks, axis=(1, 2))
    normal = [defect is None for defect in test.defects]
    groups = [[i for i, is_normal in enumerate(normal) if is_normal == wanted] for wanted in (False, True)]
    draws: list[Metrics] = []
    for _ in range(resamples):
        rows = [int(i) for group in groups for i in random.choice(group, len(group))]
        pixels, regions = resampled.ranked(np.bincount(rows, minlength=len(scores)))
        draws.append(Rankings(pixels, regions, rank_photos(scores[rows], anomalous[rows])).metrics())
    return draws


def intervals_of(draws: list[Metrics]) -> dict[str, tuple[float, float]]:
    """95 % intervals of every metric over draws of test photos."""
    values = np.array([list(metrics.values()) for metrics in draws])
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return {key: (float(a), float(b)) for key, a, b in zip(draws[0], low, high, strict=True)}
