"""Pre-training of the spatial encoder that ships with the embedded base: where a defect is, from its mask
alone.

The base is frozen. Captions of procedural scenes say what the defect is; in place of the words for where,
E(mask) is inserted, and E learns to make the base put the defect there. Half of each batch is mask pictures
at the noisiest timesteps.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from anomalydiffusion_core.artifact import write_atomically
from anomalydiffusion_core.dataset.views import latent_mask
from anomalydiffusion_core.latent_diffusion import PLACEHOLDER, LatentDiffusion
from anomalydiffusion_core.spatial_encoder import SpatialEncoder
from anomalydiffusion_core.tiny_base import architecture as arch
from anomalydiffusion_core.tiny_base.scenes import COLUMNS, ROWS, draw_scene

log = logging.getLogger(__name__)
PLACE = re.compile(rf" at the (?:{'|'.join(ROWS)}) (?:{'|'.join(sorted(COLUMNS, key=len, reverse=True))})")
# Below this timestep a noisy mask picture still shows where the defect is, so that a model ignores words and
# tokens that say it.
PLACE_FROM = 900
DEFECT_WEIGHT = 8.0  # of latent cells that the defect touches


def scenes_with_gap(seed: int, count: int, size: int) -> tuple[Tensor, Tensor, list[str], Tensor]:
    """Scenes with one defect: images (N,3,n,n) in [-1,1], masks (N,1,n,n) uint8, captions with {} for the
    place, and which are mask pictures (N,) bool.
    """
    images, masks, captions, pictured = [], [], [], []
    index = 0
    while len(images) < count:
        scene = draw_scene(seed, index, size)
        index += 1
        caption, places = PLACE.subn(f" {PLACEHOLDER}", scene.caption)
        if places == 1:
            images.append(torch.from_numpy(scene.image))
            masks.append(torch.from_numpy(scene.mask.astype(np.uint8))[None])
            captions.append(caption)
            pictured.append(scene.is_mask_picture)
    # BHWC -> BCHW
    pixels = torch.stack(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, torch.stack(masks), captions, torch.tensor(pictured)


def train_location(
    base: LatentDiffusion,
    minutes: float,
    scenes: int,
    batch: int = 12,
    rate: float = 1e-3,
    seed: int = 1,
) -> SpatialEncoder:
    """Trains E, the base's own or a fresh one, on the frozen base for about `minutes` of wall-clock time."""
    torch.manual_seed(seed)
    name = next(iter(base.token_widths))
    encoder = copy.deepcopy(base.spatial_encoders.get(name)) or _fresh_encoder(base, name)
    encoder.to(base.device).train()
    images, masks, captions, pictured = scenes_with_gap(seed + 100, scenes, arch.NATIVE_SIZE)
    with torch.no_grad():
        latents = torch.cat([base.encode(part) for part in images.split(64)])
    pictures = torch.nonzero(pictured)[:, 0]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    start, step, losses = time.monotonic(), 0, []
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 100) * (0.5 + 0.5 * np.cos(np.pi * done))
        rows = torch.randint(len(latents), (batch,), generator=generator)
        t = 200 + 800 * torch.rand(batch, generator=generator)
        half = batch // 2 if len(pictures) else 0
        rows[:half] = pictures[torch.randint(max(1, len(pictures)), (half,), generator=generator)]
        t[:half] = PLACE_FROM + (1000 - PLACE_FROM) * torch.rand(half, generator=generator)
        t = t.long().to(base.device)
        noise = torch.randn(latents[rows].shape, generator=generator).to(base.device)
        chosen = masks[rows].to(base.device)
        context = base.encode_prompts([captions[i] for i in rows], {name: encoder(chosen)})
        eps_hat = base.predict_noise(base.schedule.add_noise(latents[rows], noise, t), t, context.hidden)
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


def _fresh_encoder(base: LatentDiffusion, name: str) -> SpatialEncoder:
    encoder = SpatialEncoder(arch.SPATIAL_ENCODER)
    words = base.word_vectors("upper left lower right middle center")[name]
    encoder.set_scale(float(words.square().mean().sqrt()))
    return encoder


def add_spatial_encoder(path: Path, encoder: SpatialEncoder) -> None:
    """Puts a spatial encoder into a base file, in float16, replacing one that it has."""
    tensors = {key: value for key, value in load_file(path).items() if not key.startswith("spatial_encoder.")}
    tensors |= {f"spatial_encoder.{k}": v.detach().cpu().half() for k, v in encoder.state_dict().items()}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata["spatial_encoder"] = json.dumps(json.loads(encoder.config.to_json()))
    write_atomically(path, tensors, metadata)
