"""Exact detection metrics over every threshold: AUROC, average precision, F1-max and PRO; `METRICS` has all.

Only scores of anomalous pixels matter as thresholds: between two of them recall stands still while precision
falls. So the normal pixels are sorted once, in place, and everything else is looked up in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label

METHOD = "metrics/1"  # raise the number when a metric's figures change: kept results are then measured again
Metrics = dict[str, float]  # figures by their keys in METRICS
PRO_LIMIT = 0.3  # false-positive rate up to which PRO is integrated (Bergmann et al., 2020)


@dataclass(frozen=True)
class Ranking:
    """How anomalous scores stand among normal ones.

    `thresholds` (K,) are the distinct scores of anomalous samples, falling; at each, `hits` (K,) counts
    anomalous samples and `alarms` (K,) normal ones at or above it, `alarms_above` (K,) those strictly above.
    """

    thresholds: np.ndarray
    hits: np.ndarray
    alarms: np.ndarray
    alarms_above: np.ndarray
    anomalous: int
    normal: int

    @classmethod
    def of(cls, anomalous: np.ndarray, normal: np.ndarray) -> Ranking:
        """From the scores of anomalous and of normal samples (N,); `normal` is sorted in place.

        Raises ValueError where there are none of a kind, or scores are no numbers.
        """
        for scores, what in ((anomalous, "anomalous"), (normal, "normal")):
            if not scores.size:
                raise ValueError(f"There are no {what} samples to rank: give masks and photos of both kinds.")
            if not np.isfinite(scores.sum(dtype=np.float64)):
                raise ValueError(f"Scores of {what} samples hold values that are no numbers.")
        normal.sort()
        thresholds, counts = np.unique(anomalous, return_counts=True)
        alarms = len(normal) - np.searchsorted(normal, thresholds, "left")
        above = len(normal) - np.searchsorted(normal, thresholds, "right")
        hits = np.cumsum(counts[::-1])
        return cls(thresholds[::-1], hits, alarms[::-1], above[::-1], anomalous.size, normal.size)

    def auroc(self) -> float:
        """The chance that an anomalous sample scores higher than a normal one, ties counting half."""
        lower = self.normal - (self.alarms + self.alarms_above) / 2
        return float(np.dot(np.diff(self.hits, prepend=0), lower) / self.anomalous / self.normal)

    def precision_recall(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall (K,) at each threshold."""
        return self.hits / np.maximum(self.hits + self.alarms, 1), self.hits / self.anomalous

    def average_precision(self) -> float:
        """Sum of precisions, each weighted by the recall gained at its threshold."""
        precision, recall = self.precision_recall()
        return float(np.dot(precision, np.diff(recall, prepend=0)))

    def f1_max(self) -> tuple[float, float]:
        """The greatest F1 over all thresholds, and the threshold (flagged at or above) that gives it."""
        f1 = 2 * self.hits / (self.hits + self.alarms + self.anomalous)
        best = int(f1.argmax())
        return float(f1[best]), float(self.thresholds[best])


@dataclass(frozen=True)
class RegionCoverage:
    """How falling thresholds cover the marked regions, each region counting alike.

    At each threshold the marked pixels newly found are worth `gains` (K,), summed shares of their regions,
    while the false-positive rate climbs straight from `first` (K,) to `last` (K,); ties make the two differ.
    """

    gains: np.ndarray
    first: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, anomalous: np.ndarray, shares: np.ndarray, normal: np.ndarray) -> RegionCoverage:
        """`anomalous` (N,) are marked pixels' scores with their `shares` (N,), `normal` (M,) the others',
        sorted.
        """
        thresholds, inverse = np.unique(anomalous, return_inverse=True)
        last = 1 - np.searchsorted(normal, thresholds, "left") / len(normal)
        first = 1 - np.searchsorted(normal, thresholds, "right") / len(normal)
        return cls(np.bincount(inverse, shares), first, last)

    def pro(self, limit: float = PRO_LIMIT) -> float:
        """The mean covered share of all regions, integrated over the false-positive rate up to `limit`, and
        divided by it (Bergmann et al., 2020; trapezoids, as in anomalib).
        """
        inside = np.clip((limit - self.first) / np.maximum(self.last - self.first, 1e-300), 0, 1)
        climbing = inside * (np.minimum(self.last, limit) - np.minimum(self.first, limit)) / 2
        area = climbing + np.maximum(limit - self.last, 0)
        return float(np.dot(self.gains / self.gains.sum(), area) / limit)


@dataclass(frozen=True)
class Rankings:
    """What every metric of a set of photos is computed from: their pixels, regions and whole photos."""

    pixels: Ranking
    regions: RegionCoverage
    photos: Ranking

    def metrics(self) -> Metrics:
        """Every metric of the table."""
        return {key: metric.measure(self) for key, metric in METRICS.items()}


@dataclass(frozen=True)
class Metric:
    """One column of the tables: its title, and how it is measured, in [0,1], more being better."""

    label: str
    measure: Callable[[Rankings], float]


METRICS: dict[str, Metric] = {
    "pixel_auroc": Metric("pixel AUROC", lambda rankings: rankings.pixels.auroc()),
    "pixel_ap": Metric("pixel AP", lambda rankings: rankings.pixels.average_precision()),
    "pixel_f1_max": Metric("pixel F1-max", lambda rankings: rankings.pixels.f1_max()[0]),
    "pro": Metric("PRO", lambda rankings: rankings.regions.pro()),
    "image_auroc": Metric("image AUROC", lambda rankings: rankings.photos.auroc()),
    "image_ap": Metric("image AP", lambda rankings: rankings.photos.average_precision()),
    "image_f1_max": Metric("image F1-max", lambda rankings: rankings.photos.f1_max()[0]),
}


def rank_pixels(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> tuple[Ranking, RegionCoverage]:
    """All pixels together, from anomaly maps (H,W) float and their masks (H,W) bool, one for each test photo,
    normal ones included.

    Raises ValueError where sizes or counts differ, or pixels of one kind are missing.
    """
    if len(maps) != len(masks):
        raise ValueError(f"There are {len(maps)} maps for {len(masks)} masks: give one for each.")
    for number, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        if scores.shape != mask.shape:
            raise ValueError(f"Map {number} is {scores.shape}, its mask {mask.shape}: make them alike.")
    anomalous = np.concatenate([scores[mask] for scores, mask in zip(maps, masks, strict=True)])
    shares = np.concatenate([region_shares(mask) for mask in masks])
    normal = np.empty(sum(mask.size for mask in masks) - len(anomalous), anomalous.dtype)
    np.concatenate([scores[~mask] for scores, mask in zip(maps, masks, strict=True)], out=normal)
    ranking = Ranking.of(anomalous, normal)  # sorts the normal ones
    return ranking, RegionCoverage.of(anomalous, shares, normal)


def rank_photos(scores: np.ndarray, anomalous: np.ndarray) -> Ranking:
    """Photos' scores (N,) and which photos are anomalous (N,) bool."""
    return Ranking.of(scores[anomalous], scores[~anomalous])


def region_shares(mask: np.ndarray) -> np.ndarray:
    """For every marked pixel of (H,W) bool, in reading order, the share that it is of its region."""
    regions = np.zeros(mask.shape, np.int32)
    label(mask, structure=np.ones((3, 3)), output=regions)
    marked = regions[mask]
    return 1 / np.bincount(marked, minlength=1)[marked] if marked.size else np.empty(0)


class ResampledPixels:
    """Pixels of N photos, sorted once, to rank any of them taken any number of times.

    Maps (H,W) float and masks (H,W) bool, one for each photo.
    """

    def __init__(self, maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> None:
        anomalous = np.concatenate([scores[mask] for scores, mask in zip(maps, masks, strict=True)])
        self.owner = np.repeat(np.arange(len(masks)), [mask.sum() for mask in masks])
        self.shares = np.concatenate([region_shares(mask) for mask in masks])
        rising, inverse = np.unique(anomalous, return_inverse=True)
        self.thresholds, self.group = rising[::-1], len(rising) - 1 - inverse
        normal = np.concatenate([scores[~mask] for scores, mask in zip(maps, masks, strict=True)])
        order = normal.argsort(kind="stable")[::-1]
        self.normal_owner = np.repeat(np.arange(len(masks)), [(~mask).sum() for mask in masks])[order]
        falling = -normal[order]
        self.at_or_above = np.searchsorted(falling, -self.thresholds, "right")
        self.above = np.searchsorted(falling, -self.thresholds, "left")

    def ranked(self, counts: np.ndarray) -> tuple[Ranking, RegionCoverage]:
        """Of each photo as often as `counts` (N,) says; exactly `rank_pixels` of such a list."""
        size = len(self.thresholds)
        hits = np.cumsum(np.bincount(self.group, counts[self.owner], size))
        alarms = np.concatenate([[0], np.cumsum(counts[self.normal_owner])])
        at_or_above, above, total = alarms[self.at_or_above], alarms[self.above], int(alarms[-1])
        ranking = Ranking(self.thresholds, hits, at_or_above, above, int(hits[-1]), total)
        gains = np.bincount(self.group, self.shares * counts[self.owner], size)
        return ranking, RegionCoverage(gains, above / total, at_or_above / total)
