"""Does the base do what words say? Its loss on fresh scenes, and what a wrong place in the caption costs.

Example: python benchmarks/words.py --base runs/tiny/tiny_base.safetensors
Fresh procedural scenes, at fixed noise and timesteps; then scenes with one large defect whose caption names
its place, against the same caption with left and right, top and bottom exchanged. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re

import torch
from torch import Tensor

from anomalydiffusion_core.bases.diffusers_model import load_base
from anomalydiffusion_core.method.blending import latent_mask
from anomalydiffusion_core.method.latent_diffusion import PLACEHOLDER, LatentDiffusion
from anomalydiffusion_core.pretraining.scene_pool import LARGE, scene_batches
from anomalydiffusion_core.training.places import placed_scenes

PAIRS = (("left", "right"), ("top", "bottom"), ("upper", "lower"))
OPPOSITE = {word: other for pair in PAIRS for word, other in (pair, pair[::-1])}


@torch.no_grad()
def error(base: LatentDiffusion, latents: Tensor, captions: list[str], earliest: int) -> Tensor:
    """Squared error (N,1,h,w) of what the base predicts, timesteps even over [earliest, T)."""
    generator = torch.Generator().manual_seed(5)
    t = torch.linspace(earliest, base.schedule.steps - 1, len(latents)).long()
    t = t[torch.randperm(len(t), generator=generator)]
    noise = torch.randn(latents.shape, generator=generator)
    parts = []
    for rows in torch.arange(len(latents)).split(32):
        context = base.encode_prompts([captions[i] for i in rows.tolist()])
        noisy = base.schedule.add_noise(latents[rows], noise[rows], t[rows])
        eps_hat = base.predict_noise(noisy, t[rows], context)
        squared = (eps_hat - noise[rows]).square().mean(1, keepdim=True)
        parts.append(base.schedule.loss_weight(t[rows]) * squared)
    return torch.cat(parts)


def exchanged(place: str) -> str:
    """The place opposite, word by word."""
    return re.sub("|".join(OPPOSITE), lambda word: OPPOSITE[word[0]], place)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--size", type=int, help="pixels per side; default: the base's native size")
    arguments = parser.parse_args()
    base = load_base(arguments.base)
    size = arguments.size or base.native_size
    images, masks, captions = next(scene_batches(900, arguments.scenes, size, arguments.scenes))
    touched = latent_mask(masks, base.factor)
    squared = error(base, base.encode(images), captions, 0)
    figures = {
        "loss": float(squared.mean()),
        "loss_in_defects": float((squared * touched).sum() / touched.sum()),
    }
    scenes = next(placed_scenes(901, 8 * arguments.scenes, size, 8 * arguments.scenes))
    touched = latent_mask(scenes.masks, base.factor)
    large = touched.mean((1, 2, 3)) > LARGE
    off_centre = torch.tensor([exchanged(place) != place for place in scenes.places])
    pictured = torch.tensor([name == "mask picture" for name in scenes.types])
    for name, chosen, earliest in (("pictures", pictured, 950), ("photos", ~pictured, 500)):
        rows = torch.nonzero(large & off_centre & chosen)[:, 0][: arguments.scenes]
        right, wrong = (
            error(
                base,
                base.encode(scenes.images[rows]),
                [scenes.captions[i].replace(" " + PLACEHOLDER, say(scenes.places[i])) for i in rows.tolist()],
                earliest,
            )
            for say in (str, exchanged)
        )
        where = torch.ones_like(right) if name == "pictures" else touched[rows]
        loss = [float((x * where).sum() / where.sum()) for x in (right, wrong)]
        figures |= {f"{name}_loss": loss[0], f"{name}_wrong_place_over_right": loss[1] / loss[0]}
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
