"""Do the gate's features tell defect types apart? The base's autoencoder against the extra `features`.

For each defect type of a dataset: the distance of each real pair to the nearest other pair of its type, as
the gate computes it, against that of other types' pairs (`types`), and of the type's masks laid on normal
photos (`nothing`). Prints one JSON object: by dataset and network the area under the ROC curve (0.5: by
chance; 1: always nearer), a mean over types.

    .venv/bin/python benchmarks/features.py D/mvtec/leather D/mvtec/screw D/deeppcb/pcb
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
from sklearn.metrics import roc_auc_score

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.dataset.layout import Category, Pair, find_dataset
from anomalydiffusion_core.gate import imagenet
from anomalydiffusion_core.gate.gate import Gate
from anomalydiffusion_core.gate.region_view import RegionView
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.generator import PairGenerator
from anomalydiffusion_core.generation.regions import pair_on_canvas
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.templates import PHOTO_TEMPLATES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", type=Path, help="folders of one category each, several types")
    parser.add_argument("--size", type=int, default=128, help="of the canvas, in pixels")
    parser.add_argument("--pairs", type=int, default=12, help="of each type, at most")
    arguments = parser.parse_args()
    base, results = load_base("tiny"), {}
    for root in arguments.datasets:
        (category,) = find_dataset(root).categories.values()
        with patch.object(imagenet, "PACKAGES", ("no such package",)):
            results[f"{category.name}, autoencoder"] = _told_apart(base, category, arguments)
        results[f"{category.name}, {imagenet.NAME}"] = _told_apart(base, category, arguments)
    print(json.dumps(results, indent=1))


def _told_apart(base: LatentDiffusion, category: Category, arguments: argparse.Namespace) -> dict[str, float]:
    of_type: dict[str, list[Pair]] = {}
    for pair in category.pairs:
        of_type.setdefault(pair.defect_type, []).append(pair)
    of_type = {name: pairs[: arguments.pairs] for name, pairs in of_type.items()}
    learned = Learned(base.fingerprint, arguments.size, PHOTO_TEMPLATES)
    generator = PairGenerator(base, learned, list(category.normals), GenerationConfig(), real=of_type)
    views = {
        name: [view for pair in pairs for view in pair_on_canvas(pair, arguments.size)]
        for name, pairs in of_type.items()
    }
    types, nothing = zip(*(_of_type(generator.gate(name), name, views) for name in of_type), strict=True)
    return {"types": round(float(np.mean(types)), 3), "nothing": round(float(np.mean(nothing)), 3)}


def _of_type(gate: Gate, name: str, views: dict[str, list[RegionView]]) -> tuple[float, float]:
    own = [gate.distances(f, i).min() for i, pair in enumerate(gate.real_features) for f in pair]
    others = [
        gate.distances(gate.backbone.features(view.pixels, view.mask)).min()
        for other, of_other in views.items()
        if other != name
        for view in of_other
    ]
    nothing = [gate.distances(f).min() for f in gate.spot_features]
    return _area(own, others), _area(own, nothing)


def _area(near: list[float], far: list[float]) -> float:
    return float(roc_auc_score([0] * len(near) + [1] * len(far), near + far))


if __name__ == "__main__":
    main()
