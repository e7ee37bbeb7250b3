"""Does attention re-weighting act? Fill of the same pairs (same photos, masks, noise) under each AAR mode.

Example: python benchmarks/fill.py leather.safetensors data/leather --count 24
Masks are the dataset's own held-out ones, moved nowhere. Prints one JSON object: per mode the mean fill,
the share of masks filled over half, and the mean paired difference to `off` with its 95 % bootstrap interval.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from trained import load_trained, trained_parser

from anomalydiffusion_core.dataset.layout import split_pairs
from anomalydiffusion_core.dataset.photos import read_mask
from anomalydiffusion_core.generation import PairGenerator
from anomalydiffusion_core.generation_config import GenerationConfig
from anomalydiffusion_core.mask_sources import own_masks
from anomalydiffusion_core.reweighting import AARConfig, AARMode
from anomalydiffusion_core.sampling import SamplingConfig


def main() -> None:
    parser = trained_parser(str(__doc__), guidance=2.5, steps=25)
    parser.add_argument("--count", type=int, default=24, help="pairs per defect type")
    parser.add_argument("--share", type=float, default=1 / 3, help="as in training; masks come from the rest")
    parser.add_argument("--modes", nargs="+", default=[mode.value for mode in AARMode])
    parser.add_argument("--sheet", type=Path, help="save a picture: photo, mask, one row per mode")
    arguments = parser.parse_args()
    base, model, dataset = load_trained(arguments)
    fills: dict[str, list[float]] = {}
    rows: dict[str, list[np.ndarray]] = {"photo": [], "mask": []}
    for mode in map(AARMode, arguments.modes):
        sampling = SamplingConfig(steps=arguments.steps, guidance=arguments.guidance, aar=AARConfig(mode))
        config = GenerationConfig(sampling, foreground="none")
        fills[mode.value] = []
        for category in dataset.categories.values():
            generator = PairGenerator(base, model, list(category.normals), replace(config, seed=7))
            for name, pairs in dataset.by_type().items():
                if not name.startswith(category.name + "/") or name not in model.anomaly:
                    continue
                held_out = split_pairs(pairs, arguments.share)[1] or pairs
                masks = own_masks([read_mask(pair.mask) for pair in held_out])
                made = generator.try_indices(name, range(arguments.count), masks)
                fills[mode.value] += [pair.fill for pair in made]
                rows.setdefault(mode.value, []).extend(pair.pixels for pair in made[:2])
                if mode.value == arguments.modes[0]:
                    rows["photo"] += [pair.photo.pixels for pair in made[:2]]
                    rows["mask"] += [
                        np.repeat(pair.mask[..., None] * np.uint8(255), 3, 2) for pair in made[:2]
                    ]
    print(json.dumps({mode: _figures(values, fills[arguments.modes[0]]) for mode, values in fills.items()}))
    if arguments.sheet:
        _save_sheet(rows, arguments.sheet)


def _figures(values: list[float], reference: list[float]) -> dict[str, object]:
    rng = np.random.default_rng(0)
    difference = np.asarray(values) - np.asarray(reference)
    resampled = difference[rng.integers(0, len(difference), (4000, len(difference)))].mean(1)
    return {
        "mean_fill": round(float(np.mean(values)), 4),
        "over_half": round(float(np.mean(np.asarray(values) > 0.5)), 4),
        "gain": round(float(difference.mean()), 4),
        "gain_95": [round(float(q), 4) for q in np.quantile(resampled, [0.025, 0.975])],
        "pairs": len(values),
    }


def _save_sheet(rows: dict[str, list[np.ndarray]], path: Path, size: int = 192) -> None:
    from PIL import Image

    grid = [
        np.concatenate([np.asarray(Image.fromarray(tile).resize((size, size))) for tile in row], 1)
        for row in rows.values()
    ]
    Image.fromarray(np.concatenate(grid)).save(path)


if __name__ == "__main__":
    main()
