"""Training: the loss by hand, what is learned and what is not, and that a seed fixes everything."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_tasks import make_pool, make_task, small_encoder
from torch import Tensor, nn

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.views import ViewPool
from anomalydiffusion_core.method.blending import latent_mask
from anomalydiffusion_core.method.conditioning import anomaly_context
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.method.templates import PHOTO_TEMPLATES
from anomalydiffusion_core.training.config import DefectConfig, MaskEmbeddingConfig, TrainingConfig
from anomalydiffusion_core.training.defects import AnomalyTask, MaskTask
from anomalydiffusion_core.training.fitting import Fitting, fit
from anomalydiffusion_core.training.history import History, training_record
from anomalydiffusion_core.training.jobs import TrainingJob
from anomalydiffusion_core.training.losses import masked_loss
from anomalydiffusion_core.training.stage import TrainingRun
from anomalydiffusion_core.training.task import Batch, sample_batch
from anomalydiffusion_core.training.validation import Validation, paired_improvement

CONFIG = DefectConfig(steps=6, batch_size=2, warmup_steps=2, tokens=3, views_per_pair=2)
MASKS = MaskEmbeddingConfig(steps=2, batch_size=2, warmup_steps=2, tokens=2, views_per_pair=2)
JOB = TrainingConfig(64, 0.5, CONFIG, None)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the loss


def test_the_masked_loss_divides_by_the_mask_s_area_or_by_all_cells() -> None:
    eps = torch.zeros(2, 2, 2, 3)
    eps_hat = torch.tensor([[[1.0, 2, 3], [4, 5, 6]], [[0.0, 0, 0], [1, 1, 1]]]).expand(2, -1, -1, -1)
    m_z = torch.zeros(2, 1, 2, 3)
    m_z[0, 0, 0, 0] = m_z[0, 0, 1, 2] = m_z[1, 0, 1, 1] = 1
    one = torch.ones(2, 1, 1, 1)
    # squared errors in the mask: image 0: 1 + 36 + 0 + 1 = 38 over 2 cells x 2 channels; image 1: 25 + 1 = 26
    assert masked_loss(eps_hat, eps, m_z, one, normalisation="mask").tolist() == [38 / 4, 26 / 2]
    assert masked_loss(eps_hat, eps, m_z, one, normalisation="released").tolist() == pytest.approx(
        [38 / 12, 26 / 12]
    )
    everything = [(eps_hat[b] ** 2).mean().item() for b in range(2)]
    assert masked_loss(eps_hat, eps, m_z, one, normalisation="unmasked").tolist() == pytest.approx(everything)
    weight = torch.tensor([2.0, 10.0]).view(2, 1, 1, 1)
    assert masked_loss(eps_hat, eps, m_z, weight, normalisation="mask").tolist() == [2 * 38 / 4, 10 * 26 / 2]


def test_errors_outside_the_mask_do_not_count() -> None:
    eps, m_z = randn(1, 4, 3, 3), torch.zeros(1, 1, 3, 3)
    m_z[..., 1, 1] = 1
    off = eps + torch.where(m_z > 0, 0.0, 9.0)
    assert masked_loss(off, eps, m_z, torch.ones(1, 1, 1, 1), normalisation="mask").item() == 0


@pytest.mark.parametrize("normalisation", ["mask", "released"])
def test_a_one_pixel_defect_has_a_loss_and_gradients(fake_base: LatentDiffusion, normalisation: Any) -> None:
    pool = make_pool(fake_base, 1)
    pool.masks.zero_()
    pool.masks[0, 0, 37, 21] = 1
    assert latent_mask(pool.masks, 8).nonzero().tolist() == [[0, 0, 4, 2]]
    pool = replace(pool, names=["thing/a"])
    task = AnomalyTask(fake_base, pool, small_encoder(), replace(CONFIG, normalisation=normalisation))
    loss = task.loss(pool, Batch(torch.tensor([0]), torch.tensor([500]), randn(1, 4, 8, 8)))
    assert loss.item() > 0
    loss.sum().backward()
    grad = task.tokens["clip_l"].grad
    assert grad is not None
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_a_task_s_loss_is_eq_5_in_units_of_what_the_base_predicts(
    make_fake_base: Callable[..., LatentDiffusion], prediction: str
) -> None:
    base = make_fake_base(prediction=prediction)
    task, t, noise = make_task(base, CONFIG), torch.tensor([100, 700]), randn(2, 4, 8, 8)
    rows = torch.tensor([3, 0])
    losses = task.loss(task.pool, Batch(rows, t, noise, 14))
    for b, row in enumerate(rows.tolist()):
        z, mask, kind = task.pool.latents[row], task.pool.masks[row], int(task.pool.types[row])
        abar = base.schedule.alphas_cumprod[t[b]]
        noisy = (abar.sqrt() * z + (1 - abar).sqrt() * noise[b])[None]
        context = anomaly_context(
            base,
            PHOTO_TEMPLATES[14 % len(PHOTO_TEMPLATES)],
            {"clip_l": task.tokens["clip_l"][kind]},
            task.encoders,
            mask=mask[None],
        )
        eps_hat = base.predict_noise(noisy, t[b : b + 1], context)[0]
        cells = [
            (i, j) for i in range(8) for j in range(8) if mask[0, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].any()
        ]
        errors = [float((eps_hat[:, i, j] - noise[b, :, i, j]).square().mean()) for i, j in cells]
        expected = sum(errors) / len(cells) / (1 if prediction == "epsilon" else float(abar))
        assert losses[b].item() == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def test_mask_embeddings_are_trained_on_the_whole_picture(fake_base: LatentDiffusion) -> None:
    task, t, noise = MaskTask(fake_base, make_pool(fake_base), MASKS), torch.tensor([300]), randn(1, 4, 8, 8)
    task.tokens["clip_l"].copy_(randn(2, 2, 16, seed=8))
    loss = task.loss(task.pool, Batch(torch.tensor([1]), t, noise))
    noisy = fake_base.schedule.add_noise(task.pool.latents[1:2], noise, t)
    context = fake_base.encode_prompts(
        ["a black and white mask of a {}"], {"clip_l": task.tokens["clip_l"][1:2]}
    )
    eps_hat = fake_base.predict_noise(noisy, t, context)
    assert loss.item() == pytest.approx((eps_hat - noise).square().mean().item(), rel=1e-5)


# --- fitting


def test_the_loss_falls_and_only_embeddings_and_spatial_encoder_change(fake_base: LatentDiffusion) -> None:
    before = {name: value.clone() for name, value in vars(fake_base).items() if isinstance(value, Tensor)}
    config = replace(CONFIG, steps=60, token_rate=0.2, encoder_rate=1e-3)
    task = make_task(fake_base, config)
    tokens = task.tokens["clip_l"].detach().clone()
    encoder = copy.deepcopy(task.encoders["clip_l"].state_dict())
    validation = Validation(task.pool)
    start = validation.measure(task)
    history = fit(task, config)
    end = validation.measure(task)
    assert len(history.loss) == 60
    assert end.mean() < 0.97 * start.mean()
    assert ((task.tokens["clip_l"] - tokens).abs().amax(-1) > 0).all()
    assert any(not torch.equal(v, encoder[k]) for k, v in task.encoders["clip_l"].state_dict().items())
    assert len(before) > 5
    assert all(torch.equal(getattr(fake_base, name), value) for name, value in before.items())


def test_training_leaves_a_diffusers_base_untouched(small_base: DiffusersModel) -> None:
    modules = small_base.unet, small_base.text_encoder
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    task = make_task(small_base, CONFIG)
    tokens = task.tokens["clip_l"].detach().clone()
    fit(task, replace(CONFIG, steps=2))
    assert not torch.equal(task.tokens["clip_l"], tokens)
    for module, state in zip(modules, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_accumulated_batches_make_one_step_of_their_mean_gradient(fake_base: LatentDiffusion) -> None:
    config = replace(CONFIG, accumulate=3)
    fitting = Fitting(make_task(fake_base, config), config, None, History())
    expected, generator = make_task(fake_base, config), torch.Generator().manual_seed(config.seed)
    losses = []
    for _ in range(3):
        loss = expected.loss(expected.pool, sample_batch(expected.pool, 2, generator)).mean() / 3
        loss.backward()
        losses.append(float(loss.detach()))
    fitting.take_step()
    assert fitting.step == 1 and fitting.history.loss == [pytest.approx(sum(losses), rel=1e-6)]
    gradients = [table.grad for table in (fitting.task.tokens["clip_l"], expected.tokens["clip_l"])]
    assert gradients[1].norm() < 1  # nothing is clipped
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-9)


def losses_and_gradients(base: DiffusersModel, config: DefectConfig = CONFIG) -> list[Tensor]:
    task = make_task(base, config)
    losses = task.loss(task.pool, Batch(torch.arange(2), torch.tensor([300, 700]), randn(2, 4, 8, 8)))
    losses.mean().backward()
    encoder = [p.grad.flatten() for p in task.encoders["clip_l"].parameters() if p.grad is not None]
    return [losses.detach(), task.tokens["clip_l"].grad, torch.cat(encoder)]


def test_checkpointed_gradients_are_the_same_numbers(small_base: DiffusersModel) -> None:
    calls: list[nn.Module] = []
    for module in (small_base.unet.up_blocks[0].resnets[0], small_base.text_encoder):
        module.register_forward_pre_hook(lambda module, _: calls.append(module))
    kept = losses_and_gradients(small_base)
    assert len(calls) == 2
    small_base.save_memory(checkpointing=True)
    recomputed = losses_and_gradients(small_base, replace(CONFIG, checkpointing=True))
    for plain, again in zip(kept, recomputed, strict=True):
        assert torch.allclose(plain, again, rtol=1e-5, atol=1e-8)
    assert len(calls) == 6  # each computed once more for the gradient


@pytest.mark.parametrize("batch", [2, 3, 6])
def test_a_batch_has_as_many_types_as_there_are(fake_base: LatentDiffusion, batch: int) -> None:
    pool, generator = make_pool(fake_base, count=9), torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(40):
        rows = sample_batch(pool, batch, generator).rows
        assert len(rows) == batch
        counts = torch.bincount(pool.types[rows], minlength=2)
        assert counts.max() - counts.min() <= 1  # however many views a type has
        seen |= set(rows.tolist())
    assert seen == set(range(9))


def test_a_compiled_base_gives_the_same_numbers(small_base: DiffusersModel) -> None:
    plain = losses_and_gradients(small_base)
    small_base.compile()
    weight = small_base.unet.down_blocks[0].resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert small_base.unet._compiled_call_impl is not None
    with torch.compiler.set_stance("force_eager"):  # the compiler itself takes a minute
        for value, compiled in zip(plain, losses_and_gradients(small_base), strict=True):
            torch.testing.assert_close(compiled, value, rtol=1e-4, atol=1e-5)


def test_bf16_is_near_and_leaves_what_is_learned_in_float(small_base: DiffusersModel) -> None:
    exact = losses_and_gradients(small_base)
    weights = small_base.fingerprint
    small_base.save_memory(bf16=True)
    modules = (small_base.unet, small_base.text_encoder)
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.bfloat16}
    assert small_base.fingerprint == weights
    for plain, rounded in zip(exact, losses_and_gradients(small_base), strict=True):
        assert rounded.dtype == torch.float32
        assert 0 < (plain - rounded).norm() < 0.1 * plain.norm()


def test_the_same_seed_learns_the_same_and_another_seed_does_not(fake_base: LatentDiffusion) -> None:
    def learned(seed: int, global_seed: int) -> Tensor:
        config = replace(CONFIG, seed=seed)
        task = make_task(fake_base, config)
        torch.manual_seed(global_seed)  # plays no part
        fit(task, config)
        return task.tokens["clip_l"].detach()

    assert torch.equal(learned(0, 1), learned(0, 2))
    assert not torch.equal(learned(0, 1), learned(1, 1))


def test_measurements_pair_up_and_cover_the_timesteps_evenly(fake_base: LatentDiffusion) -> None:
    task = make_task(fake_base, CONFIG)
    one, other = Validation(task.pool, repeats=4), Validation(task.pool, repeats=4)
    assert torch.equal(one.measure(task), other.measure(task))
    assert one.batch.rows.tolist() == [row for row in range(4) for _ in range(4)]
    assert (one.batch.t.view(4, 4) // 250).tolist() == [[0, 1, 2, 3]] * 4


def test_validation_is_recorded_before_and_after(fake_base: LatentDiffusion) -> None:
    task = make_task(fake_base, CONFIG)
    validation = Validation(task.pool)
    first = validation.measure(task)
    history = fit(task, CONFIG, validation)
    assert first.shape == (4, 4) and [step for step, _ in history.validation] == [0, 6]
    assert torch.equal(history.validation[0][1], first)
    assert torch.equal(history.validation[1][1], validation.measure(task)) and not torch.equal(
        history.validation[1][1], first
    )
    record = training_record(CONFIG, history)
    assert record["validation"] == [(0, float(first.mean())), (6, float(history.validation[1][1].mean()))]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_a_remedy(fake_base: LatentDiffusion, value: float) -> None:
    class Diverging(AnomalyTask):
        calls = 0

        def loss(self, pool: ViewPool, batch: Batch) -> Tensor:
            self.calls += 1
            return super().loss(pool, batch) * (value if self.calls == 3 else 1.0)

    task = Diverging(fake_base, make_pool(fake_base), small_encoder(), CONFIG)
    with pytest.raises(ValueError, match=f"became {value} at step 3: lower the learning rates"):
        fit(task, CONFIG)


# --- on a dataset


def test_training_on_a_dataset_learns_every_type(fake_base: LatentDiffusion, dataset: Path) -> None:
    learned = TrainingJob(fake_base, find_dataset(dataset), replace(JOB, masks=MASKS)).run().learned
    assert sorted(learned.anomaly) == sorted(learned.mask) == ["thing/scratch", "thing/stain"]
    assert all(tokens["clip_l"].shape == (3, 16) for tokens in learned.anomaly.values())
    assert all(tokens["clip_l"].shape == (2, 16) for tokens in learned.mask.values())
    assert set(learned.spatial_encoders) == {"clip_l"}


def repaint(dataset: Path, defect: str, stems: list[str], write_image: Callable[..., Path]) -> None:
    for stem in stems:
        pixels = np.random.default_rng(7).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        write_image(dataset / "thing/test" / defect / f"{stem}.png", pixels)


def test_other_views_are_made_meanwhile(fake_base: LatentDiffusion, dataset: Path) -> None:
    found, once = find_dataset(dataset), replace(CONFIG, steps=8)
    losses = {}
    for every in (0, 4, 8):
        config = replace(JOB, defects=replace(once, refresh_every=every))
        outcome = TrainingJob(fake_base, found, config).run()
        losses[every] = outcome.learned.training["anomaly"]["loss"]
    assert losses[8] == losses[0]
    assert losses[4][:4] == losses[0][:4] and losses[4] != losses[0]


def test_views_that_cannot_be_made_any_more_stop_with_the_file(
    fake_base: LatentDiffusion, dataset: Path
) -> None:
    def lose_a_photo(_stage: str, done: int, _total: int, _note: str) -> None:
        if done == 1:
            (dataset / "thing/test/stain/000.png").unlink()

    config = replace(JOB, defects=replace(CONFIG, steps=20, refresh_every=6))
    outcome = TrainingJob(fake_base, find_dataset(dataset), config).run(TrainingRun(lose_a_photo))
    assert "No new views could be made: " in outcome.end.problem and "000.png" in outcome.end.problem
    assert outcome.learned.training["anomaly"]["steps"] == 12


def test_the_autoencoder_leaves_the_device_once_the_views_are_made(
    fake_base: LatentDiffusion, dataset: Path
) -> None:
    released: list[bool] = []

    def on_stage(stage: str, done: int, total: int, note: str) -> None:
        released.append(getattr(fake_base, "codec_released", False))

    job = TrainingJob(fake_base, find_dataset(dataset), replace(JOB, masks=MASKS))
    job.run(TrainingRun(on_stage))
    assert released == [False] + (len(released) - 1) * [True]


def test_no_training_image_is_measured_and_no_measured_image_is_trained_on(
    fake_base: LatentDiffusion, dataset: Path, write_image: Callable[..., Path]
) -> None:
    def run() -> tuple[Tensor, float]:
        outcome = TrainingJob(fake_base, find_dataset(dataset), JOB).run()
        assert outcome.improvement is not None
        return outcome.learned.anomaly["thing/scratch"]["clip_l"], outcome.improvement.before

    tokens, before = run()
    repaint(dataset, "scratch", ["002", "003"], write_image)  # the second half is held out
    same_tokens, other_before = run()
    assert torch.equal(same_tokens, tokens)
    assert other_before != before
    repaint(dataset, "scratch", ["000", "001"], write_image)
    other_tokens, same_before = run()
    assert same_before == other_before
    assert not torch.equal(other_tokens, tokens)


def test_nothing_is_held_out_with_a_share_of_one(fake_base: LatentDiffusion, dataset: Path) -> None:
    outcome = TrainingJob(fake_base, find_dataset(dataset), replace(JOB, share=1.0)).run()
    assert outcome.improvement is None
    assert not outcome.end.interrupted


def test_an_interrupt_keeps_what_was_learned(fake_base: LatentDiffusion, dataset: Path) -> None:
    def stop(stage: str, done: int, total: int, note: str) -> None:
        if stage == "anomaly" and done == 3:
            raise KeyboardInterrupt

    job = TrainingJob(fake_base, find_dataset(dataset), replace(JOB, masks=MASKS))
    outcome = job.run(TrainingRun(stop))
    assert outcome.end.interrupted
    assert outcome.learned.training["anomaly"]["steps"] == 3  # type: ignore[index]
    still = replace(CONFIG, steps=1, token_rate=0.0, encoder_rate=0.0)
    untrained = TrainingJob(fake_base, find_dataset(dataset), replace(JOB, defects=still)).run().learned
    for name, tokens in outcome.learned.anomaly.items():
        assert not torch.equal(tokens["clip_l"], untrained.anomaly[name]["clip_l"])
    assert not outcome.learned.mask


def test_an_improvement_is_the_ratio_of_means_inside_its_interval() -> None:
    before = np.array([1.0, 2.0, 3.0, 4.0] * 5)[:, None] * [0.5, 1.5]  # two draws of each pair
    improvement = paired_improvement(before, before * 0.8)
    assert improvement.relative == pytest.approx(-0.2)
    assert improvement.low == pytest.approx(-0.2)  # every resample has the same ratio
    assert improvement.high == pytest.approx(-0.2)
    gain = np.resize([0.5, -0.1, 0.3], 20)[:, None]
    noisy = paired_improvement(before, before - gain)
    assert noisy.low < noisy.relative < noisy.high
    assert (noisy.before, noisy.after) == (2.5, pytest.approx(2.5 - gain.mean()))
    # more draws of the same pairs say nothing new about other pairs
    repeated = paired_improvement(np.repeat(before, 9, 1), np.repeat(before - gain, 9, 1))
    assert (repeated.low, repeated.high) == pytest.approx((noisy.low, noisy.high))
