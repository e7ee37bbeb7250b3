"""Does the gate let real defects through? Its checks on fresh pairs of the demo's own defects.

The gate is calibrated on the six pairs of each type that train the demo, and on its normal photos; the pairs
judged are drawn by the same generator with other seeds. Fill is left out, which needs the photo before.
Prints one JSON object: by type how many of how many pass, and which checks stop the others.

    .venv/bin/python benchmarks/gate_on_real.py --seeds 6
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.dataset.layout import Category, Dataset, Pair, find_dataset, split_pairs
from anomalydiffusion_core.gate.checks import Scores
from anomalydiffusion_core.gate.gate import Gate
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.generator import PairGenerator
from anomalydiffusion_core.generation.regions import pair_on_canvas
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.templates import PHOTO_TEMPLATES
from anomalydiffusion_core.pretraining.demo import SIZE
from anomalydiffusion_core.procedural.few_shot import write_few_shot_dataset
from anomalydiffusion_core.training.config import DEMO


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=6, help="fresh datasets, each of ten pairs per type")
    seeds, base = parser.parse_args().seeds, load_base("tiny")
    with tempfile.TemporaryDirectory() as folder:
        known, *fresh = (_few_shot(Path(folder) / str(seed), seed) for seed in range(seeds + 1))
        results = {
            name: _passed(gate, [pair for dataset in fresh for pair in dataset.by_type()[name]])
            for category in known.categories.values()
            for name, gate in _gates(base, category).items()
        }
    print(json.dumps(results))


def _few_shot(folder: Path, seed: int) -> Dataset:
    write_few_shot_dataset(folder, SIZE, seed=seed)
    return find_dataset(folder)


def _gates(base: LatentDiffusion, category: Category) -> dict[str, Gate]:
    types = dict.fromkeys(pair.defect_type for pair in category.pairs)
    real = {
        name: split_pairs([pair for pair in category.pairs if pair.defect_type == name], DEMO.share)[0]
        for name in types
    }
    learned = Learned(base.fingerprint, SIZE, PHOTO_TEMPLATES)
    generator = PairGenerator(base, learned, list(category.normals), GenerationConfig(), real=real)
    return {name: generator.gate(name) for name in types}


def _passed(gate: Gate, pairs: list[Pair]) -> dict[str, object]:
    stopped: Counter[str] = Counter()
    passed = 0
    for pair in pairs:
        views = pair_on_canvas(pair, SIZE)
        problems = gate.problems(Scores.worst([gate.score_seen(view) for view in views]))
        stopped.update(problems)
        passed += not problems
    return {
        "pairs": len(pairs),
        "passed": passed,
        "stopped": dict(stopped),
        "limits": gate.limits.rounded(),
    }


if __name__ == "__main__":
    main()
