"""Mask sources as tests of several folders want them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anomalydiffusion_core.masks.sources import MaskRequest, MaskSource, given_masks


def given(masks: Sequence[np.ndarray], placed: bool = True) -> MaskSource:
    """Masks (H,W) bool in turn."""
    return given_masks(MaskRequest("thing/dent", given=masks, given_placed=placed))
