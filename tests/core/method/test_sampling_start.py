"""Sampling from a start that is no noise, noised part of the way (SDEdit), by every scheduler."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_samplings import DATA, PLAIN, base_of_one_latent, contexts, randn

from anomalydiffusion_core.method.inpainting import Inpainting
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.reweighting import AARConfig
from anomalydiffusion_core.method.sampling import (
    SCHEDULERS,
    SamplingConfig,
    SamplingRequest,
    image_generator,
    inpaint,
)


@pytest.mark.parametrize("denoise", [0.2, 0.4, 1.0])
@pytest.mark.parametrize("steps", [5, 15])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_from_a_start_every_scheduler_runs_its_share_of_the_steps_at_the_noise_levels_it_says(
    fake_base: LatentDiffusion, scheduler: str, steps: int, denoise: float
) -> None:
    base, shown = base_of_one_latent(fake_base)
    m_z = torch.ones(1, 1, 32, 32)
    target = Inpainting(0 * DATA, m_z, start=DATA)
    context, _ = contexts(base, [0])
    config = SamplingConfig(scheduler, steps, denoise=denoise, aar=AARConfig("off"))
    told: list[tuple[int, int]] = []
    request = SamplingRequest(
        context,
        None,
        [image_generator(0, 0)],
        on_step=lambda step, total, latent: told.append((step, total)),
    )
    latent = inpaint(base, target, request, config)
    each = 2 if scheduler == "heun" else 1  # its last step has one evaluation
    assert len(shown) == each * round(denoise * steps) - (each - 1)
    assert told == [(step, len(shown)) for step in range(1, len(shown) + 1)]
    for noise in shown:
        assert 0.94 < float(noise.std()) < 1.06
    torch.testing.assert_close(latent, DATA, rtol=0, atol=1e-3)


def test_the_less_is_denoised_the_more_of_the_start_is_left(fake_base: LatentDiffusion) -> None:
    start, m_z = 3 * randn(1, 4, 7, 9, seed=4), torch.zeros(1, 1, 7, 9)
    m_z[..., 2:5, 3:8] = 1
    target = Inpainting(randn(1, 4, 7, 9), m_z, start=start)

    def left(denoise: float) -> float:
        request = SamplingRequest(*contexts(fake_base, [0]), [image_generator(0, 0)])
        latent = inpaint(fake_base, target, request, replace(PLAIN, steps=20, denoise=denoise))
        assert torch.equal(latent[..., 0, :], target.normal[..., 0, :])
        return float((latent - start)[m_z.bool().expand_as(start)].square().mean())

    distances = [left(denoise) for denoise in (0.05, 0.3, 0.6, 1.0)]
    assert distances == sorted(distances) and distances[0] < 0.05 * distances[-1]


@pytest.mark.parametrize("denoise", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_of_the_schedule_that_cannot_be_run_is_refused(denoise: float) -> None:
    with pytest.raises(ValueError, match="of the schedule cannot be run: give 0.1 to 1"):
        SamplingConfig(denoise=denoise)
