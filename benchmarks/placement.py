"""Does the spatial encoder place? With blending switched off, the generated change must follow the mask.

Example: python benchmarks/placement.py leather.safetensors data/leather --draws 40
A normal photo is noised to 80 % of the schedule and denoised twice from the same noise: once guided by the
defect's tokens and E(mask), as in generation, once with the empty prompt. The centre of mass of the squared
difference must lie in the same half, left or right, as a mask drawn in the middle of that half. Prints one
JSON object.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor
from trained import load_trained, trained_parser

from anomalydiffusion_core.dataset.photos import read_photo
from anomalydiffusion_core.generation.regions import fit_image
from anomalydiffusion_core.method.conditioning import anomaly_context, empty_context
from anomalydiffusion_core.method.latent_diffusion import Context, LatentDiffusion
from anomalydiffusion_core.method.sampling import image_generator


@torch.no_grad()
def denoise_from(
    base: LatentDiffusion,
    normal: Tensor,
    noise: Tensor,
    context: Context,
    empty: Context,
    guidance: float,
    start: float,
    steps: int,
) -> Tensor:
    """Deterministic guided DDIM from q(z_y, start * T) to z_0, latents (1,C,h,w)."""
    times = torch.linspace(start * (base.schedule.steps - 1), 0, steps + 1)
    x = base.schedule.add_noise(normal, noise, times[:1])
    for t, following in zip(times[:-1, None], times[1:, None], strict=True):
        eps = base.predict_noise(x, t, empty)
        if guidance:
            eps = eps + guidance * (base.predict_noise(x, t, context) - eps)
        x = base.schedule.add_noise(base.schedule.clean_latent(x, eps, t), eps, following)
    return x


def half_mask(size: int, left: bool, generator: torch.Generator) -> Tensor:
    """A disc (1,1,S,S) in the middle of the left or right half, moved a little."""
    shift = (torch.rand(2, generator=generator) - 0.5) * 0.2
    y, x = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    centre_x = (0.25 if left else 0.75) + float(shift[0]) * 0.5
    return (((x - centre_x) ** 2 + (y - 0.5 - float(shift[1])) ** 2) < 0.12**2).float()[None, None]


def main() -> None:
    parser = trained_parser(str(__doc__), guidance=2.5, steps=20)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--start", type=float, default=0.8)
    arguments = parser.parse_args()
    base, learned, dataset = load_trained(arguments)
    categories = dataset.categories
    types = [name for name in sorted(learned.anomaly) if name.partition("/")[0] in categories]
    hits: dict[str, list[bool]] = {name: [] for name in types}
    for draw in range(arguments.draws):
        name, left, generator = (
            types[draw % len(types)],
            draw // len(types) % 2 == 0,
            image_generator(99, draw),
        )
        normals = categories[name.partition("/")[0]].normals
        photo = read_photo(normals[draw % len(normals)]).tensor()
        normal = base.encode(fit_image(photo, learned.image_size)[None])
        mask = half_mask(learned.image_size, left, generator)
        noise = torch.randn(normal.shape, generator=generator)
        with torch.no_grad():
            context = anomaly_context(
                base, learned.templates[0], learned.anomaly_tokens(name), learned.spatial_encoders, mask=mask
            )
        empty = empty_context(base, 1)
        defective, plain = (
            denoise_from(base, normal, noise, context, empty, guidance, arguments.start, arguments.steps)
            for guidance in (arguments.guidance, 0.0)
        )
        change = (defective - plain)[0].square().sum(0)
        columns = torch.arange(change.shape[1]) + 0.5
        centre = float((change.sum(0) * columns).sum() / change.sum()) / change.shape[1]
        hits[name].append((centre < 0.5) == left)
    every = np.concatenate([np.asarray(values) for values in hits.values()])
    interval = binomtest(int(every.sum()), len(every)).proportion_ci()
    print(
        json.dumps(
            {
                "followed": float(every.mean()),
                "draws": len(every),
                "interval_95": [round(interval.low, 3), round(interval.high, 3)],
                "by_type": {name: float(np.mean(values)) for name, values in hits.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
