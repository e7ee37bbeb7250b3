"""How often does the gate let real pairs pass that it was not calibrated on?

Of each defect type of a dataset, the gate learns its limits from `--share` of the real pairs, as `generate`
does, and is shown the others. Prints one JSON object: by dataset and type how many regions of them there
are, how many pass all checks, and how many each check stops. Fill is not among them, since there is no
photo from before.

    .venv/bin/python benchmarks/held_out.py D/mvtec/leather D/piped/brg03 --share 0.0625
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.dataset.layout import Category, Pair, find_dataset
from anomalydiffusion_core.evaluation.split import split_category
from anomalydiffusion_core.gate.checks import CHECKS, failed
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
    parser.add_argument("datasets", nargs="+", type=Path, help="folders of one category each")
    parser.add_argument("--share", type=float, default=0.6, help="of real pairs that the gate learns from")
    parser.add_argument("--size", type=int, default=128, help="of the canvas, in pixels")
    arguments = parser.parse_args()
    base, results = load_base("tiny"), {}
    for root in arguments.datasets:
        (category,) = find_dataset(root).categories.values()
        results[category.name] = _shown(base, category, arguments)
    print(json.dumps(results, indent=1))


def _shown(
    base: LatentDiffusion, category: Category, arguments: argparse.Namespace
) -> dict[str, dict[str, int]]:
    split, size = split_category(category, arguments.share), arguments.size
    few = {f"{category.name}/{name}": _of(split.few_shot_pairs, name) for name in split.defects}
    learned = Learned(base.fingerprint, size, PHOTO_TEMPLATES)
    generator = PairGenerator(base, learned, list(category.normals), GenerationConfig(), real=few)
    results = {}
    for name in split.defects:
        gate, counts = generator.gate(f"{category.name}/{name}"), Counter(real=0, passed=0)
        for view in (view for pair in _of(split.test_pairs, name) for view in pair_on_canvas(pair, size)):
            stopped = failed(gate.score_seen(view), gate.limits, CHECKS)
            counts.update(stopped, real=1, passed=not stopped)
        results[name] = dict(counts)
    return results


def _of(pairs: Iterable[Pair], defect: str) -> list[Pair]:
    return [pair for pair in pairs if pair.defect == defect]


if __name__ == "__main__":
    main()
