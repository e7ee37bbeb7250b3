"""What tests of sampling share: noise, contexts, and a base whose data is a single latent."""

from __future__ import annotations

import torch
from torch import Tensor

from anomalydiffusion_core.method.latent_diffusion import Context, LatentDiffusion
from anomalydiffusion_core.method.reweighting import AARConfig
from anomalydiffusion_core.method.sampling import SamplingConfig

PLAIN = SamplingConfig(steps=4, aar=AARConfig("off"))
TEMPLATES = ["a photo of a {}", "a cropped photo of the {}", "a {}"]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def contexts(base: LatentDiffusion, indices: list[int]) -> tuple[Context, Context]:
    inserted = {"clip_l": torch.stack([randn(3, 16, seed=100 + i) for i in indices])}
    with torch.no_grad():
        prompts = [TEMPLATES[i % len(TEMPLATES)] for i in indices]
        return base.encode_prompts(prompts, inserted), base.encode_prompts([""] * len(indices))


DATA = randn(1, 4, 32, 32, seed=9)


def base_of_one_latent(fake_base: LatentDiffusion) -> tuple[LatentDiffusion, list[Tensor]]:
    """A base whose data is `DATA` alone, and the noise that its U-Net was shown: of unit variance where what
    it was fed has the noise level that the timestep says.
    """
    shown: list[Tensor] = []

    class OneLatent(type(fake_base)):  # type: ignore[misc]
        def predict_noise(self, noisy: Tensor, t: Tensor, context: Context) -> Tensor:
            assert float(t.min()) >= 0 and float(t.max()) <= 999
            alpha, sigma = self.schedule.alpha_sigma(t)
            shown.append((noisy - alpha * DATA) / sigma)
            return shown[-1]

    return OneLatent(), shown
