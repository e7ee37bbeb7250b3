"""How exactly do the masks of real pairs say what shows, by the ruler of generated ones? The ground without
the defect is filled in from around the mask, so that precision is 1 by construction.

python benchmarks/fidelity_on_real.py DATASET
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from anomalydiffusion_core.dataset.layout import Pair, find_dataset
from anomalydiffusion_core.dataset.photos import read_mask, read_photo
from anomalydiffusion_core.gate.fidelity import MaskFidelity, mask_fidelity
from anomalydiffusion_core.gate.scores import filled_in
from anomalydiffusion_core.report.shown_pair import around


def fidelity(pair: Pair) -> MaskFidelity:
    """Of one real pair, in its close-up."""
    photo = read_photo(pair.image)
    mask = read_mask(pair.mask, photo.size)
    box = around(mask)
    after, marked = photo.levels()[box], mask[box]
    return mask_fidelity(filled_in(after, marked), after, marked)


def main() -> None:
    boundaries = list[float]()
    for name, pairs in find_dataset(Path(sys.argv[1])).by_type().items():
        figures = [fidelity(pair) for pair in pairs]
        boundaries += [figure.boundary_iou for figure in figures]
        completeness, boundary = (
            np.mean([getattr(figure, key) for figure in figures]) for key in ("completeness", "boundary_iou")
        )
        print(f"{name:24} completeness {completeness:.2f}, boundary IoU {boundary:.2f}, {len(pairs)} pairs")
    print(f"boundary IoU of all {np.mean(boundaries):.2f}")


if __name__ == "__main__":
    main()
