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

from scipy.stats import spearmanr

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.dataset.layout import find_dataset, split_pairs
from anomalydiffusion_core.dataset.photos import read_mask, read_photo
from anomalydiffusion_core.gate.features import find_backbone
from anomalydiffusion_core.generation.grounds import Grounds
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
            if (implausible := row["scores"].get("plausibility")) is not None:
                views = regions_on_canvas(photo, read_mask(folder / row["mask"]), SIZE)
                tries[f"{row['category']}/{row['defect']}"].append((views, implausible))
    for name, pairs in find_dataset(arguments.dataset).by_type().items():
        trained = split_pairs(pairs, float(Fraction(arguments.share)))[0]
        real = [view for pair in trained for view in pair_on_canvas(pair, SIZE)]
        away = Grounds(real, backbone, SIZE).distances([views for views, _ in tries[name]])
        found: Any = spearmanr(away, [score for _, score in tries[name]])
        print(f"{name:26} {found.statistic:+.2f} (p {found.pvalue:.1g}), {len(away)} tries", flush=True)


if __name__ == "__main__":
    main()
