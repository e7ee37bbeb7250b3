"""training/config.py: every field of a training's configuration changes what that training does."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.method.artifact import learned_hash
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion, hash_weights
from anomalydiffusion_core.method.spatial_encoder import SpatialEncoder, SpatialEncoderConfig
from anomalydiffusion_core.training.adaptation import adapt_to_normals
from anomalydiffusion_core.training.config import (
    DEMO,
    AdaptationConfig,
    DefectConfig,
    EncoderTrainingConfig,
    FitConfig,
    MaskEmbeddingConfig,
    PlacesConfig,
    TrainingConfig,
    WordsConfig,
)
from anomalydiffusion_core.training.fitting import fit
from anomalydiffusion_core.training.jobs import TrainingJob
from anomalydiffusion_core.training.places import PlaceTask, WordsTask, make_scenes

FITTED = {
    "steps": 4,
    "batch_size": 3,
    "accumulate": 2,
    "warmup_steps": 1,
    "averaging": 0.9,
    "minutes": 1e-9,
    "seed": 1,
}
EMBEDDED = FITTED | {"tokens": 3, "token_rate": 0.1, "initial_words": "scratch", "views_per_pair": 1}
DEFECTS = EMBEDDED | {
    "spatial_encoder": False,
    "encoder_rate": 1e-2,
    "normalisation": "released",
    "refresh_every": 1,
    "validate_every": 1,
}
UPDATE = {"learn": "lora", "rank": 2, "lora_rate": 1e-2}  # of the base, learned with defects
DEFECT_CONFIG = DefectConfig(steps=3, batch_size=2, warmup_steps=3, tokens=2, views_per_pair=2)
MASK_CONFIG = MaskEmbeddingConfig(steps=3, batch_size=2, warmup_steps=3, tokens=2, views_per_pair=2)
PLACES_CONFIG = PlacesConfig(steps=3, batch_size=2, warmup_steps=3)
WORDS_CONFIG = WordsConfig(steps=3, batch_size=2, warmup_steps=3)


def names(config: type[FitConfig]) -> set[str]:
    return {field.name for field in fields(config)}


def test_the_tables_below_have_every_field() -> None:
    # that activations are computed again changes no number: test_defects.py counts; patience: test_checkpoint
    assert set(DEFECTS) | set(UPDATE) | {"checkpointing", "patience"} == names(DefectConfig)
    assert set(EMBEDDED) | {"checkpointing"} == names(MaskEmbeddingConfig)
    assert set(FITTED) | {"rank", "rate", "views_per_photo"} == names(AdaptationConfig)
    assert set(FITTED) | {"encoder_rate"} == names(PlacesConfig) == names(WordsConfig)


@pytest.fixture(scope="module")
def unchanged() -> dict[str, Any]:
    """What each training gives as it is, by its name."""
    return {}


@pytest.mark.parametrize("name", DEFECTS)
def test_every_field_changes_what_is_learned_of_defects(
    fake_base: LatentDiffusion, dataset: Path, unchanged: dict[str, Any], name: str
) -> None:
    def learned(config: DefectConfig) -> tuple[str, int]:
        job = TrainingJob(fake_base, find_dataset(dataset), TrainingConfig(64, 0.5, config))
        outcome = job.train_defects()
        record: Any = outcome.learned.training["anomaly"]
        return learned_hash(outcome.learned), len(record["validation"])

    if "defects" not in unchanged:
        unchanged["defects"] = learned(DEFECT_CONFIG)
    assert learned(replace(DEFECT_CONFIG, **{name: DEFECTS[name]})) != unchanged["defects"]


@pytest.mark.parametrize("name", UPDATE)
def test_every_field_of_the_base_s_update_changes_what_is_learned_with_it(
    lora_base: DiffusersModel, dataset: Path, unchanged: dict[str, Any], name: str
) -> None:
    def learned(config: DefectConfig) -> str:
        job = TrainingJob(copy.deepcopy(lora_base), find_dataset(dataset), TrainingConfig(64, 0.5, config))
        return learned_hash(job.train_defects().learned)

    config = replace(DEFECT_CONFIG, spatial_encoder=False, learn="both")
    if "update" not in unchanged:
        unchanged["update"] = learned(config)
    assert learned(replace(config, **{name: UPDATE[name]})) != unchanged["update"]


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_field_changes_what_is_learned_of_masks(
    fake_base: LatentDiffusion, dataset: Path, unchanged: dict[str, Any], learned: Any, name: str
) -> None:
    def vectors(config: MaskEmbeddingConfig) -> torch.Tensor:
        model, job = (
            learned.copied(),
            TrainingJob(fake_base, find_dataset(dataset), replace(DEMO, masks=config)),
        )
        job.train_masks(model)
        return model.mask["thing/stain"]["clip_l"]

    if "masks" not in unchanged:
        unchanged["masks"] = vectors(MASK_CONFIG)
    assert not torch.equal(vectors(replace(MASK_CONFIG, **{name: EMBEDDED[name]})), unchanged["masks"])


@pytest.mark.parametrize("name", FITTED | {"rank": 2, "rate": 1e-2, "views_per_photo": 1})
def test_every_field_changes_what_a_base_is_adapted_to(
    lora_base: DiffusersModel, dataset: Path, unchanged: dict[str, Any], name: str
) -> None:
    def adapter(config: AdaptationConfig) -> str:
        base = copy.deepcopy(lora_base)
        adapt_to_normals(base, find_dataset(dataset), config, 64)
        return hash_weights(base.adapter)

    config = AdaptationConfig(steps=3, batch_size=2, warmup_steps=3, rank=4, views_per_photo=2)
    value = {**FITTED, "rank": 2, "rate": 1e-2, "views_per_photo": 1}[name]
    if "adapter" not in unchanged:
        unchanged["adapter"] = adapter(config)
    assert adapter(replace(config, **{name: value})) != unchanged["adapter"]


def small_encoders() -> dict[str, SpatialEncoder]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = SpatialEncoderConfig(16, 4, "resnet10", mask_size=32, pyramid_channels=8, grid=4)
        return {"clip_l": SpatialEncoder(config)}


@pytest.mark.parametrize(("task_class", "config"), [(PlaceTask, PLACES_CONFIG), (WordsTask, WORDS_CONFIG)])
@pytest.mark.parametrize("name", FITTED | {"encoder_rate": 1e-2})
def test_every_field_changes_what_an_encoder_is_taught(
    small_base: DiffusersModel, unchanged: dict[str, Any], task_class: Any, config: PlacesConfig, name: str
) -> None:
    if "scenes" not in unchanged:
        unchanged["scenes"] = make_scenes(small_base, 1, 6)

    def taught(config: PlacesConfig) -> str:
        task = task_class(small_base, unchanged["scenes"], small_encoders(), config)
        fit(task, config)
        return hash_weights(task.encoders["clip_l"].state_dict())

    value = {**FITTED, "encoder_rate": 1e-2}[name]
    if task_class not in unchanged:
        unchanged[task_class] = taught(config)
    assert taught(replace(config, **{name: value})) != unchanged[task_class]


def test_configurations_are_read_without_torch() -> None:
    script = "import sys, anomalydiffusion_core.training.config; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_words_are_imitated_with_four_masks_for_each_scene() -> None:
    config = EncoderTrainingConfig()
    assert (config.words.batch_size, config.places.batch_size) == (48, 12)
    assert (config.words.steps, config.places.steps, config.scenes) == (600, 2000, 2000)
    assert (config.words.warmup_steps, config.places.warmup_steps) == (20, 100)


def test_the_demo_trains_as_by_default_on_its_own_size_and_share() -> None:
    assert replace(TrainingConfig(), image_size=128, share=0.6) == DEMO
