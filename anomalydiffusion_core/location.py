"""Pre-training of the spatial encoder that ships with the embedded base: where a defect is, from its mask
alone.

The base is frozen. E first imitates the token vectors of the words for the place. Then captions of procedural
scenes say what the defect is, E(mask) is inserted in place of the words for where, and E learns to make the
base put the defect there. Half of each batch is mask pictures at the noisiest timesteps.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .dataset.views import latent_mask
from .latent_diffusion import PLACEHOLDER, LatentDiffusion
from .spatial_encoder import SpatialEncoder
from .tiny_base import architecture as arch
from .tiny_base.scenes import COLUMNS, ROWS, draw_scene

log = logging.getLogger(__name__)
PLACE = re.compile(rf" at the (?:{'|'.join(ROWS)}) (?:{'|'.join(sorted(COLUMNS, key=len, reverse=True))})")
# Below this timestep a noisy mask picture still shows where the defect is, so that a model ignores words and
# tokens that say it.
PLACE_FROM = 900
DEFECT_WEIGHT = 8.0  # of latent cells that the defect touches


@dataclass
class PlacedScenes:
    """Scenes with one defect: `images` (N,3,n,n) in [-1,1], `masks` (N,1,n,n) uint8, `captions` with {} for
    the place, `places` in words, and which are mask pictures, `pictured` (N,) bool.
    """

    images: Tensor
    masks: Tensor
    captions: list[str]
    places: list[str]
    pictured: Tensor


def placed_scenes(seed: int, count: int, size: int) -> PlacedScenes:
    """The first `count` scenes of the stream `seed` whose caption names one place."""
    scenes, places = [], []
    index = 0
    while len(scenes) < count:
        scene = draw_scene(seed, index, size)
        index += 1
        named = PLACE.findall(scene.caption)
        if len(named) == 1:
            scenes.append(scene)
            places += named
    pixels = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return PlacedScenes(
        pixels.permute(0, 3, 1, 2).float() / 127.5 - 1,  # BHWC -> BCHW
        torch.from_numpy(np.stack([scene.mask for scene in scenes]).astype(np.uint8))[:, None],
        [PLACE.sub(f" {PLACEHOLDER}", scene.caption) for scene in scenes],
        places,
        torch.tensor([scene.is_mask_picture for scene in scenes]),
    )


def imitate_words(
    encoder: SpatialEncoder, masks: Tensor, vectors: Tensor, minutes: float, generator: torch.Generator
) -> float:
    """Regresses E(mask) on `vectors` (N,n,d) for about `minutes`; returns the last relative squared error."""
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
    start, error = time.monotonic(), torch.tensor(1.0)
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        optimizer.param_groups[0]["lr"] = 1e-3 * (0.5 + 0.5 * np.cos(np.pi * done))
        rows = torch.randint(len(masks), (64,), generator=generator)
        device = vectors.device
        error = F.mse_loss(encoder(masks[rows].to(device)), vectors[rows]) / vectors.square().mean()
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
    return float(error.detach())


def train_location(
    base: LatentDiffusion,
    minutes: float,
    scenes: int,
    batch: int = 12,
    rate: float = 5e-4,
    seed: int = 1,
) -> SpatialEncoder:
    """Trains E on the frozen base for about `minutes` of wall-clock time, a fifth of them on words."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    name = next(iter(base.token_widths))
    scene = placed_scenes(seed + 100, scenes, arch.NATIVE_SIZE)
    with torch.no_grad():
        latents = torch.cat([base.encode(part) for part in scene.images.split(64)])
        words = {place: base.word_vectors(place)[name] for place in set(scene.places)}
    encoder = SpatialEncoder(arch.SPATIAL_ENCODER)
    tokens = encoder.config.tokens
    vectors = torch.stack([words[place][-tokens:] for place in scene.places])
    encoder.set_scale(float(vectors.square().mean().sqrt()))
    encoder.to(base.device).train()
    error = imitate_words(encoder, scene.masks, vectors, 0.2 * minutes, generator)
    log.info("location words: relative error %.3f", error)
    pictures = torch.nonzero(scene.pictured)[:, 0]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=rate, weight_decay=0.01)
    start, step, losses = time.monotonic(), 0, []
    while (done := (time.monotonic() - start) / 60 / (0.8 * minutes)) < 1:
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 100) * (0.5 + 0.5 * np.cos(np.pi * done))
        rows = torch.randint(len(latents), (batch,), generator=generator)
        t = 200 + 800 * torch.rand(batch, generator=generator)
        half = batch // 2 if len(pictures) else 0
        rows[:half] = pictures[torch.randint(max(1, len(pictures)), (half,), generator=generator)]
        t[:half] = PLACE_FROM + (1000 - PLACE_FROM) * torch.rand(half, generator=generator)
        t = t.long().to(base.device)
        noise = torch.randn(latents[rows].shape, generator=generator).to(base.device)
        chosen = scene.masks[rows].to(base.device)
        context = base.encode_prompts([scene.captions[i] for i in rows], {name: encoder(chosen)})
        eps_hat = base.predict_noise(base.schedule.add_noise(latents[rows], noise, t), t, context)
        weight = 1 + (DEFECT_WEIGHT - 1) * latent_mask(chosen, base.factor)
        error = base.schedule.loss_weight(t) * F.mse_loss(eps_hat, noise, reduction="none")
        loss = (weight * error).mean() / weight.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        step += 1
        if step % 100 == 0:
            log.info("location step %d  loss %.4f  %.0f %%", step, np.mean(losses[-100:]), 100 * done)
    return encoder.eval()
