"""What trainings cost: the masked loss (Eq. 5), and the loss that bases are trained with."""

from __future__ import annotations

import torch
from torch import Tensor

from ..method.latent_diffusion import Context, LatentDiffusion
from .config import Normalisation
from .task import Batch


def masked_loss(
    eps_hat: Tensor, eps: Tensor, m_z: Tensor, weight: Tensor, *, normalisation: Normalisation
) -> Tensor:
    """Eq. 5 per sample (B,): squared error where m_z (B,1,h,w) is 1, divided by mask area or (released) by
    all cells; or (unmasked) the mean over all cells.

    `weight` (B,1,1,1) turns noise error into the error of what the base predicts.
    """
    m_z = torch.ones_like(m_z) if normalisation == "unmasked" else m_z
    squared = (weight * m_z * (eps_hat - eps).square()).flatten(1).sum(1)
    channels = eps.shape[1]
    cells = torch.full_like(squared, m_z[0].numel()) if normalisation == "released" else m_z.flatten(1).sum(1)
    return squared / (channels * cells.clamp(min=1))


def unmasked_loss(base: LatentDiffusion, clean: Tensor, batch: Batch, context: Context) -> Tensor:
    """The loss per sample (B,) that bases are trained with, on a batch's clean latents (B,C,h,w)."""
    t, noise = batch.t, batch.noise
    eps_hat = base.predict_noise(base.schedule.add_noise(clean, noise, t), t, context)
    return (base.schedule.loss_weight(t) * (eps_hat - noise).square()).flatten(1).mean(1)
