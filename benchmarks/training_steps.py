"""How many steps does a training need? The held-out loss after trainings of different length.

Each is a training of its own, with its own decay of the rates, from the same start, views and seed. Prints a
JSON line each: steps, averaging, seconds, the relative change of the held-out loss with its 95 % interval,
and the share of the longest training's improvement. `--save` keeps the artifacts, for benchmarks/gate.py.

    .venv/bin/python benchmarks/training_steps.py data/leather --steps 60 300 600 6000 --save runs/steps
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.method.artifact import save_artifact
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.training.config import DefectConfig, TrainingConfig
from anomalydiffusion_core.training.jobs import TrainingJob


def study_parser(description: str) -> argparse.ArgumentParser:
    """The command line of a study of trainings on one dataset."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--size", type=int, default=256, help="pixels per side of the views")
    parser.add_argument("--save", type=Path, help="a folder for the artifacts")
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--device", default="cpu")
    return parser


def keep(learned: Learned, folder: Path | None, name: str) -> None:
    """Saves an artifact below `folder`, where one was asked for."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        save_artifact(learned, folder / f"{name}.safetensors", torch.float16)


def main() -> None:
    parser = study_parser(str(__doc__))
    parser.add_argument("--steps", type=int, nargs="+", required=True)
    parser.add_argument("--averaging", type=float, nargs="+", default=[0.0])
    parser.add_argument("--share", type=float, default=1 / 3, help="of each type's pairs, which trains")
    parser.add_argument("--views", type=int, default=DefectConfig.views_per_pair, help="of each pair")
    parser.add_argument("--refresh-every", type=int, default=0, help="steps after which other views are made")
    arguments = parser.parse_args()
    base, dataset = load_base(arguments.base, arguments.device), find_dataset(arguments.dataset)
    changes: dict[tuple[int, float], float] = {}
    for steps in sorted(arguments.steps, reverse=True):
        for averaging in arguments.averaging:
            defects = DefectConfig(
                steps=steps,
                averaging=averaging,
                views_per_pair=arguments.views,
                refresh_every=arguments.refresh_every,
            )
            config = TrainingConfig(arguments.size, arguments.share, defects, masks=None)
            start = time.monotonic()
            outcome = TrainingJob(base, dataset, config).run()
            if outcome.improvement is None:
                parser.error(f"--share {arguments.share} holds no pairs out: give less")
            change = changes[steps, averaging] = outcome.improvement.relative
            row = {
                "steps": steps,
                "averaging": averaging,
                "views": arguments.views,
                "refresh_every": arguments.refresh_every,
                "seconds": round(time.monotonic() - start, 1),
                "change": round(change, 4),
                "interval_95": [round(outcome.improvement.low, 4), round(outcome.improvement.high, 4)],
                "share_of_longest": round(change / next(iter(changes.values())), 3),
            }
            print(json.dumps(row), flush=True)
            keep(outcome.learned, arguments.save, f"{steps}-{averaging:g}")


if __name__ == "__main__":
    main()
