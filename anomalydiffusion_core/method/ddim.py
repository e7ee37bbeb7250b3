"""DDIM (Song et al., 2021) whose steps lead from each of its timesteps to the next one.

diffusers' own goes T // steps down: where steps does not divide T that is not its next timestep, and the last
step may stop short of a clean latent.
"""

from __future__ import annotations

from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor


class ChainedDDIMScheduler(DDIMScheduler):
    """diffusers' DDIM, equal to it where steps divides T."""

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: Tensor,
        sample: Tensor,
        eta: float = 0.0,
        generator: Generator | list[Generator] | None = None,
    ) -> DDIMSchedulerOutput:
        """Eq. 12 and 16: x_t (B,C,h,w) and the noise predicted in it -> x at the next timestep, or x_0."""
        later = self.timesteps[self.timesteps < timestep]
        a = self.alphas_cumprod[timestep]
        a_next = self.alphas_cumprod[later[0]] if len(later) else self.final_alpha_cumprod
        clean = (sample - (1 - a) ** 0.5 * model_output) / a**0.5
        sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)) ** 0.5
        x = a_next**0.5 * clean + (1 - a_next - sigma**2) ** 0.5 * model_output
        if eta > 0:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            x = x + sigma * noise
        return DDIMSchedulerOutput(prev_sample=x, pred_original_sample=clean)
