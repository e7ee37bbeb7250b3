"""How much of a thin stroke shows, and how exactly its mask says where?

Strokes of 1, 2 and 3 pixels, drawn on the normal photos of an artifact's dataset, are made by `generate`'s
defaults, and with `--start noise`. Prints one JSON object: by defect type, start and width the mean recall
(the share of the stroke that changed by more than 5 grey levels), precision and boundary IoU of
`gate.fidelity`, and the share of pairs that the gate accepts.

    .venv/bin/python benchmarks/thin_strokes.py leather.safetensors D/mvtec --type leather/cut
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from anomalydiffusion_core.bases.diffusers_model import load_base, load_onto
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.photos import read_photo
from anomalydiffusion_core.gate.fidelity import mask_fidelity
from anomalydiffusion_core.generation.config import NOISE, PASTED, GenerationConfig
from anomalydiffusion_core.generation.generator import PairGenerator
from anomalydiffusion_core.generation.runs import training_pairs
from anomalydiffusion_core.masks.sources import GIVEN, SourcedMask
from anomalydiffusion_core.procedural.noise import stroke, wandering_path

WIDTHS = 1, 2, 3  # pixels
LENGTH = 0.4  # of a stroke, as a share of the photo's shorter side


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("dataset", type=Path, help="that it was trained on")
    parser.add_argument("--type", action="append", help="category/defect; without it all of the artifact")
    parser.add_argument("--count", type=int, default=12, help="strokes of each width")
    arguments = parser.parse_args()
    base, categories = load_base("tiny"), find_dataset(arguments.dataset).categories
    learned, results = load_onto(base, arguments.artifact), {}
    for name in arguments.type or sorted(learned.anomaly):
        category = categories[name.partition("/")[0]]
        real, normals = {name: training_pairs(category, learned, name)}, list(category.normals)
        for start in (PASTED, NOISE):
            generator = PairGenerator(base, learned, normals, GenerationConfig(start=start), real=real)
            for width in WIDTHS:
                key = f"{name}, {start}, {width} px"
                results[key] = _figures(generator, name, normals[0], width, arguments.count)
    print(json.dumps(results, indent=1))


def _figures(
    generator: PairGenerator, name: str, photo: Path, width: int, count: int
) -> dict[str, float | int]:
    size = read_photo(photo).size
    drawn = [SourcedMask(_drawn(size, width, seed), GIVEN, placed=True) for seed in range(count)]
    pairs = generator.try_indices(name, range(count), drawn.__getitem__)
    fidelity = [mask_fidelity(pair.photo.pixels, pair.pixels, pair.mask) for pair in pairs]
    return {
        "pairs": len(pairs),
        "recall": round(float(np.mean([one.completeness for one in fidelity])), 3),
        "precision": round(float(np.mean([one.precision for one in fidelity])), 3),
        "boundary_iou": round(float(np.mean([one.boundary_iou for one in fidelity])), 3),
        "accepted": round(float(np.mean([not pair.problems for pair in pairs])), 3),
    }


def _drawn(size: tuple[int, int], width: int, seed: int) -> np.ndarray:
    """A stroke's mask (H,W) bool."""
    rng = np.random.default_rng(seed)
    side = max(size)
    centre = tuple(length * rng.uniform(0.3, 0.7) for length in size)
    length, angle = LENGTH * min(size), rng.uniform(0, np.pi)
    path = wandering_path(rng, (centre[0], centre[1]), length, angle, wander=0.1)
    return stroke(side, [path], [width])[: size[0], : size[1]] > 0.5


if __name__ == "__main__":
    main()
