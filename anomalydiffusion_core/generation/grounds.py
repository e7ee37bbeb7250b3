"""Which place on an object suits a defect: one whose ground looks like that of the real ones. A worn tip is
not to appear in the middle of a thread.
"""

from __future__ import annotations

import numpy as np

from ..dataset.photos import Photo
from ..gate.features import Backbone
from ..gate.region_view import RegionView
from .regions import regions_on_canvas

PLACES = 8  # that are compared for each mask


class Grounds:
    """What lies around a type's `real` defects, on a canvas of `size` pixels, by a backbone's features."""

    def __init__(self, real: list[RegionView], backbone: Backbone, size: int) -> None:
        self.backbone, self.size = backbone, size
        self.real = [backbone.ground(view.pixels, view.mask) for view in real]

    def nearest(self, photo: Photo, masks: list[np.ndarray]) -> int:
        """The number of the mask (H,W) bool on a normal photo whose surroundings are most like a real
        defect's.
        """
        return int(np.argmin(self.distances([regions_on_canvas(photo, mask, self.size) for mask in masks])))

    def distances(self, places: list[list[RegionView]]) -> list[float]:
        """How far each place's surroundings are from the nearest real defect's, the mean over its regions:
        root mean square, in deviations of all that are compared.
        """
        grounds = [[self.backbone.ground(view.pixels, view.mask) for view in views] for views in places]
        features = np.stack([*self.real, *(ground for regions in grounds for ground in regions)])
        # a feature that hardly varies here must not count for all the others
        deviation = features.std(0) + 1e-3 * np.abs(features).mean()
        real = np.stack(self.real) / deviation
        return [float(np.mean([_distance(g / deviation, real) for g in some])) for some in grounds]


def _distance(ground: np.ndarray, real: np.ndarray) -> float:
    """From features (D,) to the nearest of (N,D), root mean square."""
    return float(np.sqrt(np.square(real - ground).mean(1)).min())
