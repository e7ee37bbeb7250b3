"""Blended latent diffusion (Eq. 1) and the final paste: outside the mask nothing of the photo changes."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, maximum_filter
from torch import Tensor


def blend(sample: Tensor, noised_normal: Tensor, m_z: Tensor) -> Tensor:
    """Eq. 1: x <- m x + (1 - m) q(z_y, t), latents (B,C,h,w), m (B,1,h,w)."""
    return m_z * sample + (1 - m_z) * noised_normal


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """m_z: (B,1,H,W) in {0,1} -> (B,1,H/f,W/f) float, 1 in every cell that the defect touches."""
    return F.max_pool2d(mask.float(), factor)


def widened(m_z: Tensor, share: float) -> Tensor:
    """m_z (B,1,h,w) dilated by a square of radius `share` of the longer side."""
    radius = round(share * max(m_z.shape[-2:]))
    return F.max_pool2d(m_z, 2 * radius + 1, stride=1, padding=radius) if radius else m_z


def soft_mask(mask: np.ndarray, feather: float) -> np.ndarray:
    """(H,W) bool -> (H,W) float32: ramps from the mask's edge up to 1 over `feather` pixels, or up to its
    middle where it is thinner than that; 0 outside.
    """
    if feather <= 0 or mask.all():  # without any outside there is no distance to it
        return mask.astype(np.float32)
    inside = np.asarray(distance_transform_edt(np.pad(mask, 1, mode="edge")))[1:-1, 1:-1]
    ridge = maximum_filter(inside, 2 * int(np.ceil(feather)) + 1)
    return np.clip(inside / np.clip(ridge, 1, feather + 1), 0, 1).astype(np.float32)


def paste(
    photo: np.ndarray, generated: np.ndarray, mask: np.ndarray, feather: float = 1.0, *, white: int = 255
) -> np.ndarray:
    """Lays generated, float in [0,255], into photo, unsigned integers in [0,white], inside mask (H,W) bool.

    Photo and generated are both (H,W) or both (H,W,C). Outside the mask all values are bit-identical.
    """
    shape = (*mask.shape, *[1] * (photo.ndim - 2))
    a, inside = soft_mask(mask, feather).reshape(shape), mask.reshape(shape)
    change = generated * np.float32(white / 255) - photo.astype(np.float32)
    return np.where(inside, np.clip(photo + a * change + 0.5, 0, white).astype(photo.dtype), photo)


def restore_detail(
    photo: np.ndarray,
    reconstruction: np.ndarray,
    generated: np.ndarray,
    noise: float,
    start_detail: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Gives generated (H,W,3) back the fine detail that the autoencoder lost: the photo's where little was
    changed, and `start_detail` (H,W,3), that of what was denoised, where much was.

    All in [0,255], `reconstruction` being the photo through the autoencoder. One goes over into the other as
    the change grows from 1 to 3 times the autoencoder's `noise` (grey levels).
    """
    change = np.abs(generated - reconstruction).max(-1, keepdims=True)
    kept = np.clip((3 * noise - change) / (2 * noise), 0, 1)
    return generated + kept * (photo.astype(np.float32) - reconstruction) + (1 - kept) * start_detail
