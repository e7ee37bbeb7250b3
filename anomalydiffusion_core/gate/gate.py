"""The quality gate: which pairs of a defect type are good enough, by the measure of its real pairs.

Limits are not constants. What real defects score, and what spots on normal photos score, says what to ask:
halfway between the two where they differ, nothing where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from .features import Backbone
from .region_view import ChangedRegion, RegionView
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
    tone,
)
from .shape import beyond, shape_of

WEAKEST = 0.1  # quantile of real pairs' scores that stands for the weakest: one odd pair does not count
ENOUGH = 3  # real pairs, to say how much those of a type differ


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
class Check:
    """One thing that pairs are checked for: a line of `CHECKS`.

    `score` is given a region on its canvas, and what changed in it where the photo before is known. `limit`
    learns from real defects and spots what to ask; it is not called with fewer than `needs` real pairs.
    """

    problem: str  # the word for a pair that fails
    stops: str  # which pairs fail, for people
    at_most: bool  # the score must not exceed its limit; else it must reach it
    score: Callable[[Gate, RegionView, ChangedRegion | None], float | None]  # None: there is none
    limit: Callable[[Gate, Known], float | None]  # None: nothing is asked
    fault: str  # what is wrong with a pair that fails, with `{score}` and `{limit}` in it
    remedy: str  # what to change then, a sentence that serves the command line and the nodes
    needs: int = 0  # real pairs at least to learn a limit from
    own_masks: bool = True  # whether masks that the user drew are checked, too

    def stopped(self, score: float, limit: float) -> bool:
        return score > limit if self.at_most else score < limit

    def asked(self, limit: float) -> str:
        return f"at {'most' if self.at_most else 'least'} {limit:.2f}"

    def learned(self, gate: Gate, known: Known) -> float | None:
        """The limit, where there are real pairs enough to learn it from."""
        enough = self.needs == 0 or (known.calibrates and len(known.real) >= self.needs)
        return self.limit(gate, known) if enough else None


class Scores(Mapping[str, float]):
    """A pair's scores, or the limits for them, by the names of `CHECKS`; what has no score, or no limit, is
    left out.
    """

    def __init__(self, values: Mapping[str, float | None] | None = None) -> None:
        self._values = {name: value for name, value in (values or {}).items() if value is not None}

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Scores({self._values})"

    def rounded(self) -> dict[str, float]:
        """For the manifest."""
        return {name: round(value, 4) for name, value in self.items()}

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
        result: dict[str, float | None] = {}
        for name, check in CHECKS.items():
            values = [one[name] for one in scores if name in one]
            if values:
                result[name] = max(values) if check.at_most == worst else min(values)
        return Scores(result)


@dataclass(frozen=True)
class GateConfig:
    """What is checked. Raises ValueError naming the checks there are where one is unknown."""

    checks: tuple[str, ...] = field(default_factory=lambda: tuple(CHECKS))
    smallest_fill: float = 0.3  # of each component's area; real pairs may ask for more, not for less

    def __post_init__(self) -> None:
        if unknown := [name for name in self.checks if name not in CHECKS]:
            raise ValueError(f"There is no check {unknown[0]!r}: choose from {', '.join(CHECKS)}.")


def failed(scores: Mapping[str, float], limits: Mapping[str, float], checks: Iterable[str]) -> list[str]:
    """Which of the checks a pair of these scores fails."""
    return [
        name
        for name in checks
        if name in scores and name in limits and CHECKS[name].stopped(scores[name], limits[name])
    ]


class Gate:
    """The gate of one defect type, calibrated on `real` defects, one list of regions for each pair, and on
    `spots` of normal photos marked as if there were one. It remembers what it let through.

    Without real pairs only fill is asked for, at `smallest_fill`.
    """

    def __init__(
        self, real: list[list[RegionView]], spots: list[RegionView], backbone: Backbone, config: GateConfig
    ) -> None:
        known = Known(real, spots)
        self.backbone, self.config = backbone, config
        self.looks = [[look_of(view.pixels, view.mask) for view in pair] for pair in real]
        self.tones = [tone(view.pixels, view.mask) for view in known.regions]
        self.shapes = [shape_of(view.mask) for view in known.regions]
        self.earlier: list[Look] = []
        self._set_features(known)
        # of real pairs, however few, to fit the feather to
        self.usual_seam = _most_seam(known) if known.calibrates else None
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

    def remember(self, view: RegionView) -> None:
        """Takes note of an accepted region, so that none too much like it follows."""
        self.earlier.append(look_of(view.pixels, view.mask))

    def forget(self) -> None:
        """Forgets all accepted regions, not the real ones."""
        self.earlier.clear()

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


def _fill(gate: Gate, view: RegionView, changed: ChangedRegion | None) -> float | None:
    """Share of the least filled component that shows."""
    if changed is None:
        return None
    return min(component_fills(changed.before, changed.after, changed.mask, changed.noise))


def _fill_limit(gate: Gate, known: Known) -> float:
    smallest = gate.config.smallest_fill
    return max(smallest, _least_fill(known)) if known.calibrates else smallest


def _least_fill(known: Known) -> float:
    """Midway between the fill measured on spots without a defect and that of the weakest real defect; in both
    the photo before is estimated by `filled_in`.
    """
    misjudged = [change(filled_in(v.pixels, v.mask), v.pixels)[v.mask] for v in known.spots]
    noise = float(np.quantile(np.concatenate(misjudged), NOISE_QUANTILE))
    shown = [fill(filled_in(v.pixels, v.mask), v.pixels, v.mask, noise) for v in known.regions]
    return (1 - NOISE_QUANTILE + float(np.quantile(shown, WEAKEST))) / 2


def _contrast(gate: Gate, view: RegionView, changed: ChangedRegion | None) -> float:
    """How well the defect can be told from its surroundings, 0 to 1."""
    return contrast(view.pixels, view.mask)


def _contrast_limit(gate: Gate, known: Known) -> float | None:
    """Halfway between the weakest real defect and nothing at all; None where these do not differ."""
    real, nothing = ([contrast(v.pixels, v.mask) for v in views] for views in (known.regions, known.spots))
    weakest, typical = float(np.quantile(real, WEAKEST)), float(np.median(nothing))
    return (weakest + typical) / 2 if weakest > typical else None


def _tone(gate: Gate, view: RegionView, changed: ChangedRegion | None) -> float | None:
    """Grey levels by which it is darker than the darkest real defect, or brighter than the brightest."""
    if not gate.tones:
        return None
    value = tone(view.pixels, view.mask)
    return max(0.0, min(gate.tones) - value, value - max(gate.tones))


def _tone_limit(gate: Gate, known: Known) -> float:
    """Half of the range of real defects, and as much as tones of nothing at all vary; where all of them are
    darker than their ground, or all brighter, less than would make one the other.
    """
    nothing = [tone(v.pixels, v.mask) for v in known.spots]
    beyond = np.ptp(gate.tones) / 2 + float(np.std(nothing))
    one_sign = min(gate.tones) > 0 or max(gate.tones) < 0
    return float(min(beyond, np.abs(gate.tones).min()) if one_sign else beyond)


def _shape(gate: Gate, view: RegionView, changed: ChangedRegion | None) -> float | None:
    """How far the mask's shape lies outside the range of real ones, in tolerances."""
    return beyond(shape_of(view.mask), gate.shapes) if gate.shapes else None


def _shape_limit(gate: Gate, known: Known) -> float:
    return 1.0


def _seam(gate: Gate, view: RegionView, changed: ChangedRegion | None) -> float:
    """Edges on the defect's outline over those beside it."""
    return seam(view.pixels, view.mask)


def _seam_limit(gate: Gate, known: Known) -> float | None:
    return gate.usual_seam


def _most_seam(known: Known) -> float:
    """The strongest real seam, and as much beyond it as seams of nothing at all vary."""
    real, nothing = ([seam(v.pixels, v.mask) for v in views] for views in (known.regions, known.spots))
    spread = np.quantile(nothing, 1 - WEAKEST) - np.median(nothing)
    return float(np.quantile(real, 1 - WEAKEST) + spread)


def _plausibility(gate: Gate, view: RegionView, changed: ChangedRegion | None) -> float | None:
    """Distance to the nearest real defect in the backbone's features, in deviations."""
    if not any(gate.real_features):
        return None
    return float(gate.distances(gate.backbone.features(view.pixels, view.mask)).min())


def _plausibility_limit(gate: Gate, known: Known) -> float:
    """Of real defects to those of other pairs, or halfway to what nothing at all is away from them."""
    nearest = [gate.distances(f, i).min() for i, pair in enumerate(gate.real_features) for f in pair]
    worst = float(np.quantile(nearest, 1 - WEAKEST))
    typical = float(np.median([gate.distances(f).min() for f in gate.spot_features]))
    return max(worst, (worst + typical) / 2)


def _duplicate(gate: Gate, view: RegionView, changed: ChangedRegion | None) -> float | None:
    """Grey levels to the most alike training defect or earlier pair."""
    look, real = look_of(view.pixels, view.mask), [look for pair in gate.looks for look in pair]
    return min((look_distance(look, other) for other in real + gate.earlier), default=None)


def _duplicate_limit(gate: Gate, known: Known) -> float | None:
    """Half the distance of the two most alike real pairs; None where there are no two."""
    distances = [
        look_distance(a, b)
        for i, pair in enumerate(gate.looks)
        for other in gate.looks[:i]
        for a in pair
        for b in other
    ]
    return min(distances) / 2 if distances else None


CHECKS: dict[str, Check] = {
    "fill": Check(
        "unfilled",
        "pairs of which a part of the mask does not show",
        False,
        _fill,
        _fill_limit,
        "a part of the mask is not filled: {score} of it shows, at least {limit} should",
        "Take mode adaptive for the attention or raise its strength, train longer, or lower smallest fill.",
    ),
    "contrast": Check(
        "faint",
        "defects that cannot be told from their surroundings",
        False,
        _contrast,
        _contrast_limit,
        "too faint: contrast {score}, real ones reach {limit}",
        "Take mode adaptive for the attention or raise its strength, raise the guidance (cfg), or train "
        "longer.",
        needs=1,
    ),
    "seam": Check(
        "seam",
        "pairs in which the mask's outline shows",
        True,
        _seam,
        _seam_limit,
        "the mask's outline shows: {score} times the edges beside it, real ones stay within {limit}",
        "Let the defect fade in over more pixels (feather), or give masks with a margin around the defect.",
        needs=ENOUGH,
    ),
    "plausibility": Check(
        "implausible",
        "defects that resemble no real one",
        True,
        _plausibility,
        _plausibility_limit,
        "unlike the real defects: {score} deviations from the nearest, real ones lie within {limit}",
        "Train longer, lower the strength of the attention or the guidance (cfg), or give masks shaped and "
        "placed like the real ones.",
        needs=ENOUGH,
    ),
    "duplicate": Check(
        "duplicate",
        "defects too much like a real one, or like one accepted before",
        False,
        _duplicate,
        _duplicate_limit,
        "too much like a real or an earlier defect: {score} grey levels apart, at least {limit} should be",
        "Give other masks and more normal photos, take another seed, or train fewer steps.",
        needs=2,
    ),
    "tone": Check(
        "wrong tone",
        "defects darker or brighter than real ones",
        True,
        _tone,
        _tone_limit,
        "darker or brighter than real ones, by {score} grey levels, at most {limit} may be",
        "Start from a real defect (start: pasted), lower denoise or the guidance (cfg), or train longer.",
        needs=ENOUGH,
    ),
    "shape": Check(
        "misshapen",
        "masks of another area, width, elongation, solidity or number of parts than real ones",
        True,
        _shape,
        _shape_limit,
        "the mask is shaped unlike real ones: {score} times what they vary by, at most {limit} may be",
        "Take real masks, or those shaped like them (mask sources: real), or train the masks longer.",
        needs=ENOUGH,
        own_masks=False,
    ),
}
