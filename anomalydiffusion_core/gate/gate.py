"""The quality gate: which pairs of a defect type are good enough, by the measure of its real pairs.

Limits are not constants. What real defects score, and what spots on normal photos score, says what to ask:
halfway between the two where they differ, nothing where they do not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum

import numpy as np

from .features import Backbone
from .scores import (
    NOISE_QUANTILE,
    Look,
    change,
    component_fills,
    contrast,
    fill,
    filled_in,
    look_distance,
    look_of,
    seam,
)

WEAKEST = 0.1  # quantile of real pairs' scores that stands for the weakest: one odd pair does not count
ENOUGH = (
    3  # real pairs, to say how much those of a type differ; with fewer, seam and plausibility are not asked
)


class Check(str, Enum):
    """What a pair is checked for, by the name of its score."""

    FILL = "fill"
    CONTRAST = "contrast"
    SEAM = "seam"
    PLAUSIBILITY = "plausibility"
    DUPLICATE = "duplicate"


PROBLEMS = {
    Check.FILL: "unfilled",
    Check.CONTRAST: "faint",
    Check.SEAM: "seam",
    Check.PLAUSIBILITY: "implausible",
    Check.DUPLICATE: "duplicate",
}
AT_MOST = (Check.SEAM, Check.PLAUSIBILITY)  # the others must reach their limit


def named_checks(names: tuple[str, ...]) -> tuple[Check, ...]:
    """Checks by their names; raises ValueError naming those that exist."""
    known = {check.value: check for check in Check}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"There is no check {unknown[0]!r}: choose from {', '.join(known)}.")
    return tuple(known[name] for name in names)


@dataclass(frozen=True)
class GateConfig:
    """What is checked."""

    checks: tuple[Check, ...] = tuple(Check)
    smallest_fill: float = 0.3  # of each component's area; real pairs may ask for more, not for less


@dataclass(frozen=True)
class RegionView:
    """A region in its window at the canvas's size: `pixels` (S,S,3) in [0,255], `mask` (S,S) bool."""

    pixels: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class ChangedRegion:
    """A generated region: on its `canvas`, and in its window (h,w) `before`, `after`, `mask`; `noise` of the
    autoencoder there, in grey levels.
    """

    canvas: RegionView
    before: np.ndarray
    after: np.ndarray
    mask: np.ndarray
    noise: float


@dataclass(frozen=True)
class Scores:
    """A pair's scores, or the limits for them (None: not asked for).

    fill: share of the least filled component that shows. contrast: 0 to 1, how well the defect can be told
    from its surroundings. seam: edges on its outline over those beside it. plausibility: distance to the
    nearest real defect in a backbone's features, in deviations. duplicate: grey levels to the most alike
    training defect or earlier pair.
    """

    fill: float | None = None
    contrast: float | None = None
    seam: float | None = None
    plausibility: float | None = None
    duplicate: float | None = None

    def rounded(self) -> dict[str, float]:
        """The scores there are, for the manifest."""
        known = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: round(value, 4) for name, value in known if value is not None}

    @staticmethod
    def worst(scores: list[Scores]) -> Scores:
        """The worst of several regions, check by check."""
        return Scores._chosen(scores, worst=True)

    @staticmethod
    def strictest(limits: list[Scores]) -> Scores:
        """The limits that ask for most, check by check."""
        return Scores._chosen(limits, worst=False)

    @staticmethod
    def _chosen(scores: list[Scores], worst: bool) -> Scores:
        result: dict[str, float] = {}
        for check in Check:
            values = [value for s in scores if (value := getattr(s, check.value)) is not None]
            if values:
                result[check.value] = max(values) if (check in AT_MOST) == worst else min(values)
        return Scores(**result)


def shown_share(regions: list[ChangedRegion]) -> float:
    """Share of a pair's whole mask that shows: where the change exceeds the noise of its region."""
    shown = [change(made.before, made.after)[made.mask] > made.noise for made in regions]
    return float(np.concatenate(shown).mean())


class Gate:
    """The gate of one defect type, calibrated on `real` defects, one list of regions for each pair, and on
    `spots` of normal photos marked as if there were one. It remembers what it let through.

    Without real pairs only fill is asked for, at `smallest_fill`.
    """

    def __init__(
        self, real: list[list[RegionView]], spots: list[RegionView], backbone: Backbone, config: GateConfig
    ) -> None:
        self.backbone, self.config = backbone, config
        regions = [canvas for pair in real for canvas in pair]
        self.looks = [[look_of(c.pixels, c.mask) for c in pair] for pair in real]
        self.earlier: list[Look] = []
        self._set_features(real, spots)
        self.limits = Scores(config.smallest_fill)
        self.usual_seam: float | None = None  # of real pairs, however few, to fit the feather to
        if regions and spots:
            known = len(real) >= ENOUGH
            self.usual_seam = _most_seam(regions, spots)
            self.limits = Scores(
                max(config.smallest_fill, _least_fill(regions, spots)),
                _least_contrast(regions, spots),
                self.usual_seam if known else None,
                self._farthest() if known else None,
                _nearest_look(self.looks),
            )

    def score(self, made: ChangedRegion) -> Scores:
        """What a generated region scores."""
        least = min(component_fills(made.before, made.after, made.mask, made.noise))
        return replace(self.score_seen(made.canvas), fill=least)

    def score_seen(self, canvas: RegionView) -> Scores:
        """What a region scores, generated or real, but for fill, which needs the photo before."""
        pixels, mask = canvas.pixels, canvas.mask
        look, real = look_of(pixels, mask), [x for pair in self.looks for x in pair]
        return Scores(
            None,
            contrast(pixels, mask),
            seam(pixels, mask),
            float(self._distances(self.backbone.features(pixels, mask)).min()) if real else None,
            min((look_distance(look, other) for other in real + self.earlier), default=None),
        )

    def problems(self, scores: Scores) -> list[str]:
        """What is wrong with a pair of these scores, in words; nothing where it is good enough."""
        found = []
        for check in self.config.checks:
            score, limit = getattr(scores, check.value), getattr(self.limits, check.value)
            if score is None or limit is None:
                continue
            if score > limit if check in AT_MOST else score < limit:
                found.append(PROBLEMS[check])
        return found

    def remember(self, canvas: RegionView) -> None:
        """Takes note of an accepted region, so that none too much like it follows."""
        self.earlier.append(look_of(canvas.pixels, canvas.mask))

    def forget(self) -> None:
        """Forgets all accepted regions, not the real ones."""
        self.earlier.clear()

    def _set_features(self, real: list[list[RegionView]], spots: list[RegionView]) -> None:
        self._real = [[self.backbone.features(c.pixels, c.mask) for c in pair] for pair in real]
        self._spots = [self.backbone.features(c.pixels, c.mask) for c in spots]
        known = [f for pair in self._real for f in pair] + self._spots
        # a feature that hardly varies here must not count for all the others
        self._deviation = np.std(known, 0) + 1e-3 * np.abs(known).mean() if known else np.ones(1)

    def _distances(self, features: np.ndarray, without: int | None = None) -> np.ndarray:
        """Root mean square differences (N,) to the real pairs' regions, those of pair `without` left out."""
        real = np.stack([f for i, pair in enumerate(self._real) if i != without for f in pair])
        return np.sqrt(np.square((real - features) / self._deviation).mean(-1))

    def _farthest(self) -> float:
        own = [self._distances(f, i).min() for i, pair in enumerate(self._real) for f in pair]
        worst = float(np.quantile(own, 1 - WEAKEST))
        typical = float(np.median([self._distances(f).min() for f in self._spots]))
        return max(worst, (worst + typical) / 2)


def _least_fill(regions: list[RegionView], spots: list[RegionView]) -> float:
    """Halfway between what shows where nothing is and what shows of the weakest real defect, in both of which
    the photo before is guessed from the surroundings.
    """
    misjudged = [change(filled_in(c.pixels, c.mask), c.pixels)[c.mask] for c in spots]
    noise = float(np.quantile(np.concatenate(misjudged), NOISE_QUANTILE))
    shown = [fill(filled_in(c.pixels, c.mask), c.pixels, c.mask, noise) for c in regions]
    return (1 - NOISE_QUANTILE + float(np.quantile(shown, WEAKEST))) / 2


def _least_contrast(regions: list[RegionView], spots: list[RegionView]) -> float | None:
    """Halfway between the weakest real defect and nothing at all; None where these do not differ."""
    real, nothing = ([contrast(c.pixels, c.mask) for c in part] for part in (regions, spots))
    weakest, typical = float(np.quantile(real, WEAKEST)), float(np.median(nothing))
    return (weakest + typical) / 2 if weakest > typical else None


def _most_seam(regions: list[RegionView], spots: list[RegionView]) -> float:
    """The strongest real seam, and as much beyond it as seams of nothing at all vary."""
    real, nothing = ([seam(c.pixels, c.mask) for c in part] for part in (regions, spots))
    spread = np.quantile(nothing, 1 - WEAKEST) - np.median(nothing)
    return float(np.quantile(real, 1 - WEAKEST) + spread)


def _nearest_look(looks: list[list[Look]]) -> float | None:
    """Half the distance of the two most alike real pairs; None where there are no two."""
    distances = [
        look_distance(a, b)
        for i, pair in enumerate(looks)
        for other in looks[:i]
        for a in pair
        for b in other
    ]
    return min(distances) / 2 if distances else None
