"""ComfyUI's IMAGE (B,H,W,3) in [0,1] and the core's images (B,3,H,W) in [-1,1]."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def to_core(images: Tensor) -> Tensor:
    """(B,H,W,3) in [0,1] -> (B,3,H,W) in [-1,1]."""
    return (2 * images - 1).movedim(-1, 1)


def from_core(images: Tensor) -> Tensor:
    """(B,3,H,W) in [-1,1] -> (B,H,W,3) in [0,1]."""
    return ((images + 1) / 2).movedim(1, -1)


def pixels_of(images: Tensor) -> np.ndarray:
    """(B,H,W,3) in [0,1] -> uint8."""
    return (255 * images[..., :3].cpu().numpy() + 0.5).astype(np.uint8)
