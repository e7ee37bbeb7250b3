"""What a spatial encoder that was trained before is worth: a few-shot training from each start.

The base's own, an untrained one of the same size, and those in files of `pretrain-encoder`, all with the same
views, tokens and seed. Prints a JSON line each: the start, the held-out loss before and after, and its
relative change with its 95 % interval. `--save` keeps the artifacts, for benchmarks/placement.py.

    .venv/bin/python benchmarks/encoder_start.py data/demo encoder.safetensors --size 128 --save runs/starts
"""

from __future__ import annotations

import json
from pathlib import Path

from training_steps import keep, study_parser

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.method.artifact import load_artifact
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.templates import PHOTO_TEMPLATES
from anomalydiffusion_core.training.config import DefectConfig, TrainingConfig
from anomalydiffusion_core.training.encoders import untrained_encoders
from anomalydiffusion_core.training.jobs import TrainingJob


def main() -> None:
    parser = study_parser(str(__doc__))
    parser.add_argument("encoders", type=Path, nargs="*")
    parser.add_argument("--share", type=float, default=0.2, help="of each type's pairs, which trains")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    base, dataset = load_base(arguments.base, arguments.device), find_dataset(arguments.dataset)
    config = TrainingConfig(arguments.size, arguments.share, DefectConfig(steps=arguments.steps), masks=None)
    untrained = Learned(base.fingerprint, arguments.size, PHOTO_TEMPLATES)
    untrained.spatial_encoders = untrained_encoders(base, config.defects.seed)
    starts = {"untrained": untrained}
    starts |= {path.stem: load_artifact(path, base.fingerprint) for path in arguments.encoders}
    for name, start in {**starts, **({"own": None} if base.spatial_encoders else {})}.items():
        outcome = TrainingJob(base, dataset, config, start=start).run()
        change = outcome.improvement
        if change is None:
            parser.error(f"--share {arguments.share} holds no pairs out: give less")
        row = {
            "start": name,
            "before": round(change.before, 4),
            "after": round(change.after, 4),
            "change": round(change.relative, 4),
            "interval_95": [round(change.low, 4), round(change.high, 4)],
        }
        print(json.dumps(row), flush=True)
        keep(outcome.learned, arguments.save, name)


if __name__ == "__main__":
    main()
