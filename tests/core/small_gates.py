"""Gates calibrated on drawn stains, and the spots and surfaces to judge by them."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F

from anomalydiffusion_core.gate.features import Backbone
from anomalydiffusion_core.gate.gate import Gate, GateConfig
from anomalydiffusion_core.gate.region_view import RegionView

POOLING = Backbone("pooling", lambda image: F.avg_pool2d(image, 8))


def surface(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(100, 140, (64, 64, 3)).astype(np.float32)


def marked(seed: int) -> np.ndarray:
    mask, (y, x) = np.zeros((64, 64), bool), np.random.default_rng(seed).integers(16, 30, 2)
    mask[y : y + 18, x : x + 18] = True
    return mask


def spots(count: int = 8) -> list[RegionView]:
    return [RegionView(surface(100 + i), marked(100 + i)) for i in range(count)]


def stain(seed: int, strength: float = 60.0) -> RegionView:
    """A darker square; every one a little darker than the one before."""
    mask, pixels = marked(seed), surface(seed)
    pixels[mask] -= strength + 5 * seed
    return RegionView(pixels, mask)


def gate_of(count: int, config: GateConfig = GateConfig()) -> Gate:
    return Gate([[stain(i)] for i in range(count)], spots() if count else [], POOLING, config)
