"""What pairs of a defect type are compared with: its real pairs, spots on normal photos, and what was
accepted before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import pdist

from .features import Backbone
from .prediction import next_within
from .region_view import RegionView
from .scores import Look, look_of, seam, tone
from .shape import shape_of

MOST_COMPARED = 500  # defects, of all evenly, whose mutual distances are taken
WEAKEST = 0.1  # quantile of real pairs' scores that stands for the weakest: one odd pair does not count


@dataclass(frozen=True)
class Known:
    """What a gate is calibrated on: `real` defects, a list of regions for each pair, and `spots` of normal
    photos marked as if there were one.
    """

    real: list[list[RegionView]]
    spots: list[RegionView]

    @property
    def regions(self) -> list[RegionView]:
        """Of all real pairs."""
        return [region for pair in self.real for region in pair]

    @property
    def calibrates(self) -> bool:
        """Whether limits can be learned from it."""
        return bool(self.regions and self.spots)


@dataclass(frozen=True)
class Diversity:
    """Mean distance of two defects in the backbone's features, in the deviations of the gate: of `generated`
    ones, and of `real` ones; None where there are no two.
    """

    generated: float | None
    real: float | None

    def __str__(self) -> str:
        """In words, empty where it is not known."""
        if self.generated is None:
            return ""
        beside = "" if self.real is None else f", two real ones by {self.real:.2f}"
        return f"Two defects differ by {self.generated:.2f} deviations in the mean{beside}."


class Reference:
    """What checks need to know of one defect type, measured once. It remembers what was accepted."""

    def __init__(self, known: Known, backbone: Backbone, smallest_fill: float) -> None:
        self.backbone, self.smallest_fill = backbone, smallest_fill
        self.looks = [[look_of(view.pixels, view.mask) for view in pair] for pair in known.real]
        self.tones = [tone(view.pixels, view.mask) for view in known.regions]
        self.shapes = [shape_of(view.mask) for view in known.regions]
        self.earlier: list[Look] = []
        self.earlier_features: list[np.ndarray] = []
        self._set_features(known)
        # of real pairs, however few, to fit the feather to
        self.usual_seam = _most_seam(known) if known.calibrates else None

    def remember(self, view: RegionView) -> None:
        """Takes note of an accepted region, so that none too much like it follows."""
        self.earlier.append(look_of(view.pixels, view.mask))
        self.earlier_features.append(self.backbone.features(view.pixels, view.mask))

    def forget(self) -> None:
        """Forgets all accepted regions, not the real ones."""
        self.earlier.clear()
        self.earlier_features.clear()

    def diversity(self) -> Diversity:
        """How much accepted defects differ from each other, and real ones."""
        real = [f for pair in self.real_features for f in pair]
        return Diversity(*(self._mean_distance(some) for some in (self.earlier_features, real)))

    def _mean_distance(self, features: list[np.ndarray]) -> float | None:
        few = features[:: -(-len(features) // MOST_COMPARED) or 1]
        if len(few) < 2:
            return None
        scaled = np.stack(few) / self._deviation
        return float(pdist(scaled).mean() / np.sqrt(scaled.shape[1]))

    def distances(self, features: np.ndarray, without: int | None = None) -> np.ndarray:
        """Root mean square differences (N,) of a region's features to those of the real pairs' regions, pair
        `without` left out, in deviations.
        """
        real = np.stack([f for i, pair in enumerate(self.real_features) if i != without for f in pair])
        return np.sqrt(np.square((real - features) / self._deviation).mean(-1))

    def _set_features(self, known: Known) -> None:
        self.real_features = [[self.backbone.features(v.pixels, v.mask) for v in pair] for pair in known.real]
        self.spot_features = [self.backbone.features(v.pixels, v.mask) for v in known.spots]
        features = [f for pair in self.real_features for f in pair] + self.spot_features
        # a feature that hardly varies here must not count for all the others
        self._deviation = np.std(features, 0) + 1e-3 * np.abs(features).mean() if features else np.ones(1)


def _most_seam(known: Known) -> float:
    """The strongest real seam, and as much beyond it as seams of nothing at all vary, or as other real ones
    may lie.
    """
    real, nothing = ([seam(v.pixels, v.mask) for v in views] for views in (known.regions, known.spots))
    spread = np.quantile(nothing, 1 - WEAKEST) - np.median(nothing)
    return max(float(np.quantile(real, 1 - WEAKEST) + spread), float(next_within(real)))
