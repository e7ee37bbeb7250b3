"""Small training tasks for tests: four views of two types, and an untrained little spatial encoder."""

from __future__ import annotations

import torch

from anomalydiffusion_core.dataset.views import ViewPool
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.spatial_encoder import SpatialEncoder, SpatialEncoderConfig
from anomalydiffusion_core.training.config import DefectConfig
from anomalydiffusion_core.training.defects import AnomalyTask


def make_pool(base: LatentDiffusion, count: int = 4) -> ViewPool:
    """Views of two types; the masks are 20 x 20 pixels at various places."""
    images = torch.randn((count, 3, 64, 64), generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    masks = torch.zeros(count, 1, 64, 64, dtype=torch.uint8)
    for i in range(count):
        masks[i, :, 8 * i : 8 * i + 20, 16:36] = 1
        images[i] = torch.where(masks[i] > 0, 0.9 if i % 2 else -0.9, images[i])
    return ViewPool(base.encode(images), masks, torch.arange(count) % 2, ["thing/a", "thing/b"])


def small_encoder() -> dict[str, SpatialEncoder]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = SpatialEncoderConfig(
            16, backbone="resnet10", tokens=2, mask_size=32, pyramid_channels=8, grid=2
        )
        return {"clip_l": SpatialEncoder(config)}


def make_task(base: LatentDiffusion, config: DefectConfig) -> AnomalyTask:
    return AnomalyTask(base, make_pool(base), small_encoder(), config)
