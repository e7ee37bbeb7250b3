"""Sampling: per-image randomness, every scheduler, and DDIM against a loop written by hand."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from small_samplings import DATA, PLAIN, base_of_one_latent, contexts, randn
from torch import Tensor

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.method.blending import latent_mask
from anomalydiffusion_core.method.ddim import DDIM
from anomalydiffusion_core.method.latent_diffusion import Context, LatentDiffusion
from anomalydiffusion_core.method.reweighting import MODES, AARConfig
from anomalydiffusion_core.method.sampling import (
    SCHEDULERS,
    SamplingConfig,
    SamplingRequest,
    image_generator,
    make_scheduler,
    sample,
    sample_into,
)


def scene(indices: list[int]) -> tuple[Tensor, Tensor]:
    """A photo (3,56,72) in [-1,1] and a mask of each index."""
    photos, masks = [], []
    for i in indices:
        photos.append(randn(3, 56, 72, seed=i).clamp(-1, 1))
        mask = torch.zeros(1, 56, 72)
        mask[:, 5 * i : 5 * i + 20, 10 + 7 * i : 40] = 1
        masks.append(mask)
    return torch.stack(photos), torch.stack(masks)


def generate(base: LatentDiffusion, indices: list[int], config: SamplingConfig, seed: int = 5) -> Tensor:
    photos, masks = scene(indices)
    return sample_into(
        base,
        photos,
        masks,
        SamplingRequest(*contexts(base, indices), [image_generator(seed, i) for i in indices]),
        config=config,
    )


# --- randomness


def test_an_image_s_generator_depends_on_run_seed_index_and_series_alone() -> None:
    def draws(seed: int, index: int, series: str = "") -> tuple[float, ...]:
        return tuple(torch.randn(4, generator=image_generator(seed, index, series)).tolist())

    torch.manual_seed(123)
    first = {(seed, index): draws(seed, index) for seed in range(3) for index in range(3)}
    assert len(set(first.values())) == 9
    assert first[1, 2] == draws(1, 2)
    assert draws(1, 11) != draws(11, 1)
    assert draws(1, 2, "a/hole") == draws(1, 2, "a/hole") != draws(1, 2, "b/hole")


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral", "dpmpp_2m"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("mode", MODES)
def test_the_same_index_gives_the_same_picture_whatever_batch_and_order(
    small_base: DiffusersModel, mode: str, guidance: float, scheduler: str
) -> None:
    config = replace(PLAIN, scheduler=scheduler, guidance=guidance, aar=AARConfig(mode))
    together = generate(small_base, [0, 1, 2], config)
    reordered = generate(small_base, [2, 0, 1], config)
    alone = torch.cat([generate(small_base, [i], config) for i in range(3)])
    grey_level = 2 / 255
    for other in (alone, reordered[[1, 2, 0]]):
        assert (small_base.decode(together) - small_base.decode(other)).abs().max() < grey_level


@pytest.mark.parametrize(
    ("scheduler", "mode"),
    [(name, "adaptive") for name in SCHEDULERS] + [("ddim", mode) for mode in MODES],
)
def test_the_fake_base_gives_the_same_picture_to_the_last_bits_whatever_batch_and_order(
    fake_base: LatentDiffusion, scheduler: str, mode: str
) -> None:
    config = replace(PLAIN, scheduler=scheduler, aar=AARConfig(mode))
    together = generate(fake_base, [0, 1, 2], config)
    reordered = generate(fake_base, [2, 0, 1], config)[[1, 2, 0]]
    alone = torch.cat([generate(fake_base, [i], config) for i in range(3)])
    bits = 1e-5 * float(together.abs().max())  # some processors sum products of other sizes in another order
    for other in (reordered, alone):
        torch.testing.assert_close(other, together, rtol=0, atol=bits)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_scheduler_draws_from_the_global_generator(fake_base: LatentDiffusion, scheduler: str) -> None:
    before = torch.random.get_rng_state()
    generate(fake_base, [0], replace(PLAIN, scheduler=scheduler))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_run_seed_gives_another_picture(fake_base: LatentDiffusion) -> None:
    assert not torch.equal(generate(fake_base, [1], PLAIN, 5), generate(fake_base, [1], PLAIN, 6))


# --- schedulers


POSSIBLE = [
    (name, steps) for name in SCHEDULERS for steps in (1, 2, 5, 10, 25, 200) if (name, steps) != ("lcm", 200)
]


@pytest.mark.parametrize(("scheduler", "steps"), POSSIBLE)
def test_every_scheduler_ends_finite_and_leaves_the_outside_exactly_normal(
    fake_base: LatentDiffusion, scheduler: str, steps: int
) -> None:
    photos, masks = scene([0, 1])
    latent = generate(fake_base, [0, 1], SamplingConfig(scheduler, steps))
    normal, m_z = fake_base.encode(photos), latent_mask(masks, 8).bool().expand(2, 4, 7, 9)
    assert torch.isfinite(latent).all()
    assert torch.equal(latent[~m_z], normal[~m_z])
    assert not torch.isclose(latent[m_z], normal[m_z]).any(dim=0).all()


@pytest.mark.parametrize(("scheduler", "steps"), [("lcm", 51), ("ddim", 0), ("euler", 1001), ("heun", -1)])
def test_a_number_of_steps_that_a_scheduler_cannot_do_is_refused(
    fake_base: LatentDiffusion, scheduler: str, steps: int
) -> None:
    most = 50 if scheduler == "lcm" else 1000
    with pytest.raises(ValueError, match=f"'{scheduler}' takes 1 to {most} steps: {steps} were asked"):
        generate(fake_base, [0], SamplingConfig(scheduler, steps))


# 7 and 15 do not divide 1000; for 61, diffusers lists one timestep too many
@pytest.mark.parametrize("steps", [1, 2, 7, 15, 61])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_samples_the_noise_level_it_says_and_arrives(
    fake_base: LatentDiffusion, scheduler: str, steps: int
) -> None:
    base, shown = base_of_one_latent(fake_base)
    context, _ = contexts(base, [0, 1])
    config = SamplingConfig(scheduler, min(steps, 50) if scheduler == "lcm" else steps)
    latent = sample(
        base, SamplingRequest(context, None, [image_generator(0, i) for i in (0, 1)]), (32, 32), config
    )
    assert len(shown) >= config.steps
    for noise in shown:
        assert 0.97 < float(noise.std()) < 1.03
    torch.testing.assert_close(latent, DATA.expand(2, -1, -1, -1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("steps", [2, 15])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_keeps_its_noise_level_inside_a_photo_and_arrives(
    fake_base: LatentDiffusion, scheduler: str, steps: int
) -> None:
    base, shown = base_of_one_latent(fake_base)
    photo, mask = randn(1, 3, 256, 256, seed=3).clamp(-1, 1), torch.zeros(1, 1, 256, 256)
    mask[..., 64:240, 48:224] = 1
    context, _ = contexts(base, [0])
    config = SamplingConfig(scheduler, steps, aar=AARConfig("off"))
    latent = sample_into(
        base, photo, mask, SamplingRequest(context, None, [image_generator(0, 0)]), config=config
    )
    m_z = latent_mask(mask, 8).bool().expand_as(latent)
    for noise in shown:
        assert 0.94 < float(noise[m_z].std()) < 1.06
    torch.testing.assert_close(latent[m_z], DATA[m_z], rtol=0, atol=1e-3)
    assert torch.equal(latent[~m_z], base.encode(photo)[~m_z])


# --- guidance


def guided(base: LatentDiffusion, indices: list[int], guidance: Tensor | None, default: float) -> Tensor:
    (photos, masks), generators = scene(indices), [image_generator(5, i) for i in indices]
    config = replace(PLAIN, guidance=default)
    return sample_into(
        base,
        photos,
        masks,
        SamplingRequest(*contexts(base, indices), generators, guidance=guidance),
        config=config,
    )


@pytest.mark.parametrize("guidance", [1.0, 2.1])
def test_equal_guidance_image_by_image_is_exactly_the_configuration_s(
    fake_base: LatentDiffusion, guidance: float
) -> None:
    given = guided(fake_base, [0, 1], torch.full((2,), guidance), default=7.0)
    assert torch.equal(given, guided(fake_base, [0, 1], None, default=guidance))


def test_each_image_has_the_guidance_given_for_it(fake_base: LatentDiffusion) -> None:
    together = guided(fake_base, [0, 1, 2], torch.tensor([4.0, 1.5, 2.5]), default=1.0)
    for i, own in enumerate((4.0, 1.5, 2.5)):
        alone = guided(fake_base, [i], None, default=own)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5 * float(alone.abs().max()))
    assert not torch.allclose(together[:1], guided(fake_base, [0], None, default=1.5))


def test_guidance_must_be_one_number_for_each_image(fake_base: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match=r"Guidance is \(3,\), images 2: give one for each"):
        guided(fake_base, [0, 1], torch.ones(3), default=1.0)


def test_an_unknown_scheduler_is_told_which_are_known(fake_base: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="no scheduler 'plms2'.*ddim, euler, .*heun.*unipc"):
        make_scheduler(fake_base.schedule, "plms2")
    with pytest.raises(ValueError, match="no scheduler 'UNet2DConditionModel'"):
        make_scheduler(fake_base.schedule, "UNet2DConditionModel")


def test_any_diffusers_scheduler_may_be_named_by_its_class(fake_base: LatentDiffusion) -> None:
    latent = generate(fake_base, [0], replace(PLAIN, scheduler="DPMSolverSinglestepScheduler"))
    assert torch.isfinite(latent).all()


def test_masks_must_fit_their_photos(fake_base: LatentDiffusion) -> None:
    photos, masks = scene([0, 1])
    generators = [image_generator(0, i) for i in range(2)]
    for wrong in (masks[:1], masks[..., :64]):
        with pytest.raises(ValueError, match="equal count and size"):
            sample_into(
                fake_base,
                photos,
                wrong,
                SamplingRequest(*contexts(fake_base, [0, 1]), generators),
                config=PLAIN,
            )


def test_progress_is_told_once_per_model_evaluation(fake_base: LatentDiffusion) -> None:
    seen: list[tuple[int, int]] = []
    photos, masks = scene([0])
    sample_into(
        fake_base,
        photos,
        masks,
        SamplingRequest(
            *contexts(fake_base, [0]),
            [image_generator(0, 0)],
            on_step=lambda step, total, clean_hat: seen.append((step, total)),
        ),
        config=PLAIN,
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


# --- DDIM by hand


def within(m_z: Tensor, reach: int) -> Tensor:
    """The cells at most `reach` rows and columns away from a marked one, by looking at each."""
    out = torch.zeros_like(m_z)
    for image, _, row, column in m_z.nonzero().tolist():
        out[image, 0, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = 1
    return out


def ddim(
    base: LatentDiffusion,
    context: Context,
    empty: Context,
    shape: tuple[int, int],
    config: SamplingConfig,
    generators: list[torch.Generator],
    normal: Tensor | None = None,
    m_z: Tensor | None = None,
) -> Tensor:
    """Song et al. (2021), Eq. 12 and 16, with Eq. 1 of the paper before every step and after the last."""
    abar = base.schedule.alphas_cumprod.double()
    start = torch.stack([torch.randn((4, *shape), generator=g) for g in generators])
    x = start.double() if normal is None else start.double() + abar[-1].sqrt() * normal
    times = [round(1000 - i * 1000 / config.steps) - 1 for i in range(config.steps)]
    for t, after in zip(times, [*times[1:], None], strict=True):
        a, a_next = abar[t], torch.tensor(1.0) if after is None else abar[after]
        if normal is not None and m_z is not None:
            noised = a.sqrt() * normal + (1 - a).sqrt() * start
            region = within(m_z, round(config.widening * max(shape) * t / 1000))
            x = torch.where(region > 0, x, noised.double())
        time = torch.full((len(x),), float(t))
        eps = base.predict_noise(x.float(), time, context).double()
        if config.guidance != 1:
            unguided = base.predict_noise(x.float(), time, empty).double()
            eps = unguided + config.guidance * (eps - unguided)
        clean = (x - (1 - a).sqrt() * eps) / a.sqrt()
        sigma = config.eta * ((1 - a_next) / (1 - a)).sqrt() * (1 - a / a_next).sqrt()
        noise = torch.zeros_like(x)
        if config.eta > 0:
            noise = torch.stack([torch.randn((1, 4, *shape), generator=g) for g in generators])[:, 0].double()
        x = a_next.sqrt() * clean + (1 - a_next - sigma**2).clamp(min=0).sqrt() * eps + sigma * noise
    return x if normal is None or m_z is None else torch.where(m_z > 0, x, normal.double())


@pytest.mark.parametrize("name", ["fake_base", "small_base"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("steps", [5, 7])  # 7 does not divide 1000
@torch.no_grad()
def test_ddim_is_the_loop_of_its_paper(
    name: str, eta: float, guidance: float, steps: int, request: pytest.FixtureRequest
) -> None:
    base: LatentDiffusion = request.getfixturevalue(name)
    config = replace(PLAIN, steps=steps, eta=eta, guidance=guidance)
    (context, empty), (photos, masks) = contexts(base, [0, 1]), scene([0, 1])

    def generators() -> list[torch.Generator]:
        return [image_generator(0, i) for i in range(2)]

    plain = sample(base, SamplingRequest(context, empty, generators()), (7, 9), config)
    expected = ddim(base, context, empty, (7, 9), config, generators())
    torch.testing.assert_close(plain.double(), expected, rtol=1e-3, atol=1e-3)

    into = sample_into(base, photos, masks, SamplingRequest(context, empty, generators()), config=config)
    normal, m_z = base.encode(photos), latent_mask(masks, base.factor)
    blended = ddim(base, context, empty, (7, 9), config, generators(), normal, m_z)
    torch.testing.assert_close(into.double(), blended, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_equals_that_of_diffusers_where_steps_divides_the_schedule(
    fake_base: LatentDiffusion, eta: float
) -> None:
    products = fake_base.schedule.alphas_cumprod.double()
    betas = 1 - products / torch.cat([torch.ones(1).double(), products[:-1]])
    ours = DDIM(fake_base.schedule)
    theirs = DDIMScheduler(trained_betas=betas.tolist(), timestep_spacing="trailing", clip_sample=False)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(20)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    x, eps = (torch.randn(2, 4, 5, 6, generator=image_generator(0, i)) for i in range(2))
    for t in ours.timesteps:
        a, b = (
            scheduler.step(eps, t, x, eta=eta, generator=[image_generator(1, i) for i in range(2)])
            for scheduler in (ours, theirs)
        )
        torch.testing.assert_close(a.prev_sample, b.prev_sample)


def test_ddim_needs_no_diffusers_and_other_schedulers_say_so(
    fake_base: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    make_scheduler(fake_base.schedule, "ddim").set_timesteps(5)
    with pytest.raises(ValueError, match="'euler' is one of diffusers, which is not installed: take ddim"):
        make_scheduler(fake_base.schedule, "euler")


def test_a_one_pixel_mask_changes_the_latent_cell_it_lies_in(fake_base: LatentDiffusion) -> None:
    photos, masks = scene([0])
    masks = torch.zeros_like(masks)
    masks[..., 17, 33] = 1
    latent = sample_into(
        fake_base,
        photos,
        masks,
        SamplingRequest(*contexts(fake_base, [0]), [image_generator(0, 0)]),
        config=PLAIN,
    )
    changed = (latent != fake_base.encode(photos)).any(1)[0]
    assert changed.nonzero().tolist() == [[2, 4]]  # 17 // 8, 33 // 8
