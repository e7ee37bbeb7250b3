"""training/jobs.py, training/files.py: what goes together, what is learned anew, where it is written."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.method.artifact import load_artifact
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.training.config import (
    AdaptationConfig,
    DefectConfig,
    MaskEmbeddingConfig,
    TrainingConfig,
)
from anomalydiffusion_core.training.files import TrainingFiles
from anomalydiffusion_core.training.jobs import TrainingJob
from anomalydiffusion_core.training.stage import TrainingRun

CONFIG = TrainingConfig(
    64,
    0.5,
    DefectConfig(steps=2, batch_size=2, views_per_pair=1, tokens=2),
    MaskEmbeddingConfig(steps=2, batch_size=2, views_per_pair=1, tokens=2),
)


def test_masks_are_learned_of_types_that_have_none_unless_all_have(
    fake_base: LatentDiffusion, dataset: Path
) -> None:
    both = find_dataset(dataset)
    first = TrainingJob(fake_base, find_dataset(dataset, None, ["scratch"]), CONFIG).run().learned
    one = first.copied()
    job = TrainingJob.of_masks(fake_base, both, CONFIG, one)
    assert job.extends is one and job.train_masks(one).finished
    assert set(one.mask) == {"thing/scratch", "thing/stain"}
    assert torch.equal(one.mask["thing/scratch"]["clip_l"], first.mask["thing/scratch"]["clip_l"])
    again = TrainingJob.of_masks(fake_base, both, CONFIG, one)
    assert again.extends is None  # all have: none of them is kept
    without = replace(first, mask={})
    assert TrainingJob.of_masks(fake_base, both, CONFIG, without).extends is None


def test_without_a_configuration_of_masks_none_are_learned(fake_base: LatentDiffusion, dataset: Path) -> None:
    stages: list[str] = []
    job = TrainingJob(fake_base, find_dataset(dataset), replace(CONFIG, masks=None))
    outcome = job.run(TrainingRun(lambda stage, *_: stages.append(stage)))
    assert outcome.end.finished and not outcome.learned.mask and set(stages) == {"read", "anomaly"}


def test_what_is_extended_is_not_adapted_first(fake_base: LatentDiffusion, dataset: Path) -> None:
    known = TrainingJob(fake_base, find_dataset(dataset), CONFIG).run().learned
    config = replace(CONFIG, adaptation=AdaptationConfig())
    with pytest.raises(ValueError, match="--adapt and --extend exclude each other"):
        TrainingJob(fake_base, find_dataset(dataset), config, known)


def test_a_base_that_has_no_attention_to_adapt_is_refused(fake_base: LatentDiffusion, dataset: Path) -> None:
    job = TrainingJob(fake_base, find_dataset(dataset), replace(CONFIG, adaptation=AdaptationConfig(steps=1)))
    with pytest.raises(ValueError, match="cannot be adapted: give one of load_base"):
        job.run()


def test_a_training_of_another_size_share_or_precision_has_another_origin(
    fake_base: Any, dataset: Path
) -> None:
    job = TrainingJob(fake_base, find_dataset(dataset), CONFIG)
    origin = job.origin()
    assert (origin["image_size"], origin["share"], origin["precision"]) == (64, 0.5, "float32")
    assert origin["extends"] == origin["starts from"] == origin["adapter"] == ""
    other = replace(job, config=replace(CONFIG, image_size=128, share=1.0)).origin()
    assert {key for key in origin if origin[key] != other[key]} == {"image_size", "share"}


@pytest.mark.parametrize(("learn", "differs"), [("tokens", False), ("lora", True), ("both", True)])
def test_normal_photos_are_of_the_origin_where_they_train_too(
    fake_base: Any, dataset: Path, learn: str, differs: bool
) -> None:
    config = replace(CONFIG, defects=replace(CONFIG.defects, learn=learn))
    before, after = (TrainingJob(fake_base, find_dataset(dataset), config).origin() for _ in "ab")
    assert before == after
    for path in (dataset / "thing/train/good").iterdir():
        shutil.copy(next((dataset / "thing/test/stain").iterdir()), path)
    changed = TrainingJob(fake_base, find_dataset(dataset), config).origin()
    assert {key for key in changed if changed[key] != before.get(key)} == ({"normals"} if differs else set())


def test_a_training_is_written_side_by_side(
    fake_base: LatentDiffusion, dataset: Path, tmp_path: Path
) -> None:
    files = TrainingFiles(tmp_path / "leather.safetensors", 5.0)
    assert files.lora == tmp_path / "leather.lora.safetensors"
    assert files.checkpoints.folder == tmp_path / "leather.training" and files.checkpoints.minutes == 5.0
    files.save(TrainingJob(fake_base, find_dataset(dataset), CONFIG).run())
    assert set(load_artifact(files.artifact).anomaly) == {"thing/scratch", "thing/stain"}
    assert [path.name for path in tmp_path.glob("leather.*")] == ["leather.safetensors"]


def test_a_training_goes_on_with_adaptation_only_where_it_was_begun_with(
    fake_base: LatentDiffusion, dataset: Path, tmp_path: Path
) -> None:
    def stop(stage: str, done: int, _total: int, _note: str) -> None:
        if (stage, done) == ("anomaly", 1):
            raise KeyboardInterrupt

    files = TrainingFiles(tmp_path / "a.safetensors")
    adapted = replace(CONFIG, adaptation=AdaptationConfig())
    files.check(CONFIG, extends=False, resume=False)
    TrainingJob(fake_base, find_dataset(dataset), CONFIG).run(TrainingRun(stop, files.checkpoints))
    files.check(CONFIG, extends=False, resume=True)
    with pytest.raises(ValueError, match="a.training was begun without --adapt: give the same again"):
        files.check(adapted, extends=False, resume=True)
    with pytest.raises(ValueError, match="holds a training that was cut off: add --resume"):
        files.check(CONFIG, extends=False, resume=False)
    with pytest.raises(ValueError, match="exclude each other"):
        files.check(adapted, extends=True, resume=True)
