"""Comparisons that take no time: a tiny localiser, few steps, few pairs."""

from __future__ import annotations

from anomalydiffusion_core.evaluation.config import ComparisonConfig
from anomalydiffusion_core.evaluation.localizer import LocalizerConfig

SMALL = LocalizerConfig(size=32, width=2, steps=3, batch_size=4)
CONFIG = ComparisonConfig(SMALL, share=0.5, pairs_per_type=2, seeds=2, resamples=3)
