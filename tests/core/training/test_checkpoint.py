"""Checkpoints: a training cut off anywhere goes on bit for bit, or says why it cannot."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_tasks import make_task
from torch import Tensor

from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.dataset.views import ViewPool
from anomalydiffusion_core.method import artifact
from anomalydiffusion_core.method.embeddings import Learned
from anomalydiffusion_core.method.latent_diffusion import LatentDiffusion
from anomalydiffusion_core.training.checkpoint import Checkpoints
from anomalydiffusion_core.training.config import DefectConfig, MaskEmbeddingConfig, TrainingConfig
from anomalydiffusion_core.training.defects import AnomalyTask
from anomalydiffusion_core.training.fitting import Fitting, TrainingStopped, fit
from anomalydiffusion_core.training.history import History
from anomalydiffusion_core.training.jobs import TrainingJob
from anomalydiffusion_core.training.stage import TrainingRun
from anomalydiffusion_core.training.task import Batch
from anomalydiffusion_core.training.validation import Validation

CONFIG = DefectConfig(
    steps=12,
    batch_size=2,
    views_per_pair=2,
    tokens=3,
    warmup_steps=2,
    averaging=0.9,
    validate_every=4,
    encoder_rate=1e-3,
)
MASKS = MaskEmbeddingConfig(steps=6, batch_size=2, views_per_pair=2, tokens=2, warmup_steps=2, averaging=0.9)
ORIGIN = {"dataset": "d", "base": "b"}


def stop_at(step: int) -> Callable[[int, int, float], None]:
    def on_step(done: int, _total: int, _loss: float) -> None:
        if done == step:
            raise KeyboardInterrupt

    return on_step


def learned(task: AnomalyTask) -> list[Tensor]:
    return [
        *(v.detach().clone() for v in task.tokens.values()),
        *(v.clone() for encoder in task.encoders.values() for v in encoder.state_dict().values()),
    ]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def every_four(task: AnomalyTask) -> Validation:
    """Measurements as CONFIG has them."""
    return Validation(task.pool, every=4)


def in_parts(base: LatentDiffusion, folder: Path, stops: list[int], config: DefectConfig = CONFIG) -> Any:
    """What a training learns that is cut off after each of these steps; and its history."""
    for step in stops:
        task = make_task(base, config)
        keeper = Checkpoints(folder).stage("anomaly", ORIGIN)
        with pytest.raises(KeyboardInterrupt):
            fit(task, config, every_four(task), stop_at(step), keeper=keeper)
    task = make_task(base, config)
    keeper = Checkpoints(folder).stage("anomaly", ORIGIN)
    history = fit(task, config, every_four(task), keeper=keeper)
    return learned(task), history


# --- exactness


@pytest.mark.parametrize("stops", [[1], [4], [5], [11], [12], [2, 4, 9]])
def test_a_training_in_parts_learns_the_same_to_the_last_bit(
    fake_base: LatentDiffusion, tmp_path: Path, stops: list[int]
) -> None:
    whole = make_task(fake_base, CONFIG)
    history = fit(whole, CONFIG, every_four(whole))
    values, other = in_parts(fake_base, tmp_path, stops)
    assert same(values, learned(whole))
    assert (other.loss, other.gradient, other.rate) == (history.loss, history.gradient, history.rate)
    assert [step for step, _ in other.validation] == [step for step, _ in history.validation] == [0, 4, 8, 12]
    assert same([v for _, v in other.validation], [v for _, v in history.validation])


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_a_training_stopped_within_a_step_goes_on_from_the_last_whole_one(
    fake_base: LatentDiffusion, tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, accumulate=2, validate_every=0)
    whole = make_task(fake_base, config)
    fit(whole, config)
    task, loss, seen = make_task(fake_base, config), AnomalyTask.loss, []

    def interrupted(self: AnomalyTask, *arguments: Any) -> Tensor:
        seen.append(arguments)
        if len(seen) == batch:  # the second of its step, where odd ones are the first
            raise KeyboardInterrupt
        return loss(self, *arguments)

    keeper = Checkpoints(tmp_path).stage("anomaly", ORIGIN)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AnomalyTask, "loss", interrupted)
        fit(task, config, keeper=keeper)
    assert keeper.read()[1]["step"] == (batch - 1) // 2
    resumed = make_task(fake_base, config)
    fit(resumed, config, keeper=keeper)
    assert same(learned(resumed), learned(whole))


@pytest.mark.parametrize("part", ["parameter/0", "average/1", "generator", "optimizer/0/exp_avg_sq"])
def test_each_part_of_a_checkpoint_counts(fake_base: LatentDiffusion, tmp_path: Path, part: str) -> None:
    config = replace(CONFIG, validate_every=0)
    whole = make_task(fake_base, config)
    fit(whole, config)
    task, keeper = make_task(fake_base, config), Checkpoints(tmp_path).stage("anomaly", ORIGIN)
    with pytest.raises(KeyboardInterrupt):
        fit(task, config, None, stop_at(5), keeper=keeper)
    tensors, record = keeper.read()
    tensors[part] = torch.Generator().get_state() if part == "generator" else tensors[part] + 1e-3
    metadata = {name: artifact.json.dumps(value) for name, value in record.items()}
    artifact.write_atomically(keeper.path, tensors, metadata)
    task = make_task(fake_base, config)
    fit(task, config, keeper=keeper)
    assert not same(learned(task), learned(whole))


@pytest.mark.parametrize("refresh_every", [0, 3])
def test_a_whole_job_goes_on_in_either_of_its_trainings(
    fake_base: LatentDiffusion, dataset: Path, tmp_path: Path, refresh_every: int
) -> None:
    config = TrainingConfig(64, 0.5, replace(CONFIG, refresh_every=refresh_every), MASKS)

    def run(folder: str, *stops: tuple[str, int]) -> Learned:
        for stage, step in stops:

            def stop(now: str, done: int, _total: int, _note: str, at: Any = (stage, step)) -> None:
                if (now, done) == at:
                    raise KeyboardInterrupt

            checkpoints = Checkpoints(tmp_path / folder)
            assert job.run(TrainingRun(stop, checkpoints)).end.interrupted
        return job.run(TrainingRun(checkpoints=Checkpoints(tmp_path / folder))).learned

    job = TrainingJob(fake_base, find_dataset(dataset), config)
    whole, parts = run("whole"), run("parts", ("anomaly", 7), ("masks", 2))
    assert artifact.learned_hash(whole) == artifact.learned_hash(parts)
    assert whole.training == parts.training


# --- what is kept


def test_the_best_measured_average_is_kept(fake_base: LatentDiffusion) -> None:
    class Measured(Validation):
        """Says that step 4 was best, and notes what it was shown."""

        def __init__(self, pool: ViewPool) -> None:
            super().__init__(pool, every=4)
            self.shown: list[list[Tensor]] = []

        def measure(self, task: Any) -> Tensor:
            self.shown.append(learned(task))
            return torch.tensor([[3.0, 1.0, 2.0, 2.0][len(self.shown) - 1]])

    task = make_task(fake_base, CONFIG)
    validation = Measured(task.pool)
    history = fit(task, CONFIG, validation)
    assert history.best() == 1 and history.validation[1][0] == 4
    assert same(learned(task), validation.shown[1]) and not same(learned(task), validation.shown[3])


def test_patience_ends_a_training_that_no_longer_gains(fake_base: LatentDiffusion) -> None:
    class Worsening(Validation):
        measured = 0

        def measure(self, task: Any) -> Tensor:
            self.measured += 1
            return torch.tensor([[float(self.measured)]])

    config = replace(CONFIG, steps=100)
    task, short = make_task(fake_base, config), make_task(fake_base, config)
    history = fit(task, config, Worsening(task.pool, every=4, patience=2))
    assert len(history.loss) == 12  # best at 4, then 8 and 12
    with pytest.raises(KeyboardInterrupt):
        fit(short, config, Worsening(short.pool, every=4, patience=2), stop_at(4))
    assert same(learned(task), learned(short))


def test_the_average_follows_its_definition(fake_base: LatentDiffusion) -> None:
    task = make_task(fake_base, CONFIG)
    fitting = Fitting(task, replace(CONFIG, averaging=0.3), None, History())
    expected = fitting.copied_parameters()
    for step in range(1, 7):
        fitting.take_step()
        decay = min(0.3, step / (step + 10))
        expected = [
            decay * a + (1 - decay) * b for a, b in zip(expected, fitting.copied_parameters(), strict=True)
        ]
    for mean, by_hand in zip(fitting.average, expected, strict=True):
        torch.testing.assert_close(mean, by_hand)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_leaves_what_was_best(fake_base: LatentDiffusion, value: float) -> None:
    class Diverging(AnomalyTask):
        def loss(self, pool: ViewPool, batch: Batch) -> Tensor:
            bad = torch.is_grad_enabled() and len(history.loss) == 9
            return super().loss(pool, batch) * (value if bad else 1.0)

    history = History()
    good = make_task(fake_base, CONFIG)
    task = Diverging(fake_base, good.pool, good.encoders, CONFIG)
    with pytest.raises(TrainingStopped, match=f"became {value} at step 10: lower the learning rates"):
        fit(task, CONFIG, every_four(task), history=history)
    assert len(history.loss) == 9 and all(v.isfinite().all() for v in learned(task))


def test_a_loss_that_explodes_stops(fake_base: LatentDiffusion) -> None:
    class Growing(AnomalyTask):
        def loss(self, pool: ViewPool, batch: Batch) -> Tensor:
            return super().loss(pool, batch) * (1.0 if len(history.loss) < 30 else 100.0)

    history, config = History(), replace(CONFIG, steps=80, validate_every=0)
    good = make_task(fake_base, config)
    with pytest.raises(TrainingStopped, match="grew to 10 times that of the first steps"):
        fit(Growing(fake_base, good.pool, good.encoders, config), config, history=history)
    assert 40 < len(history.loss) < 60


# --- faults


def interrupted(base: LatentDiffusion, folder: Path) -> Any:
    task, keeper = make_task(base, CONFIG), Checkpoints(folder).stage("anomaly", ORIGIN)
    with pytest.raises(KeyboardInterrupt):
        fit(task, CONFIG, None, stop_at(3), keeper=keeper)
    return keeper


@pytest.mark.parametrize(
    ("origin", "config", "message"),
    [
        ({**ORIGIN, "dataset": "e"}, CONFIG, "was begun with dataset 'd', not 'e': give the same again"),
        (ORIGIN, replace(CONFIG, batch_size=3), "was begun with batch_size 2, not 3"),
        (ORIGIN, replace(CONFIG, steps=13), "was begun with steps 12, not 13"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    fake_base: LatentDiffusion, tmp_path: Path, origin: Any, config: DefectConfig, message: str
) -> None:
    interrupted(fake_base, tmp_path)
    with pytest.raises(ValueError, match=message):
        fit(make_task(fake_base, config), config, keeper=Checkpoints(tmp_path).stage("anomaly", origin))


def test_the_precision_belongs_to_a_training(small_base: DiffusersModel, dataset: Path) -> None:
    job = TrainingJob(small_base, find_dataset(dataset))
    assert job.origin()["precision"] == "float32"
    small_base.save_memory(bf16=True)
    assert job.origin()["precision"] == "bfloat16"


def test_a_longer_time_and_more_patience_are_no_other_training(
    fake_base: LatentDiffusion, tmp_path: Path
) -> None:
    interrupted(fake_base, tmp_path)
    config = replace(CONFIG, minutes=100.0, patience=50)
    task = make_task(fake_base, config)
    assert len(fit(task, config, keeper=Checkpoints(tmp_path).stage("anomaly", ORIGIN)).loss) == 12


@pytest.mark.parametrize("damage", ["cut", "noise", "other", "older"])
def test_a_damaged_checkpoint_is_named(fake_base: LatentDiffusion, tmp_path: Path, damage: str) -> None:
    keeper = interrupted(fake_base, tmp_path)
    if damage == "cut":
        keeper.path.write_bytes(keeper.path.read_bytes()[:1000])
    elif damage == "noise":
        keeper.path.write_bytes(b"nothing of the kind")
    else:
        name = {"other": '"else"', "older": '"anomalydiffusion-checkpoint/1"'}[damage]
        save_file({"a": torch.zeros(1)}, keeper.path, metadata={"format": name})
    with pytest.raises(ValueError, match="anomaly.safetensors is (damaged|no checkpoint)"):
        fit(make_task(fake_base, CONFIG), CONFIG, keeper=keeper)


def test_a_full_disk_stops_cleanly_and_leaves_the_checkpoint_before(
    fake_base: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = interrupted(fake_base, tmp_path)
    before = keeper.path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise artifact.SafetensorError("No space left on device")

    monkeypatch.setattr(artifact, "save_file", full)
    keeper.minutes = 0.0
    with pytest.raises(OSError, match="No space left on device.*check the free space"):
        fit(make_task(fake_base, CONFIG), CONFIG, keeper=keeper)
    assert keeper.path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anomaly.safetensors"]


def test_two_trainings_do_not_write_one_artifact(tmp_path: Path) -> None:
    folder = tmp_path / "leather.training"
    first, second = Checkpoints(folder), Checkpoints(folder)
    message = "Another training is writing to .*leather.training"
    with first.alone(), pytest.raises(ValueError, match=message), second.alone():
        pytest.fail("two hold the lock")
    with second.alone():
        pass  # the first has let go


def test_resuming_is_asked_for(fake_base: LatentDiffusion, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.check(resume=False)
    with pytest.raises(ValueError, match="no training to resume"):
        checkpoints.check(resume=True)
    interrupted(fake_base, tmp_path)
    checkpoints.check(resume=True)
    with pytest.raises(ValueError, match="was cut off: add --resume"):
        checkpoints.check(resume=False)
