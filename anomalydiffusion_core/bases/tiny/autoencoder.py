"""A factor-8 linear lapped autoencoder: one 16x16 convolution of stride 8 and one transposed convolution
back.

Started from the principal components of 8x8x3 patches and refined by least squares; the overlap removes
block edges (lapped transforms: Malvar, 1990). Channels are decorrelated and ordered by energy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FACTOR = 8
# channel k is divided by std_k ** SCALE_POWER: towards unit variance, strong channels stay strong
SCALE_POWER = 0.7


class LappedAutoencoder(nn.Module):
    """Image (B,3,H,W) in [-1,1] <-> latent (B,C,H/8,W/8); H and W multiples of 8, at least 16."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.channels = channels
        self.analysis = nn.Conv2d(3, channels, 16, FACTOR, bias=False)
        self.synthesis = nn.ConvTranspose2d(channels, 3, 16, FACTOR, bias=False)

    def encode(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> model latent (B,C,H/8,W/8)."""
        return self.analysis(F.pad(image, (4, 4, 4, 4), mode="reflect"))

    def decode(self, latent: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,3,8h,8w), about [-1,1], not clamped."""
        return self.synthesis(F.pad(latent, (1, 1, 1, 1), mode="replicate"))[..., 12:-12, 12:-12]

    @torch.no_grad()
    def start_from_principal_components(self, images: Tensor) -> None:
        """Sets the linear part to the leading principal components of the 8x8x3 patches of (B,3,H,W)."""
        patches = F.unfold(images, FACTOR, stride=FACTOR).transpose(1, 2).reshape(-1, 3 * FACTOR**2)
        _, vectors = torch.linalg.eigh(torch.cov(patches.T))
        basis = vectors[:, -self.channels :].flip(1).T.reshape(self.channels, 3, FACTOR, FACTOR)
        for weight in (self.analysis.weight, self.synthesis.weight):
            weight.zero_()
            weight[:, :, 4:12, 4:12] = basis

    @torch.no_grad()
    def normalise_channels(self, images: Tensor) -> None:
        """Rotates and scales the latent so that channels are decorrelated, ordered, and rms 1 overall on
        `images`.

        The rotation is taken where pixel energy is preserved, so that channel order is order of visible
        energy.
        """
        latent = self.encode(images).transpose(0, 1).flatten(1)  # (C, N)
        gram = self.synthesis.weight.flatten(1) @ self.synthesis.weight.flatten(1).T
        values, vectors = torch.linalg.eigh(gram)
        to_energy = vectors @ torch.diag(values.sqrt()) @ vectors.T
        energies, rotation = torch.linalg.eigh(torch.cov(to_energy @ latent))
        to_latent = torch.diag(energies.flip(0) ** (-SCALE_POWER / 2)) @ rotation.flip(1).T @ to_energy
        to_latent = to_latent / (to_latent @ latent).square().mean().sqrt()
        back = torch.linalg.inv(to_latent)
        self.analysis.weight.copy_(torch.einsum("ij,jckl->ickl", to_latent, self.analysis.weight))
        self.synthesis.weight.copy_(torch.einsum("ji,jckl->ickl", back, self.synthesis.weight))


def train_autoencoder(
    model: LappedAutoencoder, images: Tensor, steps: int, generator: torch.Generator
) -> list[float]:
    """Least squares on random crops of (N,3,n,n) in [-1,1]; returns the loss of every step."""
    model.start_from_principal_components(images[:1024])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=steps)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(images), (24,), generator=generator)
        dy, dx, flip = torch.randint(FACTOR, (3,), generator=generator).tolist()
        n = images.shape[-1] - FACTOR
        crop = images[rows, :, dy : dy + n, dx : dx + n]
        crop = crop.transpose(2, 3) if flip % 2 else crop
        loss = F.mse_loss(model.decode(model.encode(crop)), crop)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.normalise_channels(images[:1024])
    return losses
