"""ComfyUI's IMAGE (B,H,W,3) in [0,1] and the core's images (B,3,H,W) in [-1,1]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from comfy.sd import VAE


def to_core(images: Tensor) -> Tensor:
    """(B,H,W,3) in [0,1] -> (B,3,H,W) in [-1,1]."""
    return (2 * images.float() - 1).movedim(-1, 1)  # half precision, where the host is told so


def from_core(images: Tensor) -> Tensor:
    """(B,3,H,W) in [-1,1] -> (B,H,W,3) in [0,1]."""
    return ((images + 1) / 2).movedim(1, -1)


def latent_factor(vae: VAE) -> int:
    """Pixels per latent cell."""
    factor: Any = vae.spacial_compression_decode()
    return int(factor)


def pixels_of(images: Tensor) -> np.ndarray:
    """(B,H,W,3) in [0,1] -> uint8."""
    return (255 * images[..., :3].float().cpu().numpy() + 0.5).astype(np.uint8)


def photo_batch(paths: Sequence[Path], count: int) -> Tensor | None:
    """`count` photos, evenly chosen, as an IMAGE (B,H,W,3); None where there are none.

    Raises ValueError naming a photo whose size differs from the first one's.
    """
    from ...anomalydiffusion_core.dataset.photos import read_photo

    if not paths or not count:
        return None
    chosen = [paths[i * len(paths) // min(count, len(paths))] for i in range(min(count, len(paths)))]
    photos = [read_photo(path) for path in chosen]
    for path, photo in zip(chosen, photos, strict=True):
        if photo.size != photos[0].size:
            raise ValueError(
                f"Photo {path} is {photo.size[1]}x{photo.size[0]}, {chosen[0].name} "
                f"{photos[0].size[1]}x{photos[0].size[0]}: a batch needs equal sizes; set normal_count to 1."
            )
    return torch.from_numpy(np.stack([photo.pixels for photo in photos])).float() / 255
