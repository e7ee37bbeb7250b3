"""Where to generate in a normal photo, and from what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Decode = Callable[[Tensor], Tensor]  # model latent (B,C,h,w) -> image (B,3,H,W), about [-1,1]


@dataclass(frozen=True)
class Inpainting:
    """Normal photo y and its mask at latent size, and in pixels, for AAR modes that compare these; and what
    denoising starts from, where that is a picture and not noise.
    """

    normal: Tensor  # z_y (B,C,h,w)
    m_z: Tensor  # (B,1,h,w) in {0,1}
    image: Tensor | None = None  # (B,3,H,W) in [-1,1]
    mask: Tensor | None = None  # (B,1,H,W) in {0,1}
    start: Tensor | None = None  # (B,C,h,w), a latent of no noise
