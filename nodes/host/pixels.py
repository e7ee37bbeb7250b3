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
    from PIL.Image import Image


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


def picture_image(picture: Image) -> Tensor:
    """A picture as IMAGE (1,H,W,3) in [0,1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).float()[None] / 255


def photo_batch(paths: Sequence[Path], count: int) -> Tensor | None:
    """At most `count` photos, evenly chosen, as an IMAGE (B,H,W,3); None where there are none.

    A batch needs equal sizes: photos of another size than the first one's are passed over.
    """
    from ...anomalydiffusion_core.dataset.photos import read_photo

    if not paths or not count:
        return None
    chosen = [paths[i * len(paths) // min(count, len(paths))] for i in range(min(count, len(paths)))]
    photos = [read_photo(path) for path in chosen]
    alike = [photo.pixels for photo in photos if photo.size == photos[0].size]
    return torch.from_numpy(np.stack(alike)).float() / 255
