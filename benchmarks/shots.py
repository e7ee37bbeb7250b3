"""How many photos of a defect does it take? The held-out loss after training on the first 1, 2, 3, 5, 10.

All are measured on the same last `--measured` pairs of each type. Prints a JSON line each: pairs per type,
and the relative change of the held-out loss with its 95 % interval. `--save` keeps the artifacts, for
benchmarks/gate.py.

    .venv/bin/python benchmarks/shots.py data/demo --shots 1 2 3 5 10 --size 128 --steps 500
"""

from __future__ import annotations

import json
from dataclasses import replace

from training_steps import keep, study_parser

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.dataset.layout import Dataset, find_dataset, split_pairs
from anomalydiffusion_core.training.config import DefectConfig, TrainingConfig
from anomalydiffusion_core.training.jobs import TrainingJob


def subset(dataset: Dataset, shots: int, measured: int) -> Dataset:
    """The first `shots` and the last `measured` pairs of each type."""
    categories = dict(dataset.categories)
    for name, pairs in dataset.by_type().items():
        if len(pairs) < shots + measured:
            raise SystemExit(f"{name} has {len(pairs)} pairs, not {shots} and {measured}: ask for fewer.")
        first, rest = split_pairs(pairs, shots / len(pairs))
        category = categories[pairs[0].category]
        others = [pair for pair in category.pairs if pair.defect_type != name]
        categories[category.name] = replace(category, pairs=(*others, *first, *rest[-measured:]))
    return replace(dataset, categories=categories)


def main() -> None:
    parser = study_parser(str(__doc__))
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 3, 5, 10])
    parser.add_argument("--measured", type=int, default=6)
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    base, dataset = load_base(arguments.base, arguments.device), find_dataset(arguments.dataset)
    defects = DefectConfig(steps=arguments.steps)
    for shots in arguments.shots:
        part = subset(dataset, shots, arguments.measured)
        share = shots / (shots + arguments.measured)
        config = TrainingConfig(arguments.size, share, defects, masks=None)
        outcome = TrainingJob(base, part, config).run()
        change = outcome.improvement
        assert change is not None
        row = {
            "shots": shots,
            "change": round(change.relative, 4),
            "interval_95": [round(change.low, 4), round(change.high, 4)],
        }
        print(json.dumps(row), flush=True)
        keep(outcome.learned, arguments.save, str(shots))


if __name__ == "__main__":
    main()
