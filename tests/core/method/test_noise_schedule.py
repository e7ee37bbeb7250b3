"""The noise schedule against diffusers' DDIM scheduler and against the definitions of epsilon and v."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from anomalydiffusion_core.bases.diffusers_model import scaled_linear_schedule
from anomalydiffusion_core.method.latent_diffusion import NoiseSchedule

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture
def schedule() -> NoiseSchedule:
    return scaled_linear_schedule(CONFIG)


def random_latents(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn((2, count, 4, 3, 5), generator=generator)
    return z, noise


def test_noised_latents_are_those_of_diffusers(schedule: NoiseSchedule) -> None:
    z, noise = random_latents(6)
    t = torch.tensor([0, 1, 17, 500, 998, 999])
    expected = DDIMScheduler(**CONFIG).add_noise(z, noise, t)  # type: ignore[arg-type]
    torch.testing.assert_close(schedule.add_noise(z, noise, t), expected, rtol=1e-5, atol=1e-6)


def test_signal_and_noise_factors_preserve_variance_at_whole_and_fractional_timesteps(
    schedule: NoiseSchedule,
) -> None:
    t = torch.tensor([0.0, 0.5, 123.25, 999.0])
    alpha, sigma = schedule.alpha_sigma(t)
    assert alpha.shape == sigma.shape == (4, 1, 1, 1)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(4, 1, 1, 1))


def test_a_fractional_timestep_lies_midway_in_log_signal_to_noise_ratio() -> None:
    # abar 0.8 and 0.2: log SNR log(4) and -log(4); midway 0, that is abar = 0.5
    schedule = NoiseSchedule(torch.tensor([0.8, 0.2]), "epsilon")
    alpha, sigma = schedule.alpha_sigma(torch.tensor([0.5, 0.25]))
    assert alpha[0].item() == pytest.approx(0.5**0.5)
    # a quarter of the way: SNR = 4^(1/2) = 2, abar = 2/3
    assert alpha[1].item() ** 2 == pytest.approx(2 / 3)
    assert sigma[1].item() ** 2 == pytest.approx(1 / 3)


def test_timesteps_beyond_the_table_are_its_ends(schedule: NoiseSchedule) -> None:
    ends, beyond = (
        schedule.alpha_sigma(torch.tensor([0, 999])),
        schedule.alpha_sigma(torch.tensor([-3, 2000])),
    )
    assert torch.equal(ends[0], beyond[0])


@pytest.mark.parametrize("t", [0, 250, 999])
def test_the_clean_latent_estimate_inverts_adding_noise(schedule: NoiseSchedule, t: int) -> None:
    z, noise = random_latents(2)
    times = torch.full((2,), t)
    restored = schedule.clean_latent(schedule.add_noise(z, noise, times), noise, times)
    torch.testing.assert_close(restored, z, rtol=1e-3, atol=1e-4)


def test_weighted_noise_error_is_the_error_of_v(schedule: NoiseSchedule) -> None:
    schedule = NoiseSchedule(schedule.alphas_cumprod, "v_prediction")
    z, noise = random_latents(3)
    t = torch.tensor([10, 400, 900])
    abar = schedule.alphas_cumprod[t][:, None, None, None]
    noisy = schedule.add_noise(z, noise, t)
    v = abar.sqrt() * noise - (1 - abar).sqrt() * z
    v_hat = v + 0.1 * torch.randn_like(v)
    eps_hat = abar.sqrt() * v_hat + (1 - abar).sqrt() * noisy
    weighted = schedule.loss_weight(t) * (eps_hat - noise).square()
    torch.testing.assert_close(weighted, (v_hat - v).square(), rtol=1e-3, atol=1e-4)


def test_noise_error_of_an_epsilon_base_is_left_as_it_is(schedule: NoiseSchedule) -> None:
    assert torch.equal(schedule.loss_weight(torch.tensor([0, 500, 999])), torch.ones(3, 1, 1, 1))


def test_unknown_prediction_types_are_refused() -> None:
    with pytest.raises(ValueError, match="'sample' is not known"):
        scaled_linear_schedule({**CONFIG, "prediction_type": "sample"})
