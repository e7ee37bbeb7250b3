"""The quality gate: which pairs of a defect type are good enough, by the measure of its real pairs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .checks import CHECKS, Scores, failed
from .features import Backbone
from .reference import Known, Reference
from .region_view import ChangedRegion, RegionView
from .shape import beyond, shape_of


@dataclass(frozen=True)
class GateConfig:
    """What is checked. Raises ValueError naming the checks there are where one is unknown."""

    checks: tuple[str, ...] = field(default_factory=lambda: tuple(CHECKS))
    smallest_fill: float = 0.3  # of each component's area; real pairs may ask for more, not for less

    def __post_init__(self) -> None:
        if unknown := [name for name in self.checks if name not in CHECKS]:
            raise ValueError(f"There is no check {unknown[0]!r}: choose from {', '.join(CHECKS)}.")


class Gate(Reference):
    """The gate of one defect type, calibrated on `real` defects, one list of regions for each pair, and on
    `spots` of normal photos marked as if there were one. It remembers what it let through.

    Without real pairs only fill is asked for, at `smallest_fill`.
    """

    def __init__(
        self, real: list[list[RegionView]], spots: list[RegionView], backbone: Backbone, config: GateConfig
    ) -> None:
        known = Known(distinct(real), spots)
        super().__init__(known, backbone, config.smallest_fill)
        self.config = config
        self.limits = Scores({name: check.learned(self, known) for name, check in CHECKS.items()})

    def score(self, region: ChangedRegion) -> Scores:
        """What a generated region scores."""
        return self._scores(region.view, region)

    def score_seen(self, view: RegionView) -> Scores:
        """What a region scores, generated or real, but for fill, which needs the photo before."""
        return self._scores(view, None)

    def _scores(self, view: RegionView, changed: ChangedRegion | None) -> Scores:
        own_mask = changed is not None and changed.own_mask
        asked = {name: check for name, check in CHECKS.items() if check.own_masks or not own_mask}
        return Scores({name: check.score(self, view, changed) for name, check in asked.items()})

    def misshapen(self, mask: np.ndarray) -> bool:
        """Whether a region's mask (S,S) bool on its canvas would be stopped, whatever is made in it."""
        if "shape" not in self.config.checks or "shape" not in self.limits:
            return False
        return CHECKS["shape"].stopped(beyond(shape_of(mask), self.shapes), self.limits["shape"])

    def problems(self, scores: Scores) -> list[str]:
        """What is wrong with a pair of these scores, in words; nothing where it is good enough."""
        return [CHECKS[name].problem for name in failed(scores, self.limits, self.config.checks)]


def distinct(real: list[list[RegionView]]) -> list[list[RegionView]]:
    """Real pairs without those that are another over again, which would say that defects are all alike."""
    seen = dict[tuple[bytes, ...], list[RegionView]]()
    for pair in real:
        seen.setdefault(tuple(part.tobytes() for view in pair for part in (view.pixels, view.mask)), pair)
    return list(seen.values())
