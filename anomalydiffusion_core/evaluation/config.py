"""What a comparison compares and how much of it; and the run that does it: where, on what, told to whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..method.progress import OnStage
from ..training.config import TrainingConfig
from .classifier import ClassifierConfig
from .localizer import LocalizerConfig

Protocol = Literal["honest", "paper"]


@dataclass(frozen=True)
class ComparisonConfig:
    """How contenders are trained and measured, all alike."""

    localizer: LocalizerConfig = LocalizerConfig()
    classifier: ClassifierConfig | None = None  # None: types are not told apart
    # of each type's real pairs: those that the generator was trained on; none = as `train` chooses them
    share: float | None = TrainingConfig.share
    pairs_per_type: int = 20  # the same for every contender
    seeds: int = 3
    protocol: Protocol = "honest"  # paper: the best of ten checkpoints on the test photos, as printed tables
    published_metrics: bool = False  # Inception Score, KID and IC-LPIPS, which need their networks' weights
    detectors: tuple[str, ...] = ()  # anomalib's names
    mixtures: tuple[str, ...] = ()  # contenders of others' pairs by weights, such as ours=2,draem=1
    resamples: int = 200  # of test photos, for the intervals
    allow_overlap: bool = False
    with_real: bool = False  # every contender's pairs together with the few real ones
    defects: tuple[str, ...] = ()  # only these; none: all


@dataclass(frozen=True)
class ComparisonRun:
    """One comparison: what it compares, the folder it fills or continues, and where it computes."""

    config: ComparisonConfig
    out: Path
    on_stage: OnStage = lambda *_: None
    device: torch.device | str = "cpu"

    def losses_shown(self, stage: str) -> Callable[[int, int, float], None]:
        """What a training tells its steps to: (step, total, loss)."""
        return lambda step, total, loss: self.on_stage(stage, step, total, f"loss {loss:.4f}")

    @property
    def results(self) -> Path:
        """The folder of single results and heat maps."""
        return self.out / "runs"
