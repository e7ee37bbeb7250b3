"""Does it show where a defect was put? Of the tries that `generate --keep-rejected` wrote, by type: the rank
correlation of how unlike the ground there is to that of the real pairs with how implausible the defect was.

python benchmarks/grounds.py GENERATED DATASET --share 1/3
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.dataset.layout import find_dataset, split_pairs
from anomalydiffusion_core.dataset.photos import read_mask, read_photo
from anomalydiffusion_core.gate.features import find_backbone
from anomalydiffusion_core.generation.regions import pair_on_canvas, regions_on_canvas

SIZE = 128  # of the canvas, in pixels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("generated", type=Path)
    parser.add_argument("dataset", type=Path, help="the folder of its one category")
    parser.add_argument("--share", default="0.6", help="of real pairs that trained")
    arguments = parser.parse_args()
    base, tries = load_base("tiny"), defaultdict(list)
    backbone = find_backbone(base.encode, "tiny")
    for folder in (arguments.generated, arguments.generated / "rejected"):
        for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            photo = read_photo(arguments.generated / row["normal"])
            views = regions_on_canvas(photo, read_mask(folder / row["mask"]), SIZE)
            grounds = [backbone.ground(view.pixels, view.mask) for view in views]
            if row["scores"].get("plausibility") is not None:
                tries[f"{row['category']}/{row['defect']}"].append((grounds, row["scores"]["plausibility"]))
    for name, pairs in find_dataset(arguments.dataset).by_type().items():
        trained = split_pairs(pairs, float(Fraction(arguments.share)))[0]
        real = [backbone.ground(v.pixels, v.mask) for pair in trained for v in pair_on_canvas(pair, SIZE)]
        every = np.stack([*real, *(ground for grounds, _ in tries[name] for ground in grounds)])
        deviation = every.std(0) + 1e-3 * np.abs(every).mean()
        away = [
            np.mean([np.sqrt(np.square((g - np.stack(real)) / deviation).mean(1)).min() for g in grounds])
            for grounds, _ in tries[name]
        ]
        found: Any = spearmanr(away, [score for _, score in tries[name]])
        print(f"{name:26} {found.statistic:+.2f} (p {found.pvalue:.1g}), {len(away)} tries", flush=True)


if __name__ == "__main__":
    main()
