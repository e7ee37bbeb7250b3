"""The command `train`: trainings that are cut off, refuse each other, or go astray."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused, train_quickly
from safetensors import safe_open

from anomalydiffusion_core.cli.train import train
from anomalydiffusion_core.generation import tuning
from anomalydiffusion_core.generation.runs import RunWatch
from anomalydiffusion_core.method.artifact import learned_hash, load_artifact
from anomalydiffusion_core.method.embeddings import Learned, Tuning
from anomalydiffusion_core.training import stage as training_run
from anomalydiffusion_core.training.checkpoint import Checkpoints
from anomalydiffusion_core.training.config import DEMO, TrainingConfig


def test_the_command_trains_as_long_by_default_as_the_library_and_the_demo() -> None:
    options, config = inspect.signature(train).parameters, TrainingConfig()
    assert options["steps"].default == config.defects.steps == DEMO.defects.steps == 500
    assert config.masks and DEMO.masks
    assert options["mask_steps"].default == config.masks.steps == DEMO.masks.steps == 300


def test_the_settings_of_types_with_three_training_pairs_are_tried_and_kept(
    base: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, found = list[list[str]](), Tuning("pasted", 0.45, 2.0, "off", 1.0, 7, 8)

    def tune(of: Any, learned: Learned, data: Any, types: list[str], watch: Any) -> None:
        assert of is base and data.root == dataset
        asked.append(types)
        learned.tunings["thing/stain"] = found

    monkeypatch.setattr(tuning, "tune", tune)
    out, summary = tmp_path / "new.safetensors", tmp_path / "summary.json"
    result = train_quickly(dataset, out, "--json", summary)
    assert result.exit_code == 0 and asked == [["thing/scratch", "thing/stain"]]
    assert load_artifact(out).tunings == {"thing/stain": found}
    assert json.loads(summary.read_text())["tunings"] == {"thing/stain": vars(found)}
    assert (
        "thing/stain is made from a real defect noised to 0.45, guidance 2, attention off (7 of 8 accepted)"
        in result.output
    )
    assert train_quickly(dataset, tmp_path / "usual.safetensors", "--no-tune").exit_code == 0
    assert len(asked) == 1 and not load_artifact(tmp_path / "usual.safetensors").tunings


def test_trying_settings_that_is_cut_off_leaves_the_artifact_whole(
    base: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(of: Any, learned: Learned, data: Any, types: list[str], watch: RunWatch) -> None:
        learned.tunings["thing/stain"] = Tuning("noise", 0.3, 2.5, "off", 1.0, 7, 8)
        signal.raise_signal(signal.SIGINT)
        watch.on_stage("thing/scratch settings", 0, 8, "")
        raise AssertionError("goes on after Ctrl-C")

    monkeypatch.setattr(tuning, "tune", tune)
    result = train_quickly(dataset, tmp_path / "new.safetensors")
    assert result.exit_code == 130 and "the artifact is whole" in result.output
    assert list(load_artifact(tmp_path / "new.safetensors").tunings) == ["thing/stain"]
    assert not (tmp_path / "new.training").exists()


def test_a_broken_normal_photo_is_told_before_the_long_work(
    base: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = sorted((dataset / "thing/train/good").iterdir())[-1]
    photo.write_bytes(photo.read_bytes()[:200])
    monkeypatch.setattr(base, "predict_noise", None)  # no step is made
    refused(train_quickly(dataset, tmp_path / "new.safetensors", "--mask-steps", 1), photo.name)
    refused(train_quickly(dataset, tmp_path / "new.safetensors", "--size", 100_000), "--size")


def test_an_interrupted_training_goes_on_where_it_was(
    base: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    assert train_quickly(dataset, whole).exit_code == 0
    refused(train_quickly(dataset, cut, "--resume"), "no training to resume in", "leave --resume out")
    predict_noise, calls = base.predict_noise, []

    def interrupt(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # in the middle of a step
            signal.raise_signal(signal.SIGINT)
        return predict_noise(*arguments)

    monkeypatch.setattr(base, "predict_noise", interrupt)
    assert train_quickly(dataset, cut).exit_code == 130
    monkeypatch.setattr(base, "predict_noise", predict_noise)
    kept = [path.name for path in (tmp_path / "cut.training").glob("*.safetensors")]
    assert kept == ["anomaly.safetensors"]
    assert load_artifact(cut).training["anomaly"]["steps"] == 2  # type: ignore[index]
    refused(train_quickly(dataset, cut), "holds a training that was cut off: add --resume")
    refused(train_quickly(dataset, cut, "--resume", "--batch", 3), "was begun with batch_size 4, not 3")
    refused(train_quickly(dataset, cut, "--resume", "--size", 128), "was begun with image_size 64, not 128")
    assert train_quickly(dataset, cut, "--resume").exit_code == 0
    assert not (tmp_path / "cut.training").exists()
    assert learned_hash(load_artifact(cut)) == learned_hash(load_artifact(whole))


def test_tensorboard_has_losses_gradients_rates_and_pictures(
    base: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(training_run, "PREVIEW_EVERY", 2)
    out, logs = tmp_path / "a.safetensors", tmp_path / "logs"
    result = train_quickly(dataset, out, "--tensorboard", logs, "--validate-every", 2)
    assert result.exit_code == 0 and " s left" in result.stdout and "gradient " in result.stdout
    events = EventAccumulator(str(logs)).Reload()
    training: Any = load_artifact(out).training
    for stage, record in (("anomaly", training["anomaly"]), ("masks", training["mask"])):
        for name in ("loss", "gradient"):
            shown = [event.value for event in events.Scalars(f"{stage}/{name}")]
            assert shown == pytest.approx(record[name], abs=2e-5)
        assert len(events.Scalars(f"{stage}/rate")) == record["steps"]
        assert [event.step for event in events.Images(f"{stage}/real_above_preview")][0] == 2
    held_out = [(event.step, event.value) for event in events.Scalars("anomaly/held_out_loss")]
    assert held_out == [(step, pytest.approx(loss)) for step, loss in training["anomaly"]["validation"]]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    refused(
        train_quickly(dataset, tmp_path / "b.safetensors", "--tensorboard", logs), "is not installed: pip"
    )


def test_precision_checkpointing_and_accumulation_are_passed_on(
    base: Any, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.safetensors"
    options = ("--precision", "bf16", "--checkpointing", "--accumulate", 2)
    assert train_quickly(dataset, out, *options).exit_code == 0
    assert base.memory_saved == {"bf16": True, "checkpointing": True}
    config: Any = load_artifact(out).training["anomaly"]["config"]
    assert config["accumulate"] == 2


def test_two_trainings_of_one_name_refuse_each_other(base: Any, dataset: Path, tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "a.training").alone():
        refused(train_quickly(dataset, tmp_path / "a.safetensors"), "Another training is writing to")


def test_a_loss_that_explodes_keeps_the_best_and_says_so(
    base: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_noise, calls = base.schedule.add_noise, []

    def diverging(*arguments: Any) -> Any:
        calls.append(1)
        return add_noise(*arguments) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(type(base.schedule), "add_noise", lambda _self, *a: diverging(*a))
    out = tmp_path / "a.safetensors"
    refused(train_quickly(dataset, out), "The loss became nan at step 2: lower the learning rates")
    tokens = load_artifact(out).anomaly["thing/stain"]["clip_l"]
    assert tokens.isfinite().all()


def test_patience_ends_a_training_and_needs_measurements(base: Any, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    refused(
        train_quickly(dataset, out, "--patience", 1), "Patience of 1 counts measurements", "validate_every"
    )
    assert train_quickly(dataset, out, "--validate-every", 1, "--patience", 9).exit_code == 0
    record: Any = load_artifact(out).training["anomaly"]
    assert [step for step, _ in record["validation"]] == [0, 1, 2, 3]
    means = {step: loss for step, loss in record["validation"] if step}
    assert record["kept_step"] == min(means, key=means.__getitem__)


def test_a_training_that_is_killed_leaves_a_checkpoint_that_goes_on(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    command = [sys.executable, "-m", "anomalydiffusion_core.cli", "train", str(dataset), "--out", str(out)]
    command += ["--size", "64", "--steps", "20", "--mask-steps", "0", "--batch", "1", "--device", "cpu"]
    kept, deadline = tmp_path / "a.training" / "anomaly.safetensors", time.monotonic() + 120
    process = subprocess.Popen([*command, "--checkpoint-minutes", "0"])
    while not kept.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it should still have been training"
    with safe_open(kept, framework="pt") as file:
        assert json.loads(file.metadata()["step"]) >= 1
    assert subprocess.run([*command, "--resume"]).returncode == 0
    assert load_artifact(out).training["anomaly"]["steps"] == 20  # type: ignore[index]
    assert not kept.parent.exists()


def test_a_new_type_is_added_and_what_was_known_stays_bit_for_bit(
    base: Any, dataset: Path, tmp_path: Path
) -> None:
    first, both = tmp_path / "first.safetensors", tmp_path / "both.safetensors"
    assert train_quickly(dataset, first, "--defect", "scratch").exit_code == 0
    summary = tmp_path / "s.json"
    assert train_quickly(dataset, both, "--extend", first, "--json", summary).exit_code == 0
    known, model = load_artifact(first), load_artifact(both)
    assert sorted(model.anomaly) == sorted(model.mask) == ["thing/scratch", "thing/stain"]
    with safe_open(first, framework="pt") as before, safe_open(both, framework="pt") as after:
        assert len(before.keys()) > 20
        for key in before.keys():  # noqa: SIM118
            assert torch.equal(before.get_tensor(key), after.get_tensor(key)), key
    assert model.training["anomaly"] == known.training["anomaly"]
    added: Any = model.training["added"]
    assert [(one["kind"], one["types"]) for one in added] == [
        ("anomaly", ["thing/stain"]),
        ("mask", ["thing/stain"]),
    ]
    assert model.trained_on["thing/scratch"] == known.trained_on["thing/scratch"]
    assert set(model.mask_placements) == {"thing/scratch", "thing/stain"}
    again = tmp_path / "again.safetensors"
    refused(train_quickly(dataset, again, "--extend", both), "is known already: there is nothing to add")
    refused(train_quickly(dataset, again, "--extend", first, "--size", 128), "trained at 64 px, not 128")
    assert not again.exists()
