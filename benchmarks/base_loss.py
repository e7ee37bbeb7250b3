"""What two base files leave of real defects before anything is learned: the masked loss of pairs described
by the word "defect" alone, at the same timesteps and noise.

python benchmarks/base_loss.py BEFORE AFTER DATASET...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.views import make_views
from anomalydiffusion_core.training.config import DefectConfig, Normalisation
from anomalydiffusion_core.training.defects import AnomalyTask
from anomalydiffusion_core.training.validation import Validation, paired_improvement

SIZE = 128
PER_TYPE = 20  # pairs, the first


KINDS: dict[str, Normalisation] = {"in the mask": "mask", "of the photo": "unmasked"}


def losses(base_file: str, folder: Path) -> dict[str, np.ndarray]:
    """By kind, of each pair at each of its timesteps, (N, repeats)."""
    base, pairs = load_base(base_file), find_dataset(folder).by_type()
    pairs = {name: some[:PER_TYPE] for name, some in pairs.items()}
    views = make_views(base, pairs, 1, SIZE, generator=torch.Generator().manual_seed(0))
    validation = Validation(views, repeats=16)
    configs = {kind: DefectConfig(tokens=1, normalisation=weighted) for kind, weighted in KINDS.items()}
    tasks = {kind: AnomalyTask(base, views, {}, config) for kind, config in configs.items()}
    return {kind: validation.measure(task).numpy() for kind, task in tasks.items()}


def main() -> None:
    before_file, after_file, *folders = sys.argv[1:]
    for folder in folders:
        before, after = (losses(file, Path(folder)) for file in (before_file, after_file))
        for kind in KINDS:
            change = paired_improvement(before[kind], after[kind])
            print(
                f"{Path(folder).name:14} {kind:12} {change.before:.4f} -> {change.after:.4f} "
                f"{100 * change.relative:+.1f} % ({100 * change.low:+.1f} to {100 * change.high:+.1f}), "
                f"{len(before[kind])} pairs",
                flush=True,
            )


if __name__ == "__main__":
    main()
