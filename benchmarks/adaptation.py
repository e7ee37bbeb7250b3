"""What adapting the base to normal photos is worth: the same training on the plain and on the adapted base.

Both start from the same seed and are measured on the same held-out pairs. Prints a JSON line each:
- normals: the base's own loss on views of `test/good` before and after adaptation, its interval over photos.
- plain, adapted: the held-out masked loss after training, against that of the plain base before training.
- adapted_to_plain: the former's loss after training against the latter's.
Intervals are 95 % bootstrap intervals, paired. `--save` keeps the artifacts, for benchmarks/gate.py.

    .venv/bin/python benchmarks/adaptation.py data/leather --seeds 0 1 2 --save runs/adaptation
"""

from __future__ import annotations

import json
import time

import torch
from torch import Tensor
from training_steps import keep, study_parser

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel, load_base
from anomalydiffusion_core.dataset.layout import Dataset, find_dataset
from anomalydiffusion_core.dataset.views import make_normal_views
from anomalydiffusion_core.training.adaptation import AdaptationTask, adapt_to_normals
from anomalydiffusion_core.training.config import AdaptationConfig, DefectConfig, TrainingConfig
from anomalydiffusion_core.training.jobs import TrainingJob
from anomalydiffusion_core.training.stage import Stage
from anomalydiffusion_core.training.validation import Validation, paired_improvement

VIEWS = 8  # of each photo of `test/good`


def main() -> None:
    parser = study_parser(str(__doc__))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--adapt-steps", type=int, default=300)
    parser.add_argument("--share", type=float, default=1 / 3, help="of each type's pairs, which trains")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    dataset = find_dataset(arguments.dataset)
    for seed in arguments.seeds:
        defects = DefectConfig(steps=arguments.steps, seed=seed)
        config = TrainingConfig(arguments.size, arguments.share, defects, masks=None)
        losses: dict[str, tuple[Tensor, Tensor]] = {}
        for variant in ("plain", "adapted"):
            base = load_base(arguments.base, arguments.device)
            if variant == "adapted":
                adapt(base, dataset, AdaptationConfig(steps=arguments.adapt_steps, seed=seed), arguments.size)
            start, stage = time.monotonic(), Stage("anomaly")
            outcome = TrainingJob(base, dataset, config).train_defects(stage)
            if outcome.improvement is None:
                parser.error(f"--share {arguments.share} holds no pairs out: give less")
            measured = [losses for _, losses in stage.monitor.history.validation]
            losses[variant] = measured[0], measured[-1]
            tell(variant, seed, losses["plain"][0], measured[-1], seconds=time.monotonic() - start)
            keep(outcome.learned, arguments.save, f"{variant}-{seed}")
        tell("adapted_to_plain", seed, losses["plain"][1], losses["adapted"][1])


def adapt(base: DiffusersModel, dataset: Dataset, config: AdaptationConfig, size: int) -> None:
    """Adapts a base, and tells what that does to photos that it was not adapted to."""
    photos = {name: c.test_normals for name, c in dataset.categories.items() if c.test_normals}
    views = make_normal_views(base, photos, VIEWS, size, generator=torch.Generator().manual_seed(1))
    validation, task = Validation(views), AdaptationTask(base, views, {})
    before, start = validation.measure(task), time.monotonic()
    adapt_to_normals(base, dataset, config, size)
    seconds = time.monotonic() - start
    # a row for each photo, since its views are much alike
    rows = [losses.reshape(len(views) // VIEWS, -1) for losses in (before, validation.measure(task))]
    tell("normals", config.seed, *rows, seconds=seconds)


def tell(what: str, seed: int, before: Tensor, after: Tensor, *, seconds: float | None = None) -> None:
    """Prints how losses (N, repeats) changed."""
    change = paired_improvement(before.numpy(), after.numpy())
    row = {
        "what": what,
        "seed": seed,
        "before": round(change.before, 5),
        "after": round(change.after, 5),
        "change": round(change.relative, 4),
        "interval_95": [round(change.low, 4), round(change.high, 4)],
        "rows": len(before),
        "seconds": seconds and round(seconds, 1),
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
