"""What a gate looks at: a defect region in its window, and what changed in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .scores import change


@dataclass(frozen=True)
class RegionView:
    """A region in its window at the canvas's size: `pixels` (S,S,3) in [0,255], `mask` (S,S) bool."""

    pixels: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class ChangedRegion:
    """A generated region: on its `view`, and in its window (h,w) `before`, `after`, `mask`; `noise` is what a
    change must exceed to show, in grey levels (`scores.visible`). An `own_mask` is one that the user drew.
    """

    view: RegionView
    before: np.ndarray
    after: np.ndarray
    mask: np.ndarray
    noise: float
    own_mask: bool = False


def shown_share(regions: list[ChangedRegion]) -> float:
    """Share of a pair's whole mask that shows: where the change exceeds the noise of its region."""
    shown = [change(region.before, region.after)[region.mask] > region.noise for region in regions]
    return float(np.concatenate(shown).mean())
