"""Which sampler, and how many steps? The same pairs (same photos, masks, seeds) of each type with every one.

Example: python benchmarks/samplers.py leather.safetensors data/leather --count 24 --sheet samplers.png
Masks are the dataset's own that did not train the model, moved nowhere. Prints one JSON object with a row per
setting:
- mean_fill, over_half: as `fill` has it, and the share of masks filled over half.
- changed_outside: pixels outside the masks that differ from the photo, in all pairs; must be 0.
- diversity: pairs made in the SAME photo and mask with different seeds (`--repeats` per type, each with a
  prompt template of its own): the mean absolute difference in grey levels inside the mask, over every two.
- distance: the base's latents in the cells that the masks touch, of the generated pairs against the real ones
  of the type: Frechet distance between the two as Gaussians with diagonal covariance, mean over types.
- accepted: share of the pairs in which the quality gate, calibrated on the training pairs, finds no problem.
- cpu_seconds: CPU time of one thread per pair, with decoding, pasting and scoring.
A setting that a sampler cannot do says why. The sheet has a row per sampler, a column per number of steps.
"""

from __future__ import annotations

import json
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from gate import Subject, find_subjects
from measurement import busy_seconds, use_one_thread
from PIL import Image
from torch import Tensor
from trained import load_trained, trained_parser

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.dataset.augmentation import whole_view
from anomalydiffusion_core.dataset.layout import Pair
from anomalydiffusion_core.dataset.photos import Photo
from anomalydiffusion_core.dataset.views import read_pair
from anomalydiffusion_core.generation.config import GenerationConfig
from anomalydiffusion_core.generation.generator import GeneratedPair, PairGenerator
from anomalydiffusion_core.masks.sources import MaskSource, SourcedMask
from anomalydiffusion_core.method.blending import latent_mask
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.sampling import SCHEDULERS, SamplingConfig

SEED = 7


def main() -> None:
    parser = trained_parser(str(__doc__), guidance=2.5)
    parser.add_argument("--steps", type=int, nargs="+", default=[200, 100, 50, 25, 15, 10])
    parser.add_argument("--samplers", nargs="+", default=list(SCHEDULERS))
    parser.add_argument("--count", type=int, default=12, help="pairs per defect type")
    parser.add_argument("--repeats", type=int, default=4, help="pairs of one photo and mask per defect type")
    parser.add_argument("--sheet", type=Path, help="save a picture of one pair with each setting")
    arguments = parser.parse_args()
    use_one_thread()
    base, learned, dataset = load_trained(arguments)
    subjects = find_subjects(learned, dataset, None)
    real = {s.name: real_statistics(base, learned.image_size, dataset.by_type()[s.name]) for s in subjects}
    rows: list[dict[str, object]] = []
    shown: list[list[np.ndarray | None]] = []
    for sampler in arguments.samplers:
        shown.append([])
        for steps in arguments.steps:
            config = GenerationConfig(
                SamplingConfig(sampler, steps, guidance=arguments.guidance),
                seed=SEED,
                foreground="none",
                start="noise",
            )
            try:
                figures, picture = measure(
                    base, learned, subjects, real, config, arguments.count, arguments.repeats
                )
            except ValueError as refused:
                figures, picture = {"refused": str(refused)}, None
            rows.append({"sampler": sampler, "steps": steps, **figures})
            shown[-1].append(picture)
    print(json.dumps({"settings": rows}))
    if arguments.sheet:
        save_sheet(shown, arguments.sheet)


def measure(
    base: DiffusersModel,
    learned: Learned,
    subjects: list[Subject],
    real: dict[str, tuple[Tensor, Tensor]],
    config: GenerationConfig,
    count: int,
    repeats: int,
) -> tuple[dict[str, object], np.ndarray]:
    """The figures of one setting, and one of its pictures (H,W,3) uint8."""
    every: list[GeneratedPair] = []
    seconds, diversity, distance = 0.0, [], []
    for subject in subjects:
        generator = PairGenerator(
            base, learned, subject.normals, config, real={subject.name: subject.training}
        )
        generator.gate(subject.name)  # is calibrated now, outside the seconds
        start = busy_seconds("cpu")
        pairs = generator.try_indices(subject.name, range(count), subject.masks)
        seconds += busy_seconds("cpu") - start
        every += pairs
        one_photo = PairGenerator(base, learned, subject.normals[:1], config)
        again = one_photo.try_indices(subject.name, range(repeats), partial(_first, subject.masks))
        diversity.append(mean_difference(again))
        views = [(Photo(pair.pixels, pair.photo.gray), pair.mask) for pair in pairs]
        distance.append(frechet(statistics(base, learned.image_size, views), real[subject.name]))
    fills = np.array([pair.fill for pair in every])
    outside = sum(int((pair.pixels != pair.photo.pixels).any(-1)[~pair.mask].sum()) for pair in every)
    figures: dict[str, object] = {
        "pairs": len(every),
        "mean_fill": round(float(fills.mean()), 4),
        "over_half": round(float((fills > 0.5).mean()), 4),
        "changed_outside": outside,
        "accepted": round(float(np.mean([not pair.problems for pair in every])), 4),
        "diversity": round(float(np.mean(diversity)), 3),
        "distance": round(float(np.mean(distance)), 4),
        "cpu_seconds": round(seconds / len(every), 3),
    }
    return figures, every[0].pixels


def _first(masks: MaskSource, _number: int) -> SourcedMask:
    return masks(0)


def mean_difference(pairs: list[GeneratedPair]) -> float:
    """Mean absolute difference (grey levels) inside the mask, over every two pictures of one photo."""
    inside = [pair.pixels[pair.mask].astype(np.float32) for pair in pairs]
    return float(np.mean([np.abs(a - b).mean() for a, b in combinations(inside, 2)]))


def real_statistics(base: DiffusersModel, size: int, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
    """`statistics` of pairs on disk."""
    read = [read_pair(pair) for pair in pairs]
    return statistics(base, size, [(photo, mask[0].numpy() > 0) for photo, mask in read])


@torch.no_grad()
def statistics(
    base: DiffusersModel, size: int, pairs: list[tuple[Photo, np.ndarray]]
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of the latents in the cells that the masks touch."""
    cells = []
    for photo, mask in pairs:
        marked = torch.from_numpy(mask[None].astype(np.uint8))
        image, marked = whole_view(photo.tensor(), marked, size)
        latent = base.encode(image[None].to(base.device)).cpu()[0]
        cells.append(latent[:, latent_mask(marked[None], base.factor)[0, 0] > 0])
    values = torch.cat(cells, dim=1)
    return values.mean(1), values.std(1)


def frechet(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Between Gaussians of diagonal covariance: sqrt(|mu_a - mu_b|^2 + |sigma_a - sigma_b|^2)."""
    return float(sum((x - y).square().sum() for x, y in zip(a, b, strict=True)) ** 0.5)


def save_sheet(shown: list[list[np.ndarray | None]], path: Path, size: int = 192) -> None:
    """A row per sampler, a column per number of steps; white where there is no picture."""
    white = np.full((size, size, 3), 255, np.uint8)
    grid = [
        np.concatenate(
            [white if p is None else np.asarray(Image.fromarray(p).resize((size, size))) for p in row], 1
        )
        for row in shown
    ]
    Image.fromarray(np.concatenate(grid)).save(path)


if __name__ == "__main__":
    main()
