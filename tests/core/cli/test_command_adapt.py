"""The command `train --adapt`: the base is adapted to normal photos before defects are learned on it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused, run, train_quickly
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from anomalydiffusion_core.bases import diffusers_model
from anomalydiffusion_core.bases.diffusers_model import DiffusersModel
from anomalydiffusion_core.dataset.layout import find_dataset
from anomalydiffusion_core.method.artifact import learned_hash, load_artifact, save_artifact
from anomalydiffusion_core.training.checkpoint import Checkpoints
from anomalydiffusion_core.training.config import AdaptationConfig, DefectConfig, TrainingConfig
from anomalydiffusion_core.training.fitting import Fitting
from anomalydiffusion_core.training.jobs import TrainingJob
from anomalydiffusion_core.training.stage import TrainingRun


@pytest.fixture
def commanded(lora_base: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> DiffusersModel:
    """The base of which commands load a fresh copy each."""
    monkeypatch.setattr(diffusers_model, "load_base", lambda name, device="cpu": copy.deepcopy(lora_base))
    return lora_base


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def train_adapting(data: Path, out: Path, *more: object) -> Any:
    steps = ("--adapt", "normals", "--adapt-steps", 4, "--no-spatial-encoder", "--batch", 2)
    return train_quickly(data, out, *steps, *more)


@pytest.mark.parametrize(("stop_at", "kept"), [(2, ["normals"]), (6, ["anomaly", "normals"])])
def test_a_training_cut_off_in_either_stage_goes_on_bit_for_bit(
    commanded: DiffusersModel,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
    kept: list[str],
) -> None:
    whole, cut, lora = (tmp_path / f"{name}.safetensors" for name in ("whole", "cut", "cut.lora"))
    assert train_adapting(dataset, whole).exit_code == 0
    take_step, taken = Fitting.take_step, []

    def interrupt(self: Fitting) -> None:
        taken.append(1)
        if len(taken) == stop_at:
            raise KeyboardInterrupt
        take_step(self)

    with monkeypatch.context() as patched:
        patched.setattr(Fitting, "take_step", interrupt)
        assert train_adapting(dataset, cut).exit_code == 130
    assert sorted(path.stem for path in (tmp_path / "cut.training").glob("*.safetensors")) == kept
    assert load_artifact(cut).adapter and lora.exists()
    plainly = train_quickly(dataset, cut, "--resume", "--no-spatial-encoder", "--batch", 2)
    refused(plainly, "was begun with --adapt: give the same again")
    refused(train_adapting(dataset, cut, "--resume", "--seed", 1), "was begun with seed 0, not 1")
    assert train_adapting(dataset, cut, "--resume").exit_code == 0
    assert learned_hash(load_artifact(cut)) == learned_hash(load_artifact(whole))
    assert same(load_file(lora), load_file(tmp_path / "whole.lora.safetensors"))


def test_other_normal_photos_are_no_resumption(
    commanded: DiffusersModel, dataset: Path, tmp_path: Path, write_image: Any
) -> None:
    checkpoints = Checkpoints(tmp_path / "a.training")

    def stop(stage: str, done: int, _total: int, _note: str) -> None:
        if (stage, done) == ("normals", 2):
            raise KeyboardInterrupt

    defects = DefectConfig(steps=3, batch_size=2, views_per_pair=2, spatial_encoder=False)
    adaptation = AdaptationConfig(steps=4, batch_size=2, views_per_photo=2)
    config = TrainingConfig(64, 0.5, defects, None, adaptation)
    job = TrainingJob(copy.deepcopy(commanded), find_dataset(dataset), config)
    cut = job.run(TrainingRun(stop, checkpoints))
    assert cut.end.interrupted and not cut.learned.anomaly and cut.learned.adapter
    write_image(dataset / "thing/train/good/000.png", np.full((64, 64, 3), 90, np.uint8))
    with pytest.raises(ValueError, match="was begun with normals '"):
        replace(job, base=commanded).run(TrainingRun(checkpoints=checkpoints))


def test_the_command_generates_on_the_adapted_base(
    commanded: DiffusersModel, dataset: Path, tmp_path: Path
) -> None:
    out, summary = tmp_path / "a.safetensors", tmp_path / "summary.json"
    result = train_adapting(dataset, out, "--json", summary)
    assert result.exit_code == 0 and "normals: 4/4" in result.stdout, result.output
    assert json.loads(summary.read_text())["lora"] == str(tmp_path / "a.lora.safetensors")

    def made(artifact: Path, name: str) -> list[bytes]:
        options = ("--steps", 2, "--smallest-fill", 0, "--checks", "", "--count", 1, "--guidance", 6)
        masks = ("--masks", dataset / "thing/ground_truth")
        result = run("generate", artifact, dataset, "--out", tmp_path / name, *options, *masks)
        assert result.exit_code == 0, result.output
        return [path.read_bytes() for path in sorted((tmp_path / name).glob("thing/test/*/*.png"))]

    learned = load_artifact(out)
    learned.adapter = {name: 10 * tensor for name, tensor in learned.adapter.items()}
    save_artifact(learned, tmp_path / "stronger.safetensors")
    learned.adapter = {}
    save_artifact(learned, tmp_path / "without.safetensors")
    adapted, again = made(out, "adapted"), made(out, "again")
    assert len(adapted) == 2 and adapted == again
    assert made(tmp_path / "stronger.safetensors", "stronger") != made(
        tmp_path / "without.safetensors", "without"
    )


def test_the_command_refuses_what_does_not_go_together(
    commanded: DiffusersModel, dataset: Path, tmp_path: Path
) -> None:
    out, lora = tmp_path / "a.safetensors", tmp_path / "a.lora.safetensors"
    lora.write_bytes(b"mine")
    refused(train_adapting(dataset, out), "a.lora.safetensors exists already: choose another name")
    assert lora.read_bytes() == b"mine" and not out.exists()
    lora.unlink()
    assert train_adapting(dataset, out, "--defect", "scratch").exit_code == 0
    more = tmp_path / "more.safetensors"
    refused(train_adapting(dataset, more, "--extend", out), "--adapt and --extend exclude each other")
    extended = train_quickly(dataset, more, "--extend", out, "--no-spatial-encoder")
    assert extended.exit_code == 0 and (tmp_path / "more.lora.safetensors").exists()
    first, both = load_artifact(out), load_artifact(more)
    assert same(first.adapter, both.adapter) and sorted(both.anomaly) == ["thing/scratch", "thing/stain"]


def test_what_extends_an_adapted_artifact_is_learned_on_the_adapted_base(
    commanded: DiffusersModel, dataset: Path, tmp_path: Path
) -> None:
    out, more = tmp_path / "a.safetensors", tmp_path / "more.safetensors"
    assert train_adapting(dataset, out, "--defect", "scratch").exit_code == 0
    extended = train_quickly(dataset, more, "--extend", out, "--no-spatial-encoder", "--mask-steps", 0)
    assert extended.exit_code == 0
    learned: Any = load_artifact(more)
    defects = DefectConfig(**learned.training["added"][0]["config"])
    commanded.adapt(learned.adapter)
    config = TrainingConfig(64, 0.5, defects, None)
    again: Any = TrainingJob(commanded, find_dataset(dataset), config, load_artifact(out)).run().learned
    assert again.training["added"][0]["loss"] == learned.training["added"][0]["loss"]


def test_without_adapt_an_artifact_is_as_ever(
    commanded: DiffusersModel, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.safetensors"
    assert train_quickly(dataset, out, "--no-spatial-encoder").exit_code == 0
    with safe_open(out, framework="pt") as file:
        assert {key.partition("/")[0] for key in file.keys()} == {"anomaly", "mask"}  # noqa: SIM118
        assert "adapter" not in file.metadata()
        assert set(json.loads(file.metadata()["training"])) == {"anomaly", "mask", "improvement"}
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["a.safetensors"]
