"""The table of checks: what is scored of a pair, and what is asked by the measure of real pairs.

Limits are not constants. What real defects score, and what spots on normal photos score, says what to ask:
halfway between the two where they differ, nothing where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .prediction import ENOUGH, beyond_range, next_within
from .reference import WEAKEST, Known, Reference
from .region_view import ChangedRegion, RegionView
from .scores import (
    NOISE_QUANTILE,
    VISIBLE,
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


@dataclass(frozen=True)
class Check:
    """One thing that pairs are checked for: a line of `CHECKS`.

    `score` is given a region on its canvas, and what changed in it where the photo before is known. `limit`
    learns from real defects and spots what to ask; it is not called with fewer than `needs` real pairs.
    """

    problem: str  # the word for a pair that fails
    stops: str  # which pairs fail, for people
    at_most: bool  # the score must not exceed its limit; else it must reach it
    score: Callable[[Reference, RegionView, ChangedRegion | None], float | None]  # None: there is none
    limit: Callable[[Reference, Known], float | None]  # None: nothing is asked
    fault: str  # what is wrong with a pair that fails, with `{score}` and `{limit}` in it
    remedy: str  # what to change then, a sentence that serves the command line and the nodes
    needs: int = 0  # real pairs at least to learn a limit from
    own_masks: bool = True  # whether masks that the user drew are checked, too

    def stopped(self, score: float, limit: float) -> bool:
        return score > limit if self.at_most else score < limit

    def asked(self, limit: float) -> str:
        return f"at {'most' if self.at_most else 'least'} {limit:.2f}"

    def learned(self, reference: Reference, known: Known) -> float | None:
        """The limit, where there are real pairs enough to learn it from."""
        enough = self.needs == 0 or (known.calibrates and len(known.real) >= self.needs)
        return self.limit(reference, known) if enough else None


def _fill(reference: Reference, view: RegionView, changed: ChangedRegion | None) -> float | None:
    """Share of the least filled component that shows."""
    if changed is None:
        return None
    return min(component_fills(changed.before, changed.after, changed.mask, changed.noise))


def _fill_limit(reference: Reference, known: Known) -> float:
    smallest = reference.smallest_fill
    return max(smallest, _least_fill(known)) if known.calibrates else smallest


def _least_fill(known: Known) -> float:
    """Midway between the fill measured on spots without a defect and that of the weakest real defect; in both
    the photo before is estimated by `filled_in`.
    """
    misjudged = [change(filled_in(v.pixels, v.mask), v.pixels)[v.mask] for v in known.spots]
    noise = float(np.quantile(np.concatenate(misjudged), NOISE_QUANTILE))
    shown = [fill(filled_in(v.pixels, v.mask), v.pixels, v.mask, noise) for v in known.regions]
    return (1 - NOISE_QUANTILE + float(np.quantile(shown, WEAKEST))) / 2


def _contrast(reference: Reference, view: RegionView, changed: ChangedRegion | None) -> float:
    """How well the defect can be told from its surroundings, 0 to 1."""
    return contrast(view.pixels, view.mask)


def _contrast_limit(reference: Reference, known: Known) -> float | None:
    """Halfway between the weakest real defect and nothing at all; None where these do not differ."""
    real, nothing = ([contrast(v.pixels, v.mask) for v in views] for views in (known.regions, known.spots))
    weakest, typical = float(np.quantile(real, WEAKEST)), float(np.median(nothing))
    return (weakest + typical) / 2 if weakest > typical else None


def _tone(reference: Reference, view: RegionView, changed: ChangedRegion | None) -> float | None:
    """Grey levels by which it is darker than the darkest real defect, or brighter than the brightest."""
    if not reference.tones:
        return None
    value = tone(view.pixels, view.mask)
    return max(0.0, min(reference.tones) - value, value - max(reference.tones))


def _tone_limit(reference: Reference, known: Known) -> float:
    """Half of the range of real defects, and as much as tones of nothing at all vary, or as other real ones
    may lie beyond the few; where all of them are darker than their ground, or all brighter, less than would
    make one the other by more than tones of nothing vary.
    """
    nothing = [tone(v.pixels, v.mask) for v in known.spots]
    tones = np.array(reference.tones)
    beyond = max(np.ptp(tones) / 2 + np.std(nothing), beyond_range(tones))
    one_sign = tones.min() > 0 or tones.max() < 0
    return float(min(beyond, np.abs(tones).min() + np.std(nothing)) if one_sign else beyond)


def _shape(reference: Reference, view: RegionView, changed: ChangedRegion | None) -> float | None:
    """How far the mask's shape lies outside the range of real ones, in tolerances."""
    return beyond(shape_of(view.mask), reference.shapes) if reference.shapes else None


def _shape_limit(reference: Reference, known: Known) -> float:
    return 1.0


def _seam(reference: Reference, view: RegionView, changed: ChangedRegion | None) -> float:
    """Edges on the defect's outline over those beside it."""
    return seam(view.pixels, view.mask)


def _seam_limit(reference: Reference, known: Known) -> float | None:
    return reference.usual_seam


def _plausibility(reference: Reference, view: RegionView, changed: ChangedRegion | None) -> float | None:
    """Distance to the nearest real defect in the backbone's features, in deviations."""
    if not any(reference.real_features):
        return None
    return float(reference.distances(reference.backbone.features(view.pixels, view.mask)).min())


def _plausibility_limit(reference: Reference, known: Known) -> float:
    """Of real defects to those of other pairs, as far as others may be from the few, or halfway to what
    nothing at all is away from them.
    """
    nearest = [
        reference.distances(f, i).min() for i, pair in enumerate(reference.real_features) for f in pair
    ]
    worst = float(np.quantile(nearest, 1 - WEAKEST))
    typical = float(np.median([reference.distances(f).min() for f in reference.spot_features]))
    return max(worst, (worst + typical) / 2, float(next_within(nearest)))


def _duplicate(reference: Reference, view: RegionView, changed: ChangedRegion | None) -> float | None:
    """Grey levels to the most alike training defect or earlier pair."""
    look, real = look_of(view.pixels, view.mask), [look for pair in reference.looks for look in pair]
    return min((look_distance(look, other) for other in real + reference.earlier), default=None)


def _duplicate_limit(reference: Reference, known: Known) -> float:
    """Half the distance of the two most alike real pairs, or of such as are to be expected among others; of
    fewer than `ENOUGH`, no more than is hardly seen.
    """
    nearest = [
        min(look_distance(look, other) for j, pair in enumerate(reference.looks) if j != i for other in pair)
        for i, looks in enumerate(reference.looks)
        for look in looks
    ]
    if len(reference.looks) < ENOUGH:
        return min(VISIBLE, min(nearest) / 2)
    # distances have no sign, so it is their logarithm that may be normal
    expected = np.exp(-next_within(-np.log(np.maximum(nearest, 1e-3))))
    return float(min(expected, *nearest)) / 2


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


def failed(scores: Mapping[str, float], limits: Mapping[str, float], checks: Iterable[str]) -> list[str]:
    """Which of the checks a pair of these scores fails."""
    return [
        name
        for name in checks
        if name in scores and name in limits and CHECKS[name].stopped(scores[name], limits[name])
    ]
