"""DDIM (Song et al., 2021) on a base's own noise schedule, with the interface of diffusers' schedulers.

It needs nothing that a ComfyUI lacks. diffusers' own goes T // steps down, which is its next timestep only
where steps divides T; there both are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from .latent_diffusion import NoiseSchedule


class DDIMStep(NamedTuple):
    """What a step gives: x at the next timestep (B,C,h,w)."""

    prev_sample: Tensor


class DDIM:
    """Steps from each of its timesteps to the next one, and from the last one to a clean latent."""

    init_noise_sigma = 1.0  # x has unit variance

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        self.config = {"num_train_timesteps": schedule.steps}
        self.timesteps = torch.empty(0, dtype=torch.long)

    def set_timesteps(self, steps: int, device: torch.device | None = None) -> None:
        """`steps` timesteps from T - 1 down, equally far apart ("trailing")."""
        spacing = self.schedule.steps / steps
        down = self.schedule.steps - spacing * torch.arange(steps, dtype=torch.float64)
        self.timesteps = (down.round().long() - 1).to(device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """x as the model reads it: as it is."""
        return sample

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """q(x_t | x_0); shapes (B,C,h,w), timesteps (B,)."""
        return self.schedule.add_noise(clean, noise, timesteps)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        eta: float = 0.0,
        generator: Sequence[Generator] = (),
    ) -> DDIMStep:
        """Eq. 12 and 16: x_t (B,C,h,w) and the noise predicted in it -> x at the next timestep, or x_0.

        `eta` adds so much of DDPM's noise, drawn image by image from its `generator`.
        """
        table = self.schedule.alphas_cumprod
        later = self.timesteps[self.timesteps < timestep]
        a = table[int(timestep)]
        a_next = table[int(later[0])] if len(later) else torch.ones(())
        clean = (sample - (1 - a) ** 0.5 * model_output) / a**0.5
        sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)) ** 0.5
        x = a_next**0.5 * clean + (1 - a_next - sigma**2) ** 0.5 * model_output
        if eta > 0:
            noise = torch.stack([torch.randn(sample.shape[1:], generator=g) for g in generator])
            x = x + sigma * noise.to(sample)
        return DDIMStep(x)
