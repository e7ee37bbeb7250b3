"""How many invented masks are usable, and how large they are, at several guidance scales.

The first `--tries` masks of each type, before others take the place of unusable ones; areas are shares of the
picture, at their 10, 50 and 90 % quantiles, beside the smallest training mask's.

    .venv/bin/python benchmarks/masks.py leather.safetensors --guidance 1 2 5
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from anomalydiffusion_core.bases.diffusers_model import load_base, load_onto
from anomalydiffusion_core.masks.invention import MaskConfig, invented_masks

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--tries", type=int, default=16)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 5.0])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    base = load_base(options.base)
    learned = load_onto(base, options.artifact)
    rows, usable = [], Counter()
    for name in sorted(learned.mask):
        for guidance in options.guidance:
            sampling = replace(MaskConfig().sampling, guidance=guidance)
            source, tries = invented_masks(base, learned, name, options.seed, config=MaskConfig(sampling)), []
            for start in range(0, options.tries, BATCH):
                tries += source.attempt(list(range(start, min(start + BATCH, options.tries))))
            outcome = Counter(problem or "usable" for _, problem in tries)
            usable[guidance] += outcome["usable"]
            areas = [mask.mean() for mask, problem in tries if not problem] or [0.0]
            rows.append(
                {
                    "type": name,
                    "guidance": guidance,
                    **outcome,
                    "areas": np.quantile(areas, [0.1, 0.5, 0.9]).round(4).tolist(),
                    "smallest_training_area": round(learned.mask_areas.get(name, 0.0), 4),
                }
            )
    tries = options.tries * len(learned.mask)
    shares = {str(guidance): round(count / tries, 3) for guidance, count in usable.items()}
    print(json.dumps({"usable_by_guidance": shares, "types": rows}))


if __name__ == "__main__":
    main()
