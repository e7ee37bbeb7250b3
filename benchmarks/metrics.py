"""Exact pixel metrics of many large maps: time and peak memory. Prints one JSON object.

.venv/bin/python benchmarks/metrics.py --images 100 --size 1024
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np

from anomalydiffusion_core.evaluation.metrics import rank_pixels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--size", type=int, default=1024)
    options = parser.parse_args()
    random, size = np.random.default_rng(0), options.size
    maps, masks = [], []
    for number in range(options.images):
        mask = np.zeros((size, size), bool)
        if number % 2:
            top, left, side = random.integers(0, size // 2), random.integers(0, size // 2), size // 8
            mask[top : top + side, left : left + side] = True
        maps.append(random.random((size, size), np.float32) + 0.3 * mask.astype(np.float32))
        masks.append(mask)
    before, start = peak_megabytes(), time.perf_counter()
    pixels, regions = rank_pixels(maps, masks)
    f1_max, threshold = pixels.f1_max()
    metrics = {
        "auroc": pixels.auroc(),
        "ap": pixels.average_precision(),
        "f1_max": f1_max,
        "pro": regions.pro(),
        "threshold": threshold,
    }
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "images": options.images,
                "size": size,
                "seconds": round(seconds, 2),
                "peak_megabytes": peak_megabytes(),
                "of_which_maps_and_masks": before,
                **{name: round(value, 6) for name, value in metrics.items()},
            }
        )
    )


def peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
