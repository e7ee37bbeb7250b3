"""Guards `learn` of training/defects.py: an update of the base, learned with tokens or in their place."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tasks import make_pool
from torch import Tensor

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel, load_onto
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.views import ViewPool, make_normal_views
from anomalydiffusion_core.method.artifact import learned_hash, save_artifact
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.training.adaptation import normal_loss, training_normals
from anomalydiffusion_core.training.checkpoint import Checkpoints
from anomalydiffusion_core.training.config import (
    AdaptationConfig,
    DefectConfig,
    MaskEmbeddingConfig,
    TrainingConfig,
)
from anomalydiffusion_core.training.defects import AnomalyTask
from anomalydiffusion_core.training.jobs import TrainingJob
from anomalydiffusion_core.training.stage import TrainingRun
from anomalydiffusion_core.training.task import Batch, sample_batch

DEFECTS = DefectConfig(
    steps=4, batch_size=2, views_per_pair=2, warmup_steps=1, tokens=2, spatial_encoder=False, rank=4
)
MASKS = MaskEmbeddingConfig(steps=2, batch_size=2, views_per_pair=2, warmup_steps=1)


def config(learn: str, **more: Any) -> TrainingConfig:
    return TrainingConfig(64, 0.5, replace(DEFECTS, learn=learn, **more), MASKS)


def trained(base: DiffusersModel, dataset: Path, learn: str, run: TrainingRun = TrainingRun()) -> Learned:
    return TrainingJob(base, find_dataset(dataset), config(learn)).run(run).learned


def starting_tokens(base: LatentDiffusion, dataset: Path) -> Tensor:
    task = AnomalyTask(base, make_pool(base), {}, DEFECTS)
    return task.tokens["clip_l"][0]


def test_tokens_alone_leave_the_base_as_it_is(lora_base: DiffusersModel, dataset: Path) -> None:
    before = copy.deepcopy(lora_base.unet.state_dict())
    assert not trained(lora_base, dataset, "tokens").adapter and not lora_base.adapter
    assert all(torch.equal(before[name], value) for name, value in lora_base.unet.state_dict().items())


@pytest.mark.parametrize(("learn", "tokens_change"), [("both", True), ("lora", False)])
def test_an_update_is_learned_with_tokens_or_in_their_place(
    lora_base: DiffusersModel, dataset: Path, learn: str, tokens_change: bool
) -> None:
    start = starting_tokens(lora_base, dataset)
    learned = trained(lora_base, dataset, learn)
    assert all(tensor.any() for tensor in learned.adapter.values()), "every layer's update is no longer zero"
    tokens = learned.anomaly["thing/scratch"]["clip_l"]
    assert torch.equal(tokens, start) != tokens_change
    assert learned.adapter.keys() == lora_base.adapter.keys(), "masks are learned on the updated base"


def test_an_artifact_updates_a_fresh_base_as_training_did(
    lora_base: DiffusersModel, dataset: Path, tmp_path: Path
) -> None:
    plain = copy.deepcopy(lora_base)
    learned = trained(lora_base, dataset, "both")
    save_artifact(learned, tmp_path / "a.safetensors")
    assert learned_hash(load_onto(plain, tmp_path / "a.safetensors")) == learned_hash(learned)
    for one, other in zip(plain.unet.parameters(), lora_base.unet.parameters(), strict=True):
        assert torch.equal(one, other)


def normal_pool(base: LatentDiffusion, dataset: Path) -> ViewPool:
    photos = training_normals(find_dataset(dataset))
    return make_normal_views(base, photos, 2, 64, generator=torch.Generator().manual_seed(0))


def test_normal_photos_pay_in_training_and_not_where_defects_are_measured(
    lora_base: DiffusersModel, dataset: Path
) -> None:
    pool, normals = make_pool(lora_base), normal_pool(lora_base, dataset)
    batch = sample_batch(pool, 3, torch.Generator().manual_seed(1))
    alone, together = (AnomalyTask(lora_base, pool, {}, DEFECTS, normals=given) for given in (None, normals))
    rows = torch.randint(len(normals), (3,), generator=torch.Generator().manual_seed(batch.template))
    expected = normal_loss(lora_base, normals, Batch(rows, batch.t, batch.noise, batch.template))
    torch.testing.assert_close(together.loss(pool, batch) - alone.loss(pool, batch), expected)
    assert float(expected.detach().min()) > 0
    with torch.no_grad():
        assert torch.equal(together.loss(pool, batch), alone.loss(pool, batch))


@pytest.mark.parametrize("stop", [("anomaly", 2), ("masks", 1)])
def test_a_training_of_both_that_was_cut_off_goes_on_to_the_last_bit(
    lora_base: DiffusersModel, dataset: Path, tmp_path: Path, stop: tuple[str, int]
) -> None:
    first, second = copy.deepcopy(lora_base), copy.deepcopy(lora_base)
    whole = trained(lora_base, dataset, "both")

    def interrupt(stage: str, done: int, total: int, note: str) -> None:
        if (stage, done) == stop:
            raise KeyboardInterrupt

    checkpoints = Checkpoints(tmp_path / "kept")
    trained(first, dataset, "both", TrainingRun(interrupt, checkpoints))
    resumed = trained(second, dataset, "both", TrainingRun(checkpoints=checkpoints))
    assert learned_hash(resumed) == learned_hash(whole)


def test_what_cannot_be_learned_is_said(fake_base: LatentDiffusion, dataset: Path, learned: Learned) -> None:
    found = find_dataset(dataset)
    with pytest.raises(ValueError, match="base cannot be adapted: give one of load_base, or learn tokens"):
        TrainingJob(fake_base, found, config("both")).run()
    adapted = replace(config("lora"), adaptation=AdaptationConfig(steps=1))
    with pytest.raises(ValueError, match="--adapt and --learn lora exclude each other"):
        TrainingJob(fake_base, found, adapted)
    with pytest.raises(ValueError, match=r"Extending and .* \(both\) exclude each other: .* learn tokens"):
        TrainingJob(fake_base, found, config("both"), extends=learned)
