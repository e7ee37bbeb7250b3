"""How memory grows with the photo: the peak of a process that generates 2 pairs on photos of each size.

Each size is a process of its own, from finding the normal photos to the written dataset; training pairs of
the same size calibrate the gate. Defects keep their size in pixels, three to a mask. The aim: at 4096 px a
side at most 1.5 times the peak at 512. Defaults to the demo's embeddings; their vectors do not matter here.

    .venv/bin/python benchmarks/native_resolution.py
    .venv/bin/python benchmarks/native_resolution.py --sizes 512 8192 --canvas 256
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measurement import peak_memory, use_one_thread
from PIL import Image

from anomalydiffusion_core.bases.diffusers_model import load_base, load_onto
from anomalydiffusion_core.bases.tiny.architecture import DEMO_EMBEDDINGS
from anomalydiffusion_core.dataset.layout import Dataset, find_dataset
from anomalydiffusion_core.dataset.photos import read_mask, short_hash, write_png
from anomalydiffusion_core.gate.gate import GateConfig
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.runs import GenerationRun, generate_all, masks_in_folder
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.sampling import SamplingConfig
from anomalydiffusion_core.procedural.few_shot import draw_pair

CATEGORY, DEFECT = "leather", "burn"
NAME = f"{CATEGORY}/{DEFECT}"
TILE = 512  # pixels per side that photos are laid of
PLACES = ((0.3, 0.3), (0.4, 0.75), (0.75, 0.5))  # of a mask's defects, in shares of the side


def write_dataset(root: Path, size: int, gray: bool, normals: int = 6, pairs: int = 3) -> None:
    """Normal photos and pairs of `size` px a side, in MVTec's layout."""
    for index in range(normals):
        photo = tiled(draw_pair(CATEGORY, None, index, TILE)[0], size)
        _write(photo, gray, root / CATEGORY / "train" / "good" / f"{index:03d}.png")
    for index in range(pairs):
        photo = tiled(draw_pair(CATEGORY, None, normals + index, TILE)[0], size)
        defective, marked = draw_pair(CATEGORY, DEFECT, index, 128)
        mask = np.zeros((size, size), bool)
        for corner in (np.array(PLACES) * (size - 128)).astype(int):
            box = np.s_[corner[0] : corner[0] + 128, corner[1] : corner[1] + 128]
            photo[box][marked], mask[box] = defective[marked], marked
        _write(photo, gray, root / CATEGORY / "test" / DEFECT / f"{index:03d}.png")
        path = root / CATEGORY / "ground_truth" / DEFECT / f"{index:03d}_mask.png"
        write_png(Image.fromarray(mask.astype(np.uint8) * 255), path)


def tiled(tile: np.ndarray, size: int) -> np.ndarray:
    """(n,n,3) repeated to (size,size,3)."""
    times = -(-size // len(tile))
    return np.tile(tile, (times, times, 1))[:size, :size].copy()


def _write(photo: np.ndarray, gray: bool, path: Path) -> None:
    write_png(Image.fromarray(photo).convert("L" if gray else "RGB"), path)


def trained_here(model: Learned, dataset: Dataset, canvas: int) -> Learned:
    """The model as if it had been trained on the dataset's pairs, on a canvas of that many pixels."""
    pairs = dataset.by_type()[NAME]
    model.image_size, model.trained_on = canvas, {}
    model.remember(NAME, [short_hash(pair.image) for pair in pairs])
    model.mask_areas[NAME] = min(float(read_mask(pair.mask).mean()) for pair in pairs)
    model.mask_placements = {}
    return model


def generate(root: Path, options: argparse.Namespace) -> None:
    """Two pairs, with masks as they are; nothing is rejected."""
    use_one_thread()
    base, dataset = load_base("tiny"), root / "dataset"
    model = load_onto(base, options.artifact)
    model = trained_here(model, find_dataset(dataset), options.canvas)
    config = GenerationConfig(
        SamplingConfig(steps=options.steps, guidance=2.5),
        gate=GateConfig(checks=()),
        batch_size=options.batch,
    )
    run, masks = GenerationRun(model, config, base, options.artifact), dataset / CATEGORY / "ground_truth"
    outcome = generate_all(
        run,
        find_dataset(dataset),
        2,
        out=root / "out",
        defect_types=[NAME],
        given=masks_in_folder(masks, [NAME], model),
    )
    if len(outcome.rows) != 2:
        raise RuntimeError(f"2 pairs were to be made: {outcome.shortfalls}")


def measure(size: int, gray: bool, options: argparse.Namespace) -> dict[str, float]:
    """Peak memory (MiB) and seconds for one size."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # in a process of its own, so that making the photos does not count as memory
        peak_memory(lambda: write_dataset(root / "dataset", size, gray), "cpu")
        start = time.perf_counter()
        peak = peak_memory(partial(generate, root, options), "cpu", "spawn")
        return {"peak_mib": round(peak, 1), "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact", type=Path, default=DEMO_EMBEDDINGS, help="trained on the tiny base")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--kinds", nargs="+", choices=["gray", "rgb"], default=["gray", "rgb"])
    parser.add_argument("--canvas", type=int, default=128, help="pixels per side of the model's canvas")
    parser.add_argument(
        "--steps", type=int, default=4, help="denoising steps; memory does not depend on them"
    )
    parser.add_argument("--batch", type=int, default=GenerationConfig().batch_size)
    options = parser.parse_args()
    figures = {
        kind: {str(size): measure(size, kind == "gray", options) for size in options.sizes}
        for kind in options.kinds
    }
    smallest = str(min(options.sizes))
    ratios = {
        kind: {size: round(row["peak_mib"] / rows[smallest]["peak_mib"], 3) for size, row in rows.items()}
        for kind, rows in figures.items()
    }
    settings = {"canvas": options.canvas, "steps": options.steps, "batch": options.batch}
    result = {"peak_over_smallest": ratios, **figures, "options": settings, "torch": torch.__version__}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
