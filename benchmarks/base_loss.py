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
from anomalydiffusion_core.training.config import DefectConfig
from anomalydiffusion_core.training.defects import AnomalyTask
from anomalydiffusion_core.training.validation import Validation, paired_improvement

SIZE = 128
PER_TYPE = 20  # pairs, the first


def losses(base_file: str, folder: Path, normalisation: str) -> np.ndarray:
    """Of each pair at each of its timesteps, (N, repeats)."""
    base, pairs = load_base(base_file), find_dataset(folder).by_type()
    pairs = {name: some[:PER_TYPE] for name, some in pairs.items()}
    views = make_views(base, pairs, 1, SIZE, generator=torch.Generator().manual_seed(0))
    task = AnomalyTask(base, views, {}, DefectConfig(tokens=1, normalisation=normalisation))  # type: ignore[arg-type]
    return Validation(views, repeats=16).measure(task).numpy()


def main() -> None:
    before_file, after_file, *folders = sys.argv[1:]
    for folder in folders:
        for kind, normalisation in (("in the mask", "mask"), ("of the photo", "unmasked")):
            before, after = (losses(file, Path(folder), normalisation) for file in (before_file, after_file))
            change = paired_improvement(before, after)
            print(
                f"{Path(folder).name:14} {kind:12} {change.before:.4f} -> {change.after:.4f} "
                f"{100 * change.relative:+.1f} % ({100 * change.low:+.1f} to {100 * change.high:+.1f}), "
                f"{len(before)} pairs",
                flush=True,
            )


if __name__ == "__main__":
    main()
